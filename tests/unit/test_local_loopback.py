"""Loopback servers for real: create, log in, run, lose the connection, run into the deadline, delete without a trace.

Everything runs twice, with OpenSSH's sshd and with the asyncssh server that takes its place where there is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import paramiko
import pytest

from tasks.clouds.base import OWNER, OWNER_TAG, ErrorKind
from tasks.clouds.local import LocalCloud, LocalCloudError, ssh
from tasks.clouds.local.state import StateDir
from tests.local_servers import Order, processes_with, run, traces, wait_until

CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture(params=["sshd", "asyncssh"])
def cloud(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCloud]:
    if request.param == "asyncssh":
        monkeypatch.setattr(ssh, "find_sshd", lambda: None)
    elif why_not := ssh.why_no_sshd_for_user():
        pytest.skip(why_not)
    with cloud_at(tmp_path / "state") as made:
        assert made.ssh_server.startswith(request.param)
        yield made


class cloud_at:
    """A cloud that is emptied, and proven to have left nothing, at the end."""

    def __init__(self, directory: Path) -> None:
        self.cloud = LocalCloud(directory, "loopback")
        self.tag = StateDir(directory).tag

    def __enter__(self) -> LocalCloud:
        return self.cloud

    def __exit__(self, *_: object) -> None:
        for resource in self.cloud.list_owned().resources:
            self.cloud.delete(resource.ref())
        assert self.cloud.list_owned().resources == ()
        assert traces(self.cloud, self.tag) == []


def test_life_of_a_server(cloud: LocalCloud) -> None:
    order = Order(ttl_s=600)
    server = cloud.create(order.spec)
    assert (server.state, server.kind, server.address) == ("running", "server", "127.0.0.1")
    assert server.tags[OWNER_TAG] == OWNER and server.tags["tokensweep-intent"] == order.spec.intent_id
    assert server.tags["tokensweep-controller"] == "test" and server.usd_per_hour > 0
    assert cloud.get(server.ref()) == server and cloud.list_owned().resources == (server,)
    with order.connect(server) as client:
        status, out, err = run(client, "printenv HOME TOKENSWEEP_VM; pwd; ls -A; nproc; echo oops >&2; exit 7")
        home, mark, cwd, n_cpus = out.split()
        assert (status, err, n_cpus) == (7, "oops\n", "1")
        assert mark.endswith(order.spec.name) and home == cwd == str(cloud.state_dir / "vms" / server.name / "disk")
        assert run(client, 'cat "$TOKENSWEEP_LIMITS"')[1].startswith('{"memory_bytes": 268435456, "cpus": [')
        assert run(client, "python3 -c 'import sys; print(sys.version_info >= (3, 9))'")[1] == "True\n"
    cloud.delete(server.ref())
    assert cloud.get(server.ref()) is None and cloud.list_owned().resources == ()
    cloud.delete(server.ref())


def test_only_the_pinned_host_key_and_the_injected_client_key_open_the_door(cloud: LocalCloud) -> None:
    order, other = Order(), Order()
    server = cloud.create(order.spec)
    with pytest.raises(paramiko.BadHostKeyException), order.connect(server, host_public_key=other.spec.host_public_key):
        pass
    order.client_private, right = other.client_private, order.client_private
    with pytest.raises(paramiko.AuthenticationException), order.connect(server):
        pass
    order.client_private = right
    with order.connect(server) as client:
        assert run(client, "echo in")[1] == "in\n"


def test_output_is_whole_and_input_arrives(cloud: LocalCloud) -> None:
    order = Order()
    with order.connect(cloud.create(order.spec)) as client:
        _, out, _ = run(client, "head -c 8388608 /dev/zero | tr '\\0' x; echo end")
        assert len(out) == 8388608 + 4 and out.endswith("xend\n")
        stdin, stdout, _ = client.exec_command("sha256sum")
        stdin.write(b"x" * 1_000_000)
        stdin.channel.shutdown_write()
        assert stdout.read().decode().split()[0] == hashlib.sha256(b"x" * 1_000_000).hexdigest()
        assert run(client, "kill -9 $$")[0] != 0


def test_files_go_to_the_disk_of_the_server_and_back(cloud: LocalCloud) -> None:
    order = Order()
    server = cloud.create(order.spec)
    data = os.urandom(300_000)
    with order.connect(server) as client, client.open_sftp() as sftp:
        with sftp.open("model.gguf", "wb") as file:
            file.write(data)
        sftp.chmod("model.gguf", 0o755)
        assert (cloud.state_dir / "vms" / server.name / "disk/model.gguf").read_bytes() == data
        with sftp.open("model.gguf", "rb") as file:
            assert file.read() == data
        assert run(client, "stat -c %a model.gguf")[1] == "755\n"


def test_what_is_detached_outlives_the_connection_but_not_the_server(cloud: LocalCloud) -> None:
    order = Order()
    server = cloud.create(order.spec)
    disk = cloud.state_dir / "vms" / server.name / "disk"
    with order.connect(server) as client:
        status, _, _ = run(
            client, "setsid nohup sh -c 'while sleep 0.05; do date >> beats; done' > log 2>&1 < /dev/null &"
        )
        assert status == 0
        # Without its environment and reparented, it is still known.
        assert run(client, "env -i setsid sh -c 'sleep 1000 > /dev/null 2>&1 < /dev/null &'")[0] == 0
        transport = client.get_transport()
        assert transport is not None
        transport.sock.close()  # the connection is cut, not closed
    wait_until((disk / "beats").exists, "the detached process writes")
    size = (disk / "beats").stat().st_size
    wait_until(lambda: (disk / "beats").stat().st_size > size, "the detached process lives on")
    cloud.delete(server.ref())
    assert not disk.exists()


@pytest.mark.parametrize("cloud", ["asyncssh"], indirect=True)
def test_a_command_that_leaves_something_behind_does_not_hold_its_channel_for_ever(cloud: LocalCloud) -> None:
    order = Order()
    with order.connect(cloud.create(order.spec)) as client:
        assert run(client, "sleep 1000 & echo left") == (0, "left\n", "")


def test_without_a_python_of_the_system_there_is_the_one_of_the_controller(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "system_python", lambda: None)
    order = Order()
    with order.connect(cloud.create(order.spec)) as client:
        prefix = run(client, "python3 -c 'import sys; print(sys.base_prefix)'")[1].strip()
        assert os.path.realpath(prefix) == os.path.realpath(sys.base_prefix)


def test_memory_beyond_the_limit_is_refused(cloud: LocalCloud) -> None:
    order = Order("cpu1-mem256m-80mbit")
    with order.connect(cloud.create(order.spec)) as client:
        assert run(client, "python3 -c 'bytearray(100 << 20)'")[0] == 0
        status, _, err = run(client, "python3 -c 'bytearray(400 << 20)'")
        assert status == 1 and "MemoryError" in err


def test_the_server_ends_itself_at_its_deadline_and_costs_nothing_from_then_on(cloud: LocalCloud) -> None:
    order = Order(ttl_s=3)
    server = cloud.create(order.spec)
    with order.connect(server) as client:
        assert run(client, "setsid sleep 1000 > /dev/null 2>&1 < /dev/null &")[0] == 0
    ref = server.ref()
    wait_until(lambda: (now := cloud.get(ref)) is not None and now.state == "terminated", "it ends")
    assert processes_with(server.name) == []
    kinds = {(r.kind, r.state, r.usd_per_hour) for r in cloud.list_owned().resources}
    assert kinds == {("server", "terminated", 0), ("directory", "stopped", 0)}
    assert "reached its deadline" in (cloud.state_dir / "vms" / server.name / "console.log").read_text()


def test_the_same_create_finds_the_first_server_and_another_one_does_not(cloud: LocalCloud) -> None:
    order = Order()
    first = cloud.create(order.spec)
    assert cloud.create(order.spec).cloud_id == first.cloud_id
    with pytest.raises(LocalCloudError) as caught:
        cloud.create(Order(name=order.spec.name).spec.__class__(**{**order.spec.__dict__, "token": "another"}))
    assert cloud.classify(caught.value).kind is ErrorKind.EXISTS
    assert len(cloud.list_owned().resources) == 1


def test_servers_share_no_cpu_and_the_last_one_taken_is_a_lack_of_capacity(cloud: LocalCloud) -> None:
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda _: cloud.create(Order("cpu1-mem64m-80mbit").spec), CPUS))
    records = [StateDir(cloud.state_dir).read(server.name) for server in made]
    assert sorted(cpu for r in records if r is not None for cpu in r.cpus) == CPUS
    with pytest.raises(LocalCloudError) as caught:
        cloud.create(Order("cpu1-mem64m-80mbit").spec)
    meaning = cloud.classify(caught.value)
    assert meaning.kind is ErrorKind.CAPACITY and meaning.scope == "zone" and not meaning.may_exist
    cloud.delete(made[0].ref())
    again = cloud.create(Order("cpu1-mem64m-80mbit").spec)
    assert again.state == "running" and len(cloud.list_owned().resources) == len(CPUS)


def test_two_state_folders_do_not_touch_each_other(cloud: LocalCloud, tmp_path: Path) -> None:
    order = Order(name="same-name")
    mine = cloud.create(order.spec)
    with cloud_at(tmp_path / "other") as other:
        assert other.list_owned().resources == () and other.get(mine.ref()) is None
        other.delete(mine.ref())
        theirs = other.create(Order(name="same-name").spec)
        assert [r.cloud_id for r in other.list_owned().resources] == [theirs.cloud_id]
        other.delete(theirs.ref())
    with order.connect(mine) as client:
        assert run(client, "echo alive")[1] == "alive\n"


def test_a_supervisor_that_was_killed_leaves_processes_that_are_found_and_ended(cloud: LocalCloud) -> None:
    order = Order()
    server = cloud.create(order.spec)
    record = StateDir(cloud.state_dir).read(server.name)
    assert record is not None
    with order.connect(server) as client:
        assert run(client, "setsid sleep 1000 > /dev/null 2>&1 < /dev/null &")[0] == 0
        os.kill(record.init_pid, signal.SIGKILL)
        wait_until(lambda: (now := cloud.get(server.ref())) is not None and now.state == "stopping", "it is half dead")
        cloud.delete(server.ref())
    assert cloud.get(server.ref()) is None


def test_processes_without_a_record_are_listed_and_can_be_deleted(cloud: LocalCloud) -> None:
    server = cloud.create(Order().spec)
    (cloud.state_dir / "vms" / server.name / "server.json").unlink()
    (cloud.state_dir / "vms" / server.name).rename(cloud.state_dir / "vms" / ".gone-1")
    kinds = {resource.kind for resource in cloud.list_owned().resources}
    assert kinds == {"process", "leftover"}


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.02, 0.04, 0.08])
def test_kill_of_the_creator_at_any_moment_leaves_nothing_that_is_not_found(tmp_path: Path, after_s: float) -> None:
    script = textwrap.dedent(
        """
        import json, sys
        from pathlib import Path
        from tasks.clouds.base import CreateSpec
        from tasks.clouds.local import LocalCloud
        cloud = LocalCloud(Path(sys.argv[1]), "loopback")
        print("up", flush=True)
        cloud.create(CreateSpec(**json.loads(sys.argv[2])))
        print("created", flush=True)
        """
    )
    with cloud_at(tmp_path / "state") as cloud:
        spec = json.dumps(asdict(Order(name="half-made").spec))
        argv = [sys.executable, "-c", script, str(tmp_path / "state"), spec]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as creator:
            assert creator.stdout is not None and creator.stdout.readline() == b"up\n"
            time.sleep(after_s)
            creator.kill()
        for resource in cloud.list_owned().resources:
            cloud.delete(resource.ref())
        assert cloud.list_owned().resources == ()
        fresh = cloud.create(Order(name="half-made").spec)
        assert fresh.state == "running"
