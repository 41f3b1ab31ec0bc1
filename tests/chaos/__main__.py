"""`python -m tests.chaos`: the crash enumeration over every vendor, and thousands of random interleavings."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from tests.chaos.census import call_sites
from tests.chaos.enumeration import AFTERMATHS, Tally, enumerate_memory, enumerate_vendor, sites_missed
from tests.chaos.interleavings import Interleavings, run_interleavings
from tests.chaos.scenarios import AT_EVERY_VENDOR
from tests.contract.worlds import names

N_INTERLEAVINGS = 2000
BY_DEFAULT = ("plain", "a reaper's pass")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--interleavings", type=int, default=N_INTERLEAVINGS, help="random ones, 0 for none")
    parser.add_argument("--vendor", default="", choices=["", *names()], help="only this one, and there all aftermaths")
    parser.add_argument("--seed", type=int, default=1, help="of the interleavings")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    console = Console(width=150 if not sys.stdout.isatty() else None)
    tallies = _enumerate(console, options.vendor)
    ok = _judge(console, tallies, whole=not options.vendor)
    if options.interleavings:
        ok = _interleave(console, options.interleavings, options.seed) and ok
    return 0 if ok else 1


def _enumerate(console: Console, only: str) -> list[Tally]:
    """One aftermath for each run, all of them in turn, and of the vendors' scenarios the two that do most; with a
    vendor given every scenario, and after every crash every aftermath."""
    tallies: list[Tally] = []
    table = Table("vendor", "scenario", "points", "runs", "left behind", "missed", "s", title="Crash enumeration")
    for vendor in [only] if only else names():
        began = time.monotonic()
        if vendor == "memory":
            found = enumerate_memory(_take(every=bool(only)))
        else:
            scenarios = [s for s in AT_EVERY_VENDOR if only or s.name in BY_DEFAULT]
            found = enumerate_vendor(vendor, take=_take(every=bool(only)), scenarios=scenarios)
        took_s = time.monotonic() - began
        tallies += found
        for tally in found:
            left, missed = len(tally.leaks), len(tally.missed)
            table.add_row(vendor, tally.scenario, str(tally.n_points), str(tally.n_runs), str(left), str(missed), "")
        table.add_row(vendor, "[bold]all[/bold]", *_sums(found), f"{took_s:.0f}", end_section=True)
        console.print(f"[dim]{vendor}: {sum(t.n_runs for t in found)} runs in {took_s:.0f} s[/dim]")
    console.print(table)
    return tallies


def _take(*, every: bool) -> Callable[[int], bool]:
    """Runs are numbered point by point, fate by fate, and the aftermaths of one fate follow each other."""
    n = len(AFTERMATHS)
    return lambda number: every or number % n == (number // n) % n


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
    n_planned = n_runs + len(missed)
    console.print(
        f"{n_points} points ({len(kinds)} different requests and commits), each with every fate: {n_runs} crash runs; "
        f"{100 * (n_planned - len(missed)) / max(1, n_planned):.1f} % of what was planned was reached."
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


def _interleave(console: Console, n_examples: int, seed: int) -> bool:
    began, failed = time.monotonic(), ""
    try:
        run_interleavings(n_examples, seed=seed)
    except AssertionError as exc:
        failed = f"{exc}\n" + "\n".join(getattr(exc, "__notes__", []))
    table = Table("what happened", "times", title="Random interleavings")
    for what, times in Interleavings.steps.most_common():
        table.add_row(what, str(times))
    console.print(table)
    console.print(
        f"{Interleavings.n_examples} interleavings of seed {seed}, {sum(Interleavings.steps.values())} steps, "
        f"{time.monotonic() - began:.0f} s: {'nothing was left behind' if not failed else 'FAILED'}."
    )
    if failed:
        console.print(failed, markup=False)
    return not failed


if __name__ == "__main__":
    sys.exit(main())
