"""A controller that dies at any point, and a reaper that comes at any point."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.clouds.base import DEADLINE_TAG
from tasks.domain.lifecycle import ResourceState
from tasks.domain.reaping import Liveness
from tasks.ledger import Ledger, liveness
from tasks.reaper import leaks, reap
from tests.lifecycle_world import World, make_spec, server_request
from tests.memory_cloud import LOST, Fault, Folder, MemoryCloud
from tests.mortal import HookedLedger, run_server

pytestmark = pytest.mark.timeout(600)
FORK = multiprocessing.get_context("fork")


class Death(BaseException):
    """Stands for kill -9 inside one process: from then on every call of the dead process fails."""


class DiesAt:
    def __init__(self, n_points: int) -> None:
        self.n_left = n_points
        self.points: list[str] = []

    def __call__(self, point: str) -> None:
        self.points.append(point)
        self.n_left -= 1
        if self.n_left < 0:
            raise Death


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a folder: hundreds of ledgers need no disk to survive the death of a process."""
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def dead_controller() -> str:
    """The tag of a process that has really been killed."""
    there, here = FORK.Pipe()

    def wait() -> None:
        from tasks.ledger import this_process

        here.send(this_process().tag())
        time.sleep(60)

    process = FORK.Process(target=wait)
    process.start()
    tag: str = there.recv()
    assert liveness(tag) is Liveness.ALIVE
    process.kill()
    deadline_s = time.monotonic() + 10
    while liveness(tag) is not Liveness.DEAD and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert liveness(tag) is Liveness.DEAD, "a zombie is dead"
    process.join()
    assert liveness(tag) is Liveness.DEAD
    return tag


def hooked(w: World, controller: str) -> HookedLedger:
    ledger = HookedLedger(str(w.ledger.url), now=w.clock.now)
    ledger.controller_tag = controller
    return ledger


def points_of_a_run(folder: Path, options: dict[str, Any], faults: list[Fault]) -> list[str]:
    w = World(folder, options=options)
    w.cloud.plant("create", *faults)
    at_point = DiesAt(10**6)
    run(w, hooked(w, ""), at_point)
    return at_point.points


def run(w: World, ledger: HookedLedger, at_point: Callable[[str], None]) -> None:
    request = server_request("run", w.clock.now())
    run_server(w.cloud, ledger, make_spec, request, now=w.clock.now, sleep=w.clock.sleep, at_point=at_point)


@pytest.mark.parametrize(
    ("options", "faults"),
    [
        ({"boot_s": 3}, []),
        ({"unique_names": True}, [Fault(LOST, acts=True)]),
        ({"lag_s": 30, "stock": {"north-1a": 0}}, []),
    ],
    ids=["plain", "lost_response", "lag_and_fallback"],
)
def test_death_at_every_point_leaves_nothing(
    tmp_path: Path, dead_controller: str, options: dict[str, Any], faults: list[Fault]
) -> None:
    points = points_of_a_run(tmp_path / "whole", options, faults)
    assert {"create before", "create after", "delete after", "commit before", "commit after"} <= set(points)
    for n, point in enumerate(points):
        w = World(tmp_path / str(n), options=options)
        w.cloud.plant("create", *faults)
        with pytest.raises(Death):
            run(w, hooked(w, dead_controller), DiesAt(n))
        w.reap(prove_s=200)
        assert w.cloud.existing() == [], f"left after death at point {n}, {point}"
        assert w.leaks().clean, f"not proven after death at point {n}, {point}"
        w.settle()


def test_a_reaper_at_every_point_of_a_run_does_not_disturb_it(tmp_path: Path) -> None:
    points = points_of_a_run(tmp_path / "whole", {"boot_s": 3}, [])
    n_marked = points.index("delete before") - 1  # from this commit on it is the reaper's too
    for n in range(n_marked):
        w = World(tmp_path / str(n), options={"boot_s": 3})
        ledger = hooked(w, "")
        n_left = n

        def come(_point: str, w: World = w, ledger: HookedLedger = ledger) -> None:
            nonlocal n_left
            n_left -= 1
            if n_left == -1:
                deletes = w.cloud.calls["delete"]
                w.reap(prove_s=0)
                assert w.cloud.calls["delete"] == deletes

        run(w, ledger, come)
        (row,) = w.ledger.rows()
        assert row.state in (ResourceState.DELETING, ResourceState.GONE)
        w.settle()


