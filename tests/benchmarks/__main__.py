"""python -m tests.benchmarks [name ...]: run benchmarks and print tables. They compare; they never fail for a time."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.benchmarks import this_machine
from tests.benchmarks.result import DOCS, Result, save, show, write_docs

BENCHMARKS: dict[str, tuple[float, str]] = {
    "speed": (160.0, "llama-bench by hand against the agent's cells"),
    "pipeline": (160.0, "makespan against its lower bound, and what the guard costs"),
    "guard": (160.0, "how much a running download changes pp and tg"),
    "first_bench": (60.0, "from SSH ready to the first llama-bench"),
    "conductor": (10.0, "decisions per second"),
    "answers": (300.0, "every view and question over 50,000 and 5,000,000 cells, beside SQLite"),
    "replay": (60.0, "recorded runs through the conductor, per policy"),
    "import_": (60.0, "published results of 3,700 servers into the lake"),
    "plan": (60.0, "a plan of 4,000 server types from the shell and back, and which of them a budget measures"),
    "cli_import": (30.0, "how long the commands take to start"),
}
"""Seconds that each may take, about, and what it shows."""

QUICK = 0.2


def _parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:12} {what}" for name, (_, what) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", epilog=known, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help="which; all if none is named")
    parser.add_argument("--quick", action="store_true", help="the smallest model for a moment; the figures say little")
    parser.add_argument("--seconds", type=float, help="how long each benchmark may take, instead of its own time")
    parser.add_argument("--runtime", type=Path, help="a llama.cpp runtime whose archive lies beside it as NAME.tar.gz")
    parser.add_argument("--write-docs", action="store_true", help=f"put the results into {DOCS.name}; runs nothing")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if args.write_docs:
        console.print(f"{DOCS}: {', '.join(write_docs()) or 'no result in .bench/ yet'}", highlight=False)
        return 0
    unknown = sorted(set(args.names) - set(BENCHMARKS))
    if unknown:
        sys.stderr.write(f"There is no benchmark {', '.join(unknown)}. Known: {', '.join(BENCHMARKS)}.\n")
        return 2
    scratch = Path(tempfile.mkdtemp(prefix="tokensweep-bench-"))
    try:
        for number, name in enumerate(args.names or BENCHMARKS):
            seconds = args.seconds or BENCHMARKS[name][0] * (QUICK if args.quick else 1.0)
            bench = _workbench(args.runtime, scratch, seconds, quick=args.quick)
            result = _measure(name, bench, first=number == 0)
            show(result, console)
            console.print(f"raw figures in {save(result)}", highlight=False)
    finally:
        os.sched_setaffinity(0, this_machine.cpus())
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def _workbench(runtime: Path | None, scratch: Path, seconds: float, *, quick: bool) -> Any:
    from tasks.engine import ensure_engine
    from tasks.settings import Settings
    from tests.benchmarks.other_runtime import engine_of
    from tests.benchmarks.workbench import Workbench

    cache_dir = Settings().cache_dir
    engine = ensure_engine(cache_dir) if runtime is None else engine_of(runtime, scratch)
    return Workbench(engine, cache_dir, scratch, seconds, quick)


def _measure(name: str, bench: Any, *, first: bool) -> Result:
    watch, began = this_machine.Watch(), time.monotonic()
    result: Result = importlib.import_module(f"tests.benchmarks.{name}").run(bench)
    result.machine = watch.facts()
    result.warnings += this_machine.warnings(result.machine, first=first)
    result.began = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    result.took_s = time.monotonic() - began
    return result


if __name__ == "__main__":
    sys.exit(main())
