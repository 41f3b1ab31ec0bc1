"""`python -m tests.chaos.mutants`: plants each bug in a copy of the product, and shows that the suite catches it.

The copy is in the memory of a process of its own; the checkout is not touched. The product without a bug goes through
the same checks first.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Self

import hypothesis  # heavy, and the product is not: imported once for all children
import pytest
import sqlalchemy
import urllib3
from rich.console import Console
from rich.table import Table

from tests.chaos.mutations import Mutation, mutations, plant

_HEAVY = (hypothesis, sqlalchemy, urllib3)
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Budget:
    """stride: every how many crash runs; n_examples: of random interleavings."""

    stride: int = 23
    n_examples: int = 150


SMALL = Budget(stride=61, n_examples=60)


def run_tests(*named: str) -> str:
    """What failed, "" when nothing did. Tests that are not there, or cannot be collected, find nothing: an error."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        where = [str(HERE / name) for name in named]
        code = pytest.main(["-q", "-x", "--noconftest", "-p", "no:cacheprovider", "-p", "no:xdist", *where])
    if code == pytest.ExitCode.OK:
        return ""
    if code != pytest.ExitCode.TESTS_FAILED:
        raise RuntimeError(f"pytest {', '.join(named)}: {pytest.ExitCode(code).name}")
    failed = [line for line in out.getvalue().splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (failed or out.getvalue().splitlines()[-1:])[0].split("::")[-1][:110]


def check_scenarios(budget: Budget) -> str:
    return run_tests("test_scenarios_create.py", "test_scenarios_reaper.py")


def check_enumeration(budget: Budget) -> str:
    from tests.chaos.enumeration import enumerate_memory
    from tests.chaos.scenarios import IN_MEMORY

    number = random.Random(1).randrange(budget.stride)
    for scenario in IN_MEMORY:
        (tally,) = enumerate_memory(lambda n: n % budget.stride == number, [scenario])
        if tally.leaks:
            return tally.leaks[0][:110]
    return ""


def check_interleavings(budget: Budget) -> str:
    from tests.chaos.interleavings import run_interleavings

    try:
        run_interleavings(budget.n_examples, seed=1, shrink=False)
    except BaseException as exc:
        return f"{type(exc).__name__}: {exc}"[:110]
    return ""


CHECKS: dict[str, Callable[[Budget], str]] = {
    "crash enumeration": check_enumeration,
    "interleavings": check_interleavings,
    "scenarios": check_scenarios,
}


@dataclass(frozen=True)
class Examined:
    """One mutant in a process of its own, and where that tells what each check said of it."""

    name: str
    process: multiprocessing.process.BaseProcess
    told: Connection
    began: float

    @classmethod
    def start(cls, mutation: Mutation | None, budget: Budget, *, only_first: bool, whole: bool) -> Self:
        """only_first: nothing but its own first test. whole: go on after the first check that catches it."""
        fork = multiprocessing.get_context("fork")  # what is heavy to import has been imported here
        there, here = fork.Pipe(duplex=False)
        process = fork.Process(target=_examine, args=(mutation, budget, only_first, whole, here))
        process.start()
        here.close()
        return cls(mutation.name if mutation else "", process, there, time.monotonic())

    def result(self) -> dict[str, str]:
        try:
            found: dict[str, str] = self.told.recv()
        except EOFError:
            found = {"error": "the process ended without a word"}
        self.process.join()
        return found


def _examine(mutation: Mutation | None, budget: Budget, only_first: bool, whole: bool, told: Connection) -> None:
    found: dict[str, str] = {}
    try:
        logging.disable(logging.CRITICAL)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if mutation is not None:
            plant(mutation)
        found = _checked(mutation, budget, only_first, whole)
    except BaseException as exc:
        found["error"] = f"{type(exc).__name__}: {exc}"
    told.send(found)


def examine_all(
    listed: Sequence[Mutation], budget: Budget, n_processes: int, *, only_first: bool, whole: bool
) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, findings and seconds of each, as they end."""
    waiting, running = list(listed), list[Examined]()
    while waiting or running:
        while waiting and len(running) < n_processes:
            running.append(Examined.start(waiting.pop(0), budget, only_first=only_first, whole=whole))
        wait([one.told for one in running])
        for one in [one for one in running if one.told.poll()]:
            running.remove(one)
            yield one.name, one.result(), time.monotonic() - one.began


def _checked(mutation: Mutation | None, budget: Budget, only_first: bool, whole: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    if mutation is not None and not whole:
        found["first test"] = run_tests(mutation.first_test)
        if only_first or found["first test"]:
            return found
    for name, check in CHECKS.items():
        found[name] = check(budget)
        if found[name] and not whole:
            break
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mutants", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the first test of each, about a second per mutant")
    parser.add_argument("--small", action="store_true", help="small budgets of crash runs and interleavings")
    parser.add_argument("--whole", action="store_true", help="every check on every mutant, not only up to the first")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="mutants at once")
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    options = parser.parse_args(arguments)
    budget = SMALL if options.small else Budget()
    console = Console(width=180 if not sys.stdout.isatty() else None)
    began = time.monotonic()
    if not options.quick:
        sound = Examined.start(None, budget, only_first=False, whole=True).result()
        if any(sound.values()):
            console.print(f"[red]The product without any bug does not pass:[/red] {sound}")
            return 1
        console.print(f"[dim]without a bug all checks pass, in {time.monotonic() - began:.0f} s[/dim]")
    chosen = [mutation for mutation in mutations() if options.only in mutation.name]
    rows: dict[str, tuple[str, ...]] = {}
    survivors = []
    for name, found, took_s in examine_all(
        chosen, budget, options.processes, only_first=options.quick, whole=options.whole
    ):
        caught = {check: said for check, said in found.items() if said and check != "error"}
        if not caught:
            survivors.append(name)
        said = found.get("error") or next(iter(caught.values()), "")
        by = ", ".join(caught) or ("ERROR" if "error" in found else "NOBODY")
        rows[name] = (name, by, said, f"{took_s:.0f}")
        console.print(f"[dim]{len(rows)}/{len(chosen)} {name}: {by}[/dim]", markup=True)
    table = Table("planted bug", "caught by", "what it said", "s")
    for mutation in chosen:
        table.add_row(*rows[mutation.name])
    console.print(table)
    console.print(
        f"{len(chosen) - len(survivors)} of {len(chosen)} planted bugs are caught"
        f"{'.' if options.quick else '; without one, all checks pass.'} "
        f"{time.monotonic() - began:.0f} s in {options.processes} processes."
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
