"""Every point that a controller reaches, and there every fate: nothing of ours may be left afterwards.

A first run of each scenario without a fate tells its points. Then it is run once for every point and fate. Each run is
followed by what comes after a crash, the reaper, and the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count

from tests.chaos.census import Site, call_sites
from tests.chaos.direct import direct
from tests.chaos.forked import in_a_copy
from tests.chaos.scenarios import AT_EVERY_VENDOR, IN_MEMORY, Scenario
from tests.chaos.stage import ELSEWHERE, Aftermath, Stage, dead_controller, ended
from tests.chaos.trap import DEATHS, Death, How, Point, Trap, trapped_http
from tests.contract.memory_world import MemoryWorld
from tests.contract.world import VendorWorld
from tests.contract.worlds import open_world

AFTERMATHS = tuple(Aftermath)
_runs = count(1)


@dataclass
class Tally:
    """What was enumerated. missed: planned points that a run did not come to again, which proves nothing."""

    vendor: str
    scenario: str
    n_points: int = 0
    n_runs: int = 0
    kinds: set[str] = field(default_factory=set)
    sites: set[tuple[str, int]] = field(default_factory=set)
    leaks: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)


@contextmanager
def _fresh(world: VendorWorld) -> Iterator[VendorWorld]:
    """An account that serves for many runs: each must leave it as it found it. Its planted faults go with the run."""
    yield world
    emulator = getattr(world, "emulator", None)
    if emulator is not None:
        emulator.faults.clear()


def enumerate_scenario(
    vendor: str,
    scenario: Scenario,
    opened: Callable[[], AbstractContextManager[VendorWorld]],
    *,
    over_http: bool,
    aftermaths_of: Callable[[Point, How], Sequence[Aftermath]] = lambda point, how: AFTERMATHS,
    take: Callable[[int], bool] = lambda n: True,
    anew: Callable[[], AbstractContextManager[VendorWorld]] | None = None,
    fates_of: Callable[[Point], Sequence[How]] = lambda point: point.fates,
) -> Tally:
    """Run the scenario once for every point, fate and aftermath.

    take: which of all runs to do, by number. anew: opens an account that has never been used, for points that an
    account comes to only once.
    """
    tally = Tally(vendor, scenario.name)
    number = count()
    with opened() as world:
        plain = _run(world, scenario, {}, (Aftermath.SAME_HOST,), tally, over_http)
    points = list(dict.fromkeys(plain.points))
    tally.n_points, tally.kinds, tally.sites = len(points), {p.what for p in points}, set(plain.sites)
    for point in points:
        for how in fates_of(point):
            chosen = [a for a in aftermaths_of(point, how) if a in scenario.aftermaths and take(next(number))]
            for alike in _alike(chosen, how):
                for place in (opened, anew or opened):
                    with place() as world:
                        trap = _run(world, scenario, {point: how}, alike, tally, over_http)
                    tally.sites |= trap.sites
                    tally.n_runs += len(alike)
                    if point in trap.met:
                        break
                else:
                    tally.missed.append(f"{point.what} #{point.n}, {how}")
    return tally


def _alike(aftermaths: Sequence[Aftermath], how: How) -> list[tuple[Aftermath, ...]]:
    """Those before which the same has happened: to a dead controller's tag they look from its own host or not."""
    if how not in DEATHS:
        return [tuple(aftermaths)] if aftermaths else []
    here = tuple(a for a in aftermaths if a is not Aftermath.ELSEWHERE)
    there = tuple(a for a in aftermaths if a is Aftermath.ELSEWHERE)
    return [group for group in (here, there) if group]


def _run(
    world: VendorWorld,
    scenario: Scenario,
    fates: dict[Point, How],
    aftermaths: Sequence[Aftermath],
    tally: Tally,
    over_http: bool,
) -> Trap:
    """One life of the controller, and each aftermath of it: all but the last in a copy of this process."""
    stage = Stage(world, over_http=over_http)
    dies = any(how in DEATHS for how in fates.values())
    tag = "" if not dies else ELSEWHERE if Aftermath.ELSEWHERE in aftermaths else dead_controller()
    scenario.prepare(stage)
    trap = Trap(fates)
    # Waits are spread by the name of the run: in a fresh account always the same one, so that the points are the same.
    run = "run" if isinstance(world, MemoryWorld) else f"run-{next(_runs)}"
    told = ", ".join(f"{point.what} #{point.n}: {how}" for point, how in fates.items()) or "nothing happens"
    *others, last = aftermaths

    def leak(aftermath: Aftermath, problem: str) -> None:
        tally.leaks.append(f"{tally.vendor}, {scenario.name}: {told}; then {aftermath}: {problem}")

    try:
        end = ended(lambda: scenario.program(stage, run, trap, tag))
        if trap.dead and not isinstance(end, Death):
            raise AssertionError(f"its death was swallowed: it ended with {end!r}")
        for other in others:
            if problem := in_a_copy(partial(stage.come_after, other)):
                leak(other, problem)
        stage.come_after(last)
    except AssertionError as exc:
        leak(last, str(exc))
    return trap


@cache
def speaks_http(vendor: str) -> bool:
    """Whether the vendor's calls are HTTP requests of this process."""
    trap = Trap()
    with open_world(vendor) as world, trapped_http(trap):
        world.cloud.list_owned()
    return bool(trap.points)


def enumerate_memory(
    take: Callable[[int], bool] = lambda n: True, scenarios: Sequence[Scenario] = IN_MEMORY
) -> list[Tally]:
    return [
        enumerate_scenario(
            "memory", scenario, lambda s=scenario: open_world("memory", **s.options), over_http=False, take=take
        )
        for scenario in scenarios
    ]


@contextmanager
def _direct_world(vendor: str) -> Iterator[VendorWorld]:
    with open_world(vendor) as world, direct(world):
        yield world


def enumerate_vendor(
    vendor: str,
    *,
    aftermaths_of: Callable[[Point, How], Sequence[Aftermath]] = lambda point, how: AFTERMATHS,
    take: Callable[[int], bool] = lambda n: True,
    scenarios: Sequence[Scenario] = AT_EVERY_VENDOR,
    fates_of: Callable[[Point], Sequence[How]] = lambda point: point.fates,
) -> list[Tally]:
    """Over the vendor's own SDK, in one account that every run must leave as it was."""
    over_http = speaks_http(vendor)
    with _direct_world(vendor) as world:
        return [
            enumerate_scenario(
                vendor,
                scenario,
                (lambda: _fresh(world)) if over_http else (lambda: _direct_world(vendor)),
                over_http=over_http,
                aftermaths_of=aftermaths_of,
                take=take,
                anew=lambda: _direct_world(vendor),
                fates_of=fates_of,
            )
            for scenario in scenarios
        ]


def sites_missed(tallies: Sequence[Tally]) -> list[Site]:
    """Places in the shared life-cycle code that no run has come to."""
    lines = {line for tally in tallies for line in tally.sites}
    return [site for site in call_sites() if not site.reached(lines)]
