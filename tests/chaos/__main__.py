"""`python -m tests.chaos`: the crash enumeration over every vendor, and thousands of random interleavings."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from tests.chaos.census import call_sites
from tests.chaos.enumeration import AFTERMATHS, Tally, enumerate_memory, enumerate_vendor, sites_missed
from tests.chaos.interleavings import Interleavings, run_interleavings
from tests.chaos.scenarios import AT_EVERY_VENDOR, IN_MEMORY, Scenario
from tests.chaos.stage import Aftermath
from tests.chaos.trap import DEATHS, How, Point
from tests.contract.worlds import names

N_INTERLEAVINGS = 2000
IN_ONE_GO = 250
BY_DEFAULT = ("plain", "a reaper's pass")
NEEDED_VARIABLES = {"HOME", "LANG", "PATH", "TMPDIR"}
SLOWEST_FIRST = ("aws", "azure", "gcp", "memory")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--interleavings", type=int, default=N_INTERLEAVINGS, help="random ones, 0 for none")
    parser.add_argument(
        "--vendor", default="", choices=["", *names()], help="only this one, and there every scenario, fate, aftermath"
    )
    parser.add_argument("--scenario", default="", help="only the one of this name; for a vendor in several sittings")
    parser.add_argument("--seed", type=int, default=1, help="of the first 250 interleavings; the next have the next")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="at once")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    console = Console(width=150 if not sys.stdout.isatty() else None)
    began = time.monotonic()
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(options.processes, mp_context=fork, max_tasks_per_child=None) as pool:
        crashes = [pool.submit(_enumerate, *job) for job in _crash_jobs(options.vendor, options.scenario)]
        walks = [pool.submit(_interleave, n, seed) for n, seed in _walks(options.interleavings, options.seed)]
        tallies = _gather(console, crashes)
        ok = _judge(console, tallies, whole=not options.vendor and not options.scenario)
        if walks:
            ok = _judge_walks(console, [walk.result() for walk in walks], options.seed) and ok
    used = os.times()
    cpu_s = used.user + used.system + used.children_user + used.children_system
    console.print(
        f"{time.monotonic() - began:.0f} s in {options.processes} processes, {cpu_s:.0f} s of processor time."
    )
    return 0 if ok else 1


def _crash_jobs(only: str, named: str = "") -> Iterator[tuple[str, str, bool]]:
    """One aftermath for each run, all of them in turn, and of the vendors' scenarios the two that do most; with a
    vendor given every scenario, every fate, and after every crash every aftermath."""
    by_cost = sorted(names(), key=lambda name: (*SLOWEST_FIRST, name).index(name))
    for vendor in [only] if only else by_cost:
        for scenario in _scenarios(vendor):
            wanted = scenario.name == named if named else bool(only) or vendor == "memory"
            if wanted or (not named and scenario.name in BY_DEFAULT):
                yield vendor, scenario.name, bool(only)


def _scenarios(vendor: str) -> Sequence[Scenario]:
    return IN_MEMORY if vendor == "memory" else AT_EVERY_VENDOR


def _enumerate(vendor: str, scenario: str, every: bool) -> tuple[Tally, float]:
    began = time.monotonic()
    for name in os.environ.keys() - NEEDED_VARIABLES:
        del os.environ[name]  # `requests` reads all of them twice for each request, in search of proxies
    chosen = [one for one in _scenarios(vendor) if one.name == scenario]
    if vendor == "memory":
        (tally,) = enumerate_memory(_take(every=every), chosen)
    else:
        (tally,) = enumerate_vendor(
            vendor,
            take=_take(every=every),
            scenarios=chosen,
            fates_of=(lambda point: point.fates_with_deaths) if every else (lambda point: point.distinct_fates),
            aftermaths_of=_aftermaths,
        )
    return tally, time.monotonic() - began


def _aftermaths(point: Point, how: How) -> Sequence[Aftermath]:
    """All; after a death at a question, which leaves nothing new, one of them in turn."""
    return (AFTERMATHS[point.n % len(AFTERMATHS)],) if point.only_asks and how in DEATHS else AFTERMATHS


def _take(*, every: bool) -> Callable[[int], bool]:
    """Runs are numbered point by point, fate by fate, and the aftermaths of one fate follow each other."""
    n = len(AFTERMATHS)
    return lambda number: every or number % n == (number // n) % n


def _gather(console: Console, crashes: Sequence[Future[tuple[Tally, float]]]) -> list[Tally]:
    for done in as_completed(crashes):
        tally, took_s = done.result()
        told = f"{len(tally.leaks)} left behind, {len(tally.missed)} missed"
        console.print(f"[dim]{tally.vendor}, {tally.scenario}: {tally.n_runs} runs in {took_s:.0f} s, {told}[/dim]")
    table = Table("vendor", "scenario", "points", "runs", "left behind", "missed", title="Crash enumeration")
    tallies = [crash.result()[0] for crash in crashes]
    for vendor in names():
        found = [tally for tally in tallies if tally.vendor == vendor]
        for tally in found:
            left, missed = len(tally.leaks), len(tally.missed)
            table.add_row(vendor, tally.scenario, str(tally.n_points), str(tally.n_runs), str(left), str(missed))
        if found:
            table.add_row(vendor, "[bold]all[/bold]", *_sums(found), end_section=True)
    console.print(table)
    return tallies


def _sums(tallies: Sequence[Tally]) -> tuple[str, str, str, str]:
    return (
        str(sum(tally.n_points for tally in tallies)),
        str(sum(tally.n_runs for tally in tallies)),
        str(sum(len(tally.leaks) for tally in tallies)),
        str(sum(len(tally.missed) for tally in tallies)),
    )


def _judge(console: Console, tallies: Sequence[Tally], *, whole: bool) -> bool:
    leaks = [leak for tally in tallies for leak in tally.leaks]
    missed = [f"{t.vendor}, {t.scenario}: {m}" for t in tallies for m in t.missed]
    sites, never = call_sites(), sites_missed(tallies)
    n_points, n_runs = sum(t.n_points for t in tallies), sum(t.n_runs for t in tallies)
    kinds = {(tally.vendor, kind) for tally in tallies for kind in tally.kinds}
    n_asking = sum(Point(kind, 0).only_asks for _, kind in kinds)
    n_planned = n_runs + len(missed)
    console.print(
        f"{n_points} points ({len(kinds)} different requests and commits, {n_asking} of which only ask): {n_runs} "
        f"crash runs; {100 * (n_planned - len(missed)) / max(1, n_planned):.1f} % of what was planned was reached."
    )
    console.print(
        f"Call sites in the shared life-cycle code: {len(sites)}; killed at: {len(sites) - len(never)} "
        f"({100 * (len(sites) - len(never)) / len(sites):.0f} %)."
    )
    for problem in [*leaks, *missed][:20]:
        console.print(f"[red]{problem}[/red]", markup=True)
    if whole:
        for site in never:
            console.print(f"[red]never reached: {site}[/red]")
    return not leaks and not missed and not (whole and never)


@dataclass
class Walk:
    """Some interleavings of one seed, what happened in them, and the first that failed."""

    n_examples: int
    steps: Counter[str] = field(default_factory=Counter)
    failed: str = ""


def _walks(n_examples: int, seed: int) -> Iterator[tuple[int, int]]:
    for number, first in enumerate(range(0, n_examples, IN_ONE_GO)):
        yield min(IN_ONE_GO, n_examples - first), seed + number


def _interleave(n_examples: int, seed: int) -> Walk:
    Interleavings.n_examples, Interleavings.steps = 0, Counter()
    failed = ""
    try:
        run_interleavings(n_examples, seed=seed)
    except Exception as exc:
        failed = f"seed {seed}: {type(exc).__name__}: {exc}\n" + "\n".join(getattr(exc, "__notes__", []))
    return Walk(Interleavings.n_examples, Interleavings.steps, failed)


def _judge_walks(console: Console, walks: Sequence[Walk], seed: int) -> bool:
    steps, failed = sum((walk.steps for walk in walks), Counter[str]()), [walk.failed for walk in walks if walk.failed]
    table = Table("what happened", "times", title="Random interleavings")
    for what, times in steps.most_common():
        table.add_row(what, str(times))
    console.print(table)
    console.print(
        f"{sum(walk.n_examples for walk in walks)} interleavings of the seeds {seed} to {seed + len(walks) - 1}, "
        f"{sum(steps.values())} steps: {'nothing was left behind' if not failed else 'FAILED'}."
    )
    for problem in failed:
        console.print(problem, markup=False)
    return not failed


if __name__ == "__main__":
    sys.exit(main())
