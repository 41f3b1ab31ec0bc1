"""`python -m tests.chaos.mutants`: plants each bug in a copy of the product, and shows that the suite catches it.

The copy is in the memory of a process of its own; the checkout is not touched. The product without a bug goes through
the same checks first.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import pickle
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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

    stride: int = 7
    n_examples: int = 250


SMALL = Budget(stride=61, n_examples=60)


def run_tests(*named: str) -> str:
    """What failed, "" when nothing did."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        where = [str(HERE / name) for name in named]
        code = pytest.main(["-q", "-x", "--noconftest", "-p", "no:cacheprovider", "-p", "no:xdist", *where])
    if code == 0:
        return ""
    failed = [line for line in out.getvalue().splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (failed or out.getvalue().splitlines()[-1:])[0].split("::")[-1][:110]


def check_scenarios(budget: Budget) -> str:
    return run_tests("test_scenarios_create.py", "test_scenarios_reaper.py")


def check_enumeration(budget: Budget) -> str:
    from tests.chaos.enumeration import enumerate_memory

    number = random.Random(1).randrange(budget.stride)
    for tally in enumerate_memory(lambda n: n % budget.stride == number):
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


def examine(mutation: Mutation | None, budget: Budget, *, only_first: bool, whole: bool) -> dict[str, str]:
    """What each check says of the mutant, in a process of its own.

    only_first: nothing but its own first test. whole: go on after the first check that catches it.
    """
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(there)
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
        with os.fdopen(here, "wb") as pipe:
            pickle.dump(found, pipe)
        os._exit(0)
    os.close(here)
    with os.fdopen(there, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    result: dict[str, str] = pickle.loads(told) if told else {"error": "the process ended without a word"}
    return result


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
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    options = parser.parse_args(arguments)
    budget = SMALL if options.small else Budget()
    console = Console(width=180 if not sys.stdout.isatty() else None)
    sound = {} if options.quick else examine(None, budget, only_first=False, whole=True)
    if any(sound.values()):
        console.print(f"[red]The product without any bug does not pass:[/red] {sound}")
        return 1
    table = Table("planted bug", "caught by", "what it said", "s")
    survivors = []
    for mutation in mutations():
        if options.only not in mutation.name:
            continue
        began = time.monotonic()
        found = examine(mutation, budget, only_first=options.quick, whole=options.whole)
        caught = {name: said for name, said in found.items() if said and name != "error"}
        if not caught:
            survivors.append(mutation.name)
        said = found.get("error") or next(iter(caught.values()), "")
        by = ", ".join(caught) or ("ERROR" if "error" in found else "NOBODY")
        table.add_row(mutation.name, by, said, f"{time.monotonic() - began:.0f}")
    console.print(table)
    n_examined = table.row_count
    console.print(
        f"{n_examined - len(survivors)} of {n_examined} planted bugs are caught; without one, all checks pass."
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
