"""Micro-VMs for real, on this machine: what is theirs, what they cannot see, how they end, what a kill leaves."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from tasks.clouds.base import OWNER, OWNER_TAG, ErrorKind, Ref
from tasks.clouds.local import LocalCloud, LocalCloudError, microvm, network, ssh
from tasks.clouds.local.state import StateDir
from tests.local_servers import PATIENCE_S, Order, run, traces, wait_until

pytestmark = pytest.mark.lab
SMALL = "cpu1-mem256m-400mbit"


@contextmanager
def cloud_at(directory: Path) -> Iterator[LocalCloud]:
    """A cloud that is emptied, and proven to have left nothing, at the end."""
    if why_not := microvm.why_not():
        pytest.skip(f"micro-VMs cannot be made here: {why_not}")
    cloud = LocalCloud(directory, "microvm")
    try:
        yield cloud
    finally:
        cloud.close()
        for resource in cloud.list_owned().resources:
            cloud.delete(resource.ref())
    assert cloud.list_owned().resources == ()
    wait_until(lambda: traces(cloud, StateDir(directory).tag) == [], "nothing is left")


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[LocalCloud]:
    with cloud_at(tmp_path / "state") as made:
        yield made


def test_a_server_has_an_address_a_name_cpus_and_a_disk_of_its_own(cloud: LocalCloud) -> None:
    order = Order(SMALL)
    server = cloud.create(order.spec)
    assert server.state == "running" and server.address.startswith("10.77.") and server.ssh_port == 22
    assert cloud.get(server.ref()) == server and cloud.list_owned().resources == (server,)
    with order.connect(server) as client:
        status, out, err = run(client, "hostname; nproc; pwd; printenv HOME USER; echo oops >&2; exit 7")
        assert (status, out.split(), err) == (7, [server.name, "1", "/srv", "/srv", "root"], "oops\n")
        cgroup = run(client, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max")[1]
        assert cgroup == "268435456\n" and "tokensweep" not in run(client, "cat /proc/self/cgroup")[1]
        assert '"memory_bytes": 268435456' in run(client, 'cat "$TOKENSWEEP_LIMITS" /etc/tokensweep/limits.json')[1]
        assert server.address in run(client, "ip -4 addr show eth0")[1]
        assert run(client, "python3 -c 'import sys; print(sys.version_info >= (3, 9))'")[1] == "True\n"
        run(client, "echo kept > file")
        with client.open_sftp() as sftp, sftp.open("upload", "wb") as file:
            file.write(b"x" * 100_000)
    disk = cloud.state_dir / "vms" / server.name / "disk"
    assert (disk / "file").read_text() == "kept\n" and (disk / "upload").stat().st_size == 100_000


def test_the_host_cannot_be_seen_nor_changed(cloud: LocalCloud, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    order = Order(SMALL)
    with order.connect(cloud.create(order.spec)) as client:
        for path in (str(secret), str(Path(__file__)), str(cloud.state_dir), str(Path.home() / ".ssh"), "/etc/pam.d"):
            assert run(client, f"ls {path}")[0] != 0
        assert run(client, "ls -A /root /home")[1].split() == ["/home:", "/root:"]
        assert "root:*:" in run(client, "cat /etc/shadow")[1]
        assert run(client, "grep -c . /proc/net/dev")[1] == "4\n"  # two lines of headings, lo, eth0
        assert int(run(client, "ls -d /proc/[0-9]* | wc -l")[1]) < 12
        assert run(client, f"kill -9 {os.getpid()}")[0] != 0
        for change in ("touch /usr/x", "echo 1 > /proc/sys/vm/swappiness", "mount -t tmpfs x /home", "hostname x"):
            status, _, err = run(client, change)
            assert status != 0 and err


def test_without_a_python_of_the_system_there_is_the_one_of_the_controller(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "system_python", lambda: None)
    order = Order(SMALL)
    with order.connect(cloud.create(order.spec)) as client:
        code = "import ssl, hashlib, zipfile, sys; print(sys.base_prefix)"
        assert run(client, f"python3 -c '{code}'") == (0, os.path.realpath(sys.base_prefix) + "\n", "")
        assert run(client, f"touch {os.path.realpath(sys.base_prefix)}/x")[0] != 0


def test_memory_beyond_the_limit_is_killed(cloud: LocalCloud) -> None:
    order = Order("cpu1-mem128m-400mbit")
    with order.connect(cloud.create(order.spec)) as client:
        assert run(client, "python3 -c 'bytearray(64 << 20)'")[0] == 0
        assert run(client, "python3 -c 'bytearray(256 << 20)'")[0] in (-1, 137)
        assert run(client, "echo alive")[1] == "alive\n"


def test_a_small_disk_can_be_filled(cloud: LocalCloud) -> None:
    order = Order("cpu1-mem256m-400mbit-disk8m")
    with order.connect(cloud.create(order.spec)) as client:
        status, _, err = run(client, "head -c 16777216 /dev/zero > file")
        assert status != 0 and "No space left" in err
        assert run(client, "rm file && head -c 4194304 /dev/zero > file && stat -c %s file")[1] == "4194304\n"


def test_the_link_is_as_slow_as_it_says_in_both_directions(cloud: LocalCloud) -> None:
    """Bounds from above only: a busy machine may be slower."""
    order = Order("cpu1-mem256m-40mbit")
    n_bytes, limit_bytes_per_s = 4 * 2**20, 40e6 / 8
    with order.connect(cloud.create(order.spec)) as client:
        started_s = time.monotonic()
        assert len(run(client, f"head -c {n_bytes} /dev/zero | tr '\\0' x")[1]) == n_bytes
        up_bytes_per_s = n_bytes / (time.monotonic() - started_s)
        stdin, stdout, _ = client.exec_command("wc -c")
        started_s = time.monotonic()
        stdin.write(b"x" * n_bytes)
        stdin.channel.shutdown_write()
        assert int(stdout.read()) == n_bytes
        down_bytes_per_s = n_bytes / (time.monotonic() - started_s)
    assert max(up_bytes_per_s, down_bytes_per_s) < 1.5 * limit_bytes_per_s


def test_the_server_ends_itself_at_its_deadline(cloud: LocalCloud) -> None:
    order = Order(SMALL, ttl_s=2)
    server = cloud.create(order.spec)
    with order.connect(server) as client:
        assert run(client, "setsid sleep 1000 > /dev/null 2>&1 < /dev/null &")[0] == 0
    ref = server.ref()
    wait_until(lambda: (now := cloud.get(ref)) is not None and now.state == "terminated", "it ends")
    resources = cloud.list_owned().resources
    assert {(r.kind, r.state, r.usd_per_hour) for r in resources if r.name == server.name} == {
        ("server", "terminated", 0),
        ("directory", "stopped", 0),
    }
    assert "reached its deadline" in (cloud.state_dir / "vms" / server.name / "console.log").read_text()
    assert cloud.create(Order(SMALL).spec).state == "running"  # its CPU is free again


def test_servers_run_side_by_side_and_reach_the_controller(cloud: LocalCloud) -> None:
    host = cloud.model_host()
    n_servers = len(os.sched_getaffinity(0))
    orders = [Order("cpu1-mem128m-400mbit") for _ in range(min(3, n_servers))]
    with ThreadPoolExecutor() as pool:
        servers = list(pool.map(lambda order: cloud.create(order.spec), orders))
    assert len({server.address for server in servers}) == len(servers)
    argv = [sys.executable, "-m", "http.server", "--bind", host, "0", "--directory", str(cloud.state_dir / "vms")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as http:
        try:
            assert http.stdout is not None
            port = http.stdout.readline().split()[5].decode()
            code = f"import urllib.request as u; print(u.urlopen('http://{host}:{port}/').status)"
            for order, server in zip(orders, servers, strict=True):
                with order.connect(server) as client:
                    assert run(client, f'python3 -c "{code}"')[1] == "200\n"
        finally:
            http.kill()
    for server in servers:
        cloud.delete(server.ref())
    assert cloud.model_host() == host  # leased: it outlives the last server
    cloud.close()
    assert not network.exists(network.bridge_name(StateDir(cloud.state_dir).tag))


def test_an_address_that_was_another_servers_a_moment_ago_is_reached_at_once(cloud: LocalCloud) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("takes two CPUs")
    cloud.create(Order(SMALL).spec)  # keeps the bridge up, and with it what the host remembers of its neighbours
    addresses = []
    for _ in range(3):
        order = Order(SMALL)
        server = cloud.create(order.spec)
        addresses.append(server.address)
        with order.connect(server) as client:
            assert run(client, "hostname")[1].strip() == server.name
        cloud.delete(server.ref())
    assert len(set(addresses)) == 1


def test_a_lease_that_was_killed_leaves_a_bridge_that_is_listed_and_deleted(cloud: LocalCloud) -> None:
    code = "import sys, os; from pathlib import Path; from tasks.clouds.local import LocalCloud\n"
    code += "LocalCloud(Path(sys.argv[1]), 'microvm').model_host(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(cloud.state_dir)], check=False)
    (bridge,) = cloud.list_owned().resources
    assert bridge.kind == "bridge"
    cloud.delete(bridge.ref())
    assert cloud.list_owned().resources == ()


def test_what_is_left_when_the_record_is_lost_is_listed_and_deleted(cloud: LocalCloud) -> None:
    server = cloud.create(Order(SMALL).spec)
    shutil.rmtree(cloud.state_dir / "vms" / server.name)
    left = cloud.list_owned().resources
    assert {resource.kind for resource in left} == {"process", "cgroup", "interface"}
    assert all(resource.tags == {OWNER_TAG: OWNER} and cloud.get(resource.ref()) for resource in left)
    for resource in sorted(left, key=lambda resource: resource.kind):
        cloud.delete(resource.ref())
    assert cloud.list_owned().resources == ()


def test_two_state_folders_do_not_touch_each_other(cloud: LocalCloud, tmp_path: Path) -> None:
    order = Order("cpu1-mem128m-400mbit", name="same-name")
    mine = cloud.create(order.spec)
    with cloud_at(tmp_path / "other") as other:
        assert other.list_owned().resources == () and other.get(mine.ref()) is None
        other.delete(mine.ref())
        theirs = other.create(Order("cpu1-mem128m-400mbit", name="same-name").spec)
        assert theirs.address.rpartition(".")[0] != mine.address.rpartition(".")[0]
        other.delete(theirs.ref())
    with order.connect(mine) as client:
        assert run(client, "echo alive")[1] == "alive\n"


def test_no_free_cpu_is_a_lack_of_capacity(cloud: LocalCloud) -> None:
    n_cpus = len(os.sched_getaffinity(0))
    cloud.create(Order(f"cpu{n_cpus}-mem256m-400mbit").spec)
    with pytest.raises(LocalCloudError) as caught:
        cloud.create(Order(SMALL).spec)
    meaning = cloud.classify(caught.value)
    assert (meaning.kind, meaning.scope, meaning.may_exist) == (ErrorKind.CAPACITY, "zone", False)
    assert len(cloud.list_owned().resources) == 1


def test_a_create_that_fails_removes_what_it_made(cloud: LocalCloud) -> None:
    order = Order(SMALL)
    bridge = network.bridge_name(StateDir(cloud.state_dir).tag)
    lines = f"link add {bridge} type veth peer name {bridge}x\naddr add 10.77.0.1/32 dev {bridge}\n"
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)  # a bridge that is none
    with pytest.raises(LocalCloudError, match="was removed again") as caught:
        cloud.create(order.spec)
    meaning = cloud.classify(caught.value)
    assert meaning.kind is ErrorKind.UNKNOWN and not meaning.may_exist
    assert cloud.get(Ref(vendor="local", place="localhost", name=order.spec.name)) is None


CREATOR = textwrap.dedent(
    """
    import json, os, signal, sys
    from pathlib import Path
    from tasks.clouds.base import CreateSpec
    from tasks.clouds.local import LocalCloud, cgroups, launch, network, processes
    from tasks.clouds.local.state import StateDir

    def die_instead(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_after(function):
        def dying(*args, **kwargs):
            function(*args, **kwargs)
            die_instead()
        return dying

    points = {
        "before the record": (StateDir, "add", die_instead),
        "after the record": (cgroups.Hierarchy, "make", die_instead),
        "after the cgroup": (cgroups.Hierarchy, "make", die_after(cgroups.Hierarchy.make)),
        "first process started": (launch.Launch, "fork", die_instead),
        "first process has its configuration": (launch.Launch, "_send", die_after(launch.Launch._send)),
        "namespaces made": (launch.Launch, "fork", die_after(launch.Launch.fork)),
        "bridge made": (network, "ensure_bridge", die_after(network.ensure_bridge)),
        "network attached": (network, "attach", die_after(network.attach)),
        "network known": (launch.Launch, "go", die_instead),
        "running": (launch.Launch, "go", die_after(launch.Launch.go)),
        "directory marked": (processes, "kill_all", die_instead),
        "processes killed": (processes, "kill_all", die_after(processes.kill_all)),
        "traces removed": (StateDir, "bury", die_instead),
        "out of sight": (StateDir, "remove_leftover", die_instead),
    }
    owner, name, replacement = points[sys.argv[2]]
    cloud = LocalCloud(Path(sys.argv[1]), "microvm")
    setattr(owner, name, replacement)
    cloud.delete(cloud.create(CreateSpec(**json.loads(sys.argv[3]))).ref())
    """
)
POINTS = [line.split('"')[1] for line in CREATOR.splitlines() if line.startswith('    "')]


def creator_argv(code: str, directory: Path, point: str) -> list[str]:
    spec = json.dumps(asdict(Order("cpu1-mem128m-400mbit", name="half-made").spec))
    return [sys.executable, "-c", code, str(directory), point, spec]


@pytest.mark.parametrize("point", POINTS)
def test_kill_of_the_creator_or_deleter_leaves_nothing_that_is_not_found(cloud: LocalCloud, point: str) -> None:
    done = subprocess.run(creator_argv(CREATOR, cloud.state_dir, point), stderr=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if point == "running":  # its creator's death is nothing to a server
        (server,) = cloud.list_owned().resources
        assert server.state == "running"
    for resource in cloud.list_owned().resources:
        cloud.delete(resource.ref())
    assert cloud.list_owned().resources == ()
    assert cloud.create(Order("cpu1-mem128m-400mbit", name="half-made").spec).state == "running"
    assert len(POINTS) == 14


def test_kill_of_the_creator_at_random_moments(cloud: LocalCloud) -> None:
    code = CREATOR.replace("setattr(owner, name, replacement)", 'print("up", flush=True)')
    for _ in range(4):
        with subprocess.Popen(creator_argv(code, cloud.state_dir, "running"), stdout=subprocess.PIPE) as creator:
            assert creator.stdout is not None and creator.stdout.readline() == b"up\n"
            time.sleep(random.uniform(0.0, 0.25))
            creator.kill()
        for resource in cloud.list_owned().resources:
            cloud.delete(resource.ref())
        assert cloud.list_owned().resources == ()


def test_a_server_that_is_killed_cuts_its_connections(cloud: LocalCloud) -> None:
    """What a spot preemption looks like."""
    order = Order(SMALL)
    server = cloud.create(order.spec)
    with order.connect(server) as client:
        _, stdout, _ = client.exec_command("sleep 1000")
        cloud.delete(server.ref())
        transport = client.get_transport()
        assert transport is not None
        transport.set_keepalive(1)
        stdout.channel.settimeout(PATIENCE_S)
        assert stdout.read() == b"" or not transport.is_active()