def test_a_run_at_every_point_of_a_reaper_is_not_disturbed(tmp_path: Path) -> None:
    def prepared(folder: Path) -> tuple[World, HookedLedger]:
        w = World(folder)
        w.create("old", deadline_unix_s=w.clock.now() + 60)
        w.clock.sleep(600)
        return w, hooked(w, "")

    w, ledger = prepared(tmp_path / "whole")
    at_point = DiesAt(10**6)
    w.cloud.on_call = ledger.on_write = at_point
    reap([w.cloud], ledger, w.clock.now, w.clock.sleep)
    assert len(at_point.points) > 10
    for n in range(len(at_point.points)):
        w, ledger = prepared(tmp_path / str(n))
        n_left = n

        def create(_point: str, w: World = w, ledger: HookedLedger = ledger) -> None:
            nonlocal n_left
            n_left -= 1
            if n_left == -1:
                w.cloud.on_call = ledger.on_write = lambda point: None
                w.create("new")

        w.cloud.on_call = ledger.on_write = create
        reap([w.cloud], ledger, w.clock.now, w.clock.sleep)
        (server,) = w.cloud.existing("server")
        row = w.ledger.row_of("memory", server.id)
        assert row is not None
        assert (row.server_run_id, row.state) == ("new", ResourceState.LIVE)
        w.settle()


def test_two_reapers_at_every_point(tmp_path: Path, dead_controller: str) -> None:
    def prepared(folder: Path) -> tuple[World, HookedLedger]:
        w = World(folder, options={"lag_s": 5, "delete_s": 2})
        w.create("one")
        w.cloud.add("unknown", {**w.cloud.existing("server")[0].tags, "tokensweep-intent": "lost"})
        w.pass_deadlines()
        return w, hooked(w, "")

    def whole(w: World, ledger: HookedLedger, at_point: Callable[[str], None]) -> None:
        w.cloud.on_call = at_point
        ledger.on_write = at_point
        reap([w.cloud], ledger, w.clock.now, w.clock.sleep)

    w, ledger = prepared(tmp_path / "whole")
    at_point = DiesAt(10**6)
    whole(w, ledger, at_point)
    assert len(at_point.points) > 10
    for n in range(len(at_point.points)):
        w, ledger = prepared(tmp_path / str(n))
        n_left = n

        def second(_point: str, w: World = w) -> None:
            nonlocal n_left
            n_left -= 1
            if n_left == -1:
                w.cloud.on_call = lambda point: None
                w.reap()

        whole(w, ledger, second)
        w.settle()


def nap(seconds: float) -> None:
    time.sleep(min(seconds, 0.01))


def _run_until_killed(folder: Path, n_points: int, faults: list[Fault], started: Any) -> None:
    cloud = MemoryCloud(time.time, things=Folder(folder / "cloud"))
    cloud.plant("create", *faults)
    n_left = n_points

    def die(_point: str) -> None:
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    ledger = HookedLedger(f"sqlite:///{folder}/ledger.sqlite")
    request = server_request("run", time.time())
    started.set()
    run_server(cloud, ledger, make_spec, request, now=time.time, sleep=nap, at_point=die)


@pytest.mark.parametrize("faults", [[], [Fault(LOST, acts=True)]], ids=["plain", "lost_response"])
def test_kill_9_at_every_point_of_a_real_process(tmp_path: Path, faults: list[Fault]) -> None:
    n_points = 0
    while True:
        folder = tmp_path / str(n_points)
        cloud = MemoryCloud(time.time, things=Folder(folder / "cloud"))
        foreign = cloud.add("not-ours", {DEADLINE_TAG: "1"})
        ledger = Ledger(f"sqlite:///{folder}/ledger.sqlite")
        reap([cloud], ledger, time.time, nap, prove_s=0)
        started = FORK.Event()
        process = FORK.Process(target=_run_until_killed, args=(folder, n_points, faults, started))
        process.start()
        process.join(60)
        assert started.is_set()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        rows = ledger.rows()
        if cloud.existing("server"):
            assert [row.state for row in rows] != [], "a server exists whose intent was not committed"
        reap([cloud], ledger, time.time, nap, prove_s=5)
        assert cloud.existing() == [], f"left after kill -9 at point {n_points}, though its deadline is an hour away"
        assert leaks([cloud], ledger, time.time).clean
        assert foreign.id in cloud.things
        n_points += 1
    assert n_points >= 14
