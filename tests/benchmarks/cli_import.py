"""How long do commands take that only show something? Beside them, what their interpreter and libraries take alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tasks.domain.stats import median
from tests.benchmarks.result import Result, Table
from tests.benchmarks.spread import spread
from tests.benchmarks.workbench import Workbench

LEAST_TURNS = 5
COMMAND = Path(sys.executable).with_name("tokensweep")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import typer, rich": [sys.executable, "-c", "import typer, rich"],
    "tokensweep --help": [str(COMMAND), "--help"],
    "import duckdb, polars": [sys.executable, "-c", "import duckdb, polars"],
    "tokensweep query 'select 1'": [str(COMMAND), "query", "select 1"],
    "tokensweep status": [str(COMMAND), "status"],
}


def run(bench: Workbench) -> Result:
    environment = {**os.environ, "TOKENSWEEP_HOME": str(bench.folder("home"))}
    took_s: dict[str, list[float]] = {name: [] for name in COMMANDS}
    began, n_turns = time.monotonic(), 0
    while n_turns < LEAST_TURNS or (time.monotonic() - began) * (n_turns + 1) / n_turns < bench.seconds:
        for name, argv in COMMANDS.items():
            start = time.monotonic()
            done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{name} ended with rc {done.returncode}: {done.stderr[-500:]}")
            took_s[name].append(time.monotonic() - start)
        n_turns += 1
    result = Result("cli_import", {"turns": n_turns}, raw=dict(took_s))
    rows = [[name, spread(values).seconds()] for name, values in took_s.items()]
    result.tables.append(Table("seconds, an empty lake", ["command", "median"], rows))
    for ours, theirs in (
        ("tokensweep --help", "import typer, rich"),
        ("tokensweep query 'select 1'", "import duckdb, polars"),
    ):
        beyond_s = median(took_s[ours]) - median(took_s[theirs])
        result.findings.append(f"{ours}: {median(took_s[ours]):.2f} s, {beyond_s:.2f} s more than `{theirs}` alone")
    return result
