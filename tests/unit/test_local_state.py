"""Records, locks and CPU allocation of local servers; no server is started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tasks.clouds.base import ErrorKind
from tasks.clouds.local import LocalCloud, LocalCloudError
from tasks.clouds.local.admission import allocate
from tasks.clouds.local.cgroups import NoCgroupsError, find
from tasks.clouds.local.processes import env_mark, vm_mark
from tasks.clouds.local.processes import find as find_processes
from tasks.clouds.local.server_types import GIB, Machine, parse
from tasks.clouds.local.state import Record, StateDir
from tasks.domain.errors import AmbiguousError, CleanupError, ConfigError, UnsupportedError
from tests.local_servers import Order, wait_until

FOUR_CPUS = Machine(cpus=(0, 2, 3, 5), memory_bytes=8 * GIB, arch="x86_64")


def record(name: str, cpus: tuple[int, ...] = (0,), server_type: str = "cpu1-mem1g-80mbit") -> Record:
    return Record(
        id=f"id-{name}",
        name=name,
        token="t",
        server_type=server_type,
        isolation="loopback",
        cpus=cpus,
        created_unix_s=1.0,
        deadline_unix_s=2.0,
        tags={"a": "b"},
    )


def test_allocation_gives_the_lowest_cpus_that_nobody_holds() -> None:
    assert allocate(parse("cpu2-mem1g-80mbit"), FOUR_CPUS, []) == (0, 2)
    assert allocate(parse("cpu2-mem1g-80mbit"), FOUR_CPUS, [record("a", (0,)), record("b", (3,))]) == (2, 5)


def test_no_free_cpu_is_a_lack_of_capacity_that_names_the_holders() -> None:
    live = [record("a", (0, 2)), record("b", (3,))]
    with pytest.raises(LocalCloudError, match="1 are free beside a, b") as caught:
        allocate(parse("cpu2-mem1g-80mbit"), FOUR_CPUS, live)
    assert caught.value.kind is ErrorKind.CAPACITY and not caught.value.may_exist


def test_memory_is_not_promised_twice() -> None:
    with pytest.raises(LocalCloudError, match="2048 MiB") as caught:
        allocate(parse("cpu1-mem3g-80mbit"), FOUR_CPUS, [record("a", server_type="cpu1-mem6g-80mbit")])
    assert caught.value.kind is ErrorKind.CAPACITY


def test_a_record_is_there_with_its_directory_and_survives_a_round_trip(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    with state.lock(), state.add(record("a", (1, 2))):
        assert state.is_busy("a")
    assert not state.is_busy("a")
    assert state.read("a") == record("a", (1, 2)) and state.names() == ["a"]
    assert state.leftovers() == []


def test_names_that_are_paths_are_no_servers(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    with state.lock(), state.add(record("a")):
        pass
    for name in ("", ".", "..", "../a", "/", "a/..", ".new-x"):
        assert state.read(name) is None
        with state.lock_server(name) as exists:
            assert not exists


def test_a_kill_at_any_instant_leaves_a_readable_record_or_a_leftover(tmp_path: Path) -> None:
    """The child adds, updates and buries one server over and over, and dies by SIGKILL in the middle of it."""
    root = tmp_path / "state"
    script = textwrap.dedent(
        """
        import sys
        from dataclasses import replace
        from pathlib import Path
        from tasks.clouds.local.state import Record, StateDir
        state, record = StateDir(Path(sys.argv[1])), Record.from_json(sys.argv[2])
        print("up", flush=True)
        while True:
            with state.lock(), state.add(record):
                pass
            (state.directory("a") / "disk/file").write_text("x")
            for address in ("10.0.0.1", "10.0.0.2"):
                with state.lock_server("a"):
                    state.update(replace(record, address=address))
            with state.lock_server("a"):
                state.mark_deleting("a")
                state.bury("a")
        """
    )
    text = json.dumps(record("a").__dict__)
    for attempt in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(root), text], stdout=subprocess.PIPE, cwd=Path.cwd()
        )
        assert child.stdout is not None and child.stdout.readline() == b"up\n"
        time.sleep(0.003 * attempt)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        state = StateDir(root)
        for name in state.names():
            assert state.read(name) is not None
        cloud = LocalCloud(root, "loopback")
        for resource in cloud.list_owned().resources:
            cloud.delete(resource.ref())
        assert cloud.list_owned().resources == () and list((root / "vms").glob("*")) == []


def test_a_leftover_is_listed_only_when_nobody_is_making_it(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    (state.vms / ".gone-1" / "disk").mkdir(parents=True)
    cloud = LocalCloud(tmp_path / "state", "loopback")
    (left,) = cloud.list_owned().resources
    assert left.kind == "leftover" and cloud.get(left.ref()) == left
    with state.lock_server("a") as exists:
        assert not exists
    cloud.delete(left.ref())
    assert cloud.list_owned().resources == () and cloud.get(left.ref()) is None
    cloud.delete(left.ref())


def test_directories_without_permissions_are_removed_too(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    locked = state.vms / ".gone-1" / "disk" / "locked"
    (locked / "below").mkdir(parents=True)
    (locked / "below" / "file").write_text("x")
    (locked / "below").chmod(0)
    locked.chmod(0)
    state.remove_leftover(".gone-1")
    assert list(state.vms.iterdir()) == []


def test_only_leftovers_can_be_removed_as_such(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    with state.lock(), state.add(record("a")):
        pass
    for entry in ("a", "../..", ".gone-1/../a"):
        with pytest.raises(CleanupError):
            state.remove_leftover(entry)
    assert state.names() == ["a"]


def test_the_lock_of_a_server_is_exclusive_and_ends_with_its_directory(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    with state.lock(), state.add(record("a")):
        pass
    answers: list[bool] = []

    def wait_for_it() -> None:
        with StateDir(tmp_path / "state").lock_server("a") as exists:
            answers.append(exists)

    with state.lock_server("a") as exists:
        assert exists
        waiter = threading.Thread(target=wait_for_it)
        waiter.start()
        time.sleep(0.05)
        assert answers == []
        state.bury("a")
    waiter.join(10)
    assert answers == [False]


def test_a_damaged_record_is_a_problem_that_can_still_be_deleted(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    with state.lock(), state.add(record("a")):
        pass
    (state.directory("a") / "server.json").write_text('{"id": "x", "cpus": 3')
    cloud = LocalCloud(tmp_path / "state", "loopback")
    listing = cloud.list_owned()
    assert "server.json" in listing.problems[0] and [r.kind for r in listing.resources] == ["directory"]
    with pytest.raises(AmbiguousError, match="reap"):
        cloud.get(listing.resources[0].ref())
    cloud.delete(listing.resources[0].ref())
    assert cloud.list_owned().resources == () and state.names() == []


def test_a_record_of_a_later_version_is_read(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    with state.lock(), state.add(record("a")):
        pass
    path = state.directory("a") / "server.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_the_future": 1}))
    assert state.read("a") == record("a")


def test_a_server_that_never_started_is_terminated_and_its_directory_is_listed_apart(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    with state.lock(), state.add(record("a")):
        pass
    cloud = LocalCloud(tmp_path / "state", "loopback")
    resources = cloud.list_owned().resources
    assert [(r.kind, r.state, r.usd_per_hour) for r in resources] == [
        ("server", "terminated", 0),
        ("directory", "stopped", 0),
    ]
    assert resources[1].tags == {"a": "b"}
    cloud.delete(resources[1].ref())
    assert cloud.list_owned().resources == ()


def test_another_id_is_another_server(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    with state.lock(), state.add(record("a")):
        pass
    cloud = LocalCloud(tmp_path / "state", "loopback")
    server, directory = (r.ref() for r in cloud.list_owned().resources)
    cloud.delete(server)
    with state.lock(), state.add(Record(**{**record("a").__dict__, "id": "id-second"})):
        pass
    for ref in (server, directory):
        assert cloud.get(ref) is None
        cloud.delete(ref)
    assert state.names() == ["a"]


def test_marks_tell_state_folders_and_servers_apart_and_fit_a_signed_limit() -> None:
    marks = {vm_mark(tag, name) for tag in ("00000000", "ffffffff", "12345678") for name in ("a", "b", "tokensweep-1")}
    assert len(marks) == 9 and all(1 << 61 <= mark < 1 << 62 for mark in marks)


def test_a_process_is_found_by_its_environment_and_with_it_its_children() -> None:
    tag = f"{os.getpid():08x}"
    code = "import subprocess, sys; subprocess.run(['env', '-i', 'setsid', 'sh', '-c', 'sleep 60 & wait'])"
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TOKENSWEEP_VM": env_mark(tag, "a")})
    try:
        wait_until(lambda: "sleep" in {p.command for p in find_processes(tag, "a")}, "sleep is found")
        found = find_processes(tag, "a")
        assert child.pid in {p.pid for p in found} and {p.mark for p in found} == {vm_mark(tag, "a")}
        assert find_processes(tag, "b") == []
        assert find_processes(f"{os.getpid() + 1:08x}") == []
    finally:
        cloud_tag_processes = find_processes(tag)
        for process in cloud_tag_processes:
            os.kill(process.pid, signal.SIGKILL)
        child.wait()


def test_cgroups_of_both_versions_are_found_in_the_table_of_mounts() -> None:
    version_1 = "\n".join(f"cgroup /cg/{c} cgroup rw,{c} 0 0" for c in ("memory", "cpuset", "pids", "cpu"))
    assert find(version_1).version == 1
    assert find(version_1).folder("pids", "t") == Path("/cg/pids/tokensweep-t")
    version_2 = find("proc /proc proc rw 0 0\ncgroup2 /cg cgroup2 rw 0 0")
    assert version_2.version == 2 and version_2.folders("t") == [Path("/cg/tokensweep-t")]
    assert version_2.views("t", "a") == {"/sys/fs/cgroup": "/cg/tokensweep-t/a"}
    with pytest.raises(NoCgroupsError, match="no cgroups"):
        find("proc /proc proc rw 0 0")
    with pytest.raises(NoCgroupsError, match="cpuset, pids"):
        find("cgroup /cg/memory cgroup rw,memory 0 0\ncgroup2 /cg/unified cgroup2 rw 0 0")


def test_what_is_wrong_is_said_before_anything_is_made(tmp_path: Path) -> None:
    cloud = LocalCloud(tmp_path / "state", "loopback")
    with pytest.raises(ConfigError):
        cloud.create(Order("m5.large").spec)
    with pytest.raises(UnsupportedError) as too_large:
        cloud.create(Order("cpu4096-mem1g-80mbit").spec)
    with pytest.raises(UnsupportedError) as needs_microvm:
        cloud.create(Order("cpu1-mem256m-80mbit-disk64m").spec)
    with pytest.raises(ConfigError, match="name of a local server"):
        cloud.create(Order(name="../../etc").spec)
    with pytest.raises(ConfigError, match="deadline"):
        cloud.create(Order(ttl_s=-1).spec)
    for caught in (too_large, needs_microvm):
        meaning = cloud.classify(caught.value)
        assert meaning.kind is ErrorKind.UNSUPPORTED and not meaning.may_exist
    assert not (tmp_path / "state").exists()


def test_what_is_not_known_may_exist() -> None:
    cloud = LocalCloud(Path("/nonexistent/state"), "loopback")
    assert cloud.classify(OSError("disk full")).may_exist
    assert cloud.classify(CleanupError("stays")).kind is ErrorKind.DELETE_BLOCKED
    assert cloud.list_owned().resources == () and cloud.list_owned().complete
