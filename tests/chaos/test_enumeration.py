"""A share of the crash enumeration, a different point of each scenario; `python -m tests.chaos` runs all of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.chaos.census import MODULES, call_sites
from tests.chaos.enumeration import (
    AFTERMATHS,
    Tally,
    _fresh,
    enumerate_memory,
    enumerate_scenario,
    enumerate_vendor,
    sites_missed,
    speaks_http,
)
from tests.chaos.forked import in_a_copy
from tests.chaos.scenarios import AT_EVERY_VENDOR, IN_MEMORY
from tests.chaos.stage import Aftermath, Stage, dead_controller, ended
from tests.chaos.trap import COMMIT_FATES, DEATHS, How, Point, Trap
from tests.contract.worlds import names, open_world

pytestmark = pytest.mark.timeout(900)
STRIDE = 29
VENDOR_STRIDE = 499


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def tallies() -> list[Tally]:
    return enumerate_memory(lambda n: n % STRIDE == 0)


def test_nothing_is_left_after_a_crash_anywhere(tallies: list[Tally]) -> None:
    assert [leak for tally in tallies for leak in tally.leaks] == []
    assert [missed for tally in tallies for missed in tally.missed] == []
    assert len(tallies) == len(IN_MEMORY) and sum(tally.n_runs for tally in tallies) > 200


def test_every_place_where_the_life_cycle_touches_a_cloud_or_the_ledger_is_killed_at(tallies: list[Tally]) -> None:
    sites = call_sites()
    assert {site.module for site in sites} == set(MODULES) - {"leaks.py"}, "leaks only reads"
    assert len(sites) >= 25
    assert [str(site) for site in sites_missed(tallies)] == []


def test_every_point_gets_every_fate_and_every_aftermath() -> None:
    """The count of runs is that of all points by all that can happen there, without exception."""
    scenario = IN_MEMORY[0]
    planned = []

    def count(number: int) -> bool:
        planned.append(number)
        return False

    tally = enumerate_scenario(
        "memory", scenario, lambda: open_world("memory", **scenario.options), over_http=False, take=count
    )
    with open_world("memory", **scenario.options) as world:
        trap = Trap()
        scenario.program(Stage(world), "run", trap, "")
    points = set(trap.points)
    assert len(points) == tally.n_points == len(trap.points)
    n_fates = sum(len(COMMIT_FATES) if point.is_commit else len(How) for point in points)
    assert len(planned) == n_fates * len(AFTERMATHS)
    assert {
        "create",
        "get",
        "delete",
        "list_owned",
        "commit intend",
        "commit creating",
        "commit live",
        "commit gone",
    } <= {point.what for point in points}


@pytest.mark.parametrize("vendor", [name for name in names() if name != "memory"])
def test_nothing_is_left_after_a_crash_at_any_vendor(vendor: str) -> None:
    """Over the vendor's own SDK: every HTTP request is a point."""
    number = names().index(vendor)
    found = enumerate_vendor(vendor, scenarios=AT_EVERY_VENDOR[:1], take=lambda n: n % VENDOR_STRIDE == number)
    assert [leak for tally in found for leak in tally.leaks] == []
    assert [missed for tally in found for missed in tally.missed] == []
    (plain,) = found
    assert plain.n_runs >= 1
    if speaks_http(vendor):
        assert any(kind.split()[0] in ("GET", "POST", "PUT", "DELETE") for kind in plain.kinds)
    else:
        assert "create" in plain.kinds


def test_two_things_may_go_wrong_after_each_other() -> None:
    """An answer is lost, and in the middle of finding out what it was, the controller dies."""
    with open_world("memory") as world:
        stage, lost = Stage(world), Trap({Point("create", 0): How.LOST})
        ended(lambda: stage.server_run("run", lost))
    later = lost.points[lost.points.index(Point("create", 0)) + 1 :]
    assert len(later) > 5
    for point in later:
        for how in DEATHS:
            with open_world("memory") as world, _fresh(world):
                stage, trap = Stage(world), Trap({Point("create", 0): How.LOST, point: how})
                ended(lambda stage=stage, trap=trap: stage.server_run("run", trap))  # type: ignore[misc]
                assert trap.dead, point
                stage.settle()


def test_what_is_tried_in_a_copy_changes_nothing_here_and_tells_what_it_found() -> None:
    with open_world("memory") as world:
        stage = Stage(world)
        dead = Trap({Point("create", 0): How.DIES_AFTER})
        ended(lambda: stage.server_run("run", dead, dead_controller()))
        before = stage.existing()
        assert before, "its create took effect"
        assert in_a_copy(lambda: stage.come_after(Aftermath.LOST_LEDGER)) == ""
        assert stage.existing() == before
        assert "left behind at" in in_a_copy(lambda: stage.check(stage.reap(dry_run=True)))
    assert "ZeroDivisionError" in in_a_copy(lambda: 1 / 0)
