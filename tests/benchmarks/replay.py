"""How fast does replay judge a policy? With TOKENSWEEP_TRACES on recorded runs, else on made-up ones."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from tasks.domain.policies import policy_for
from tasks.replay.headers import headers_of
from tasks.replay.recorded import RecordedRun
from tasks.replay.replaying import Setting, replay
from tasks.replay.report import report
from tasks.replay.traces import read_traces
from tasks.replay.truth import SpeedRatios
from tests.benchmarks.result import Result, Table
from tests.benchmarks.workbench import Workbench
from tests.recorded_runs import FAST, SLOW, record

POLICIES = ("classic", "dynamic")
N_MADE_UP = 200


def runs_to_replay() -> tuple[list[RecordedRun], str]:
    """The runs and where they are from."""
    folder = os.environ.get("TOKENSWEEP_TRACES")
    if folder:
        return read_traces(Path(folder)), "recorded runs"
    made = [replace(record(SLOW if i % 2 else FAST), server=f"m{i}") for i in range(N_MADE_UP)]
    return made, "made-up runs (set TOKENSWEEP_TRACES for recorded ones)"


def run(bench: Workbench) -> Result:
    began = time.perf_counter()
    runs, source = runs_to_replay()
    read_s = time.perf_counter() - began
    if bench.quick:
        runs = runs[:: max(1, len(runs) // 50)]
    ratios = SpeedRatios(runs)
    n_processes = len(os.sched_getaffinity(0))
    result = Result("replay", {"runs": len(runs), "source": source, "processes": n_processes})
    columns = ["policy", "s", "runs/s", "hours", "USD", "points lost"]
    table = Table("replay of every run under one policy", columns, [])
    for policy in POLICIES:
        began = time.perf_counter()
        scores = replay(runs, Setting(policy_for(policy, {}), headers_of()), ratios=ratios, n_processes=n_processes)
        took_s = time.perf_counter() - began
        found = report(runs, scores)
        table.rows.append(
            [
                policy,
                f"{took_s:.1f}",
                f"{len(runs) / took_s:,.0f}",
                f"{found.total.hours.value:.4f}",
                f"{found.total.usd.value:.4f}",
                f"{found.total.lost_share.value:.2%}",
            ]
        )
        result.raw[policy] = {"took_s": took_s, "hours": found.total.hours.value, "usd": found.total.usd.value}
        result.findings.append(f"{policy}: {len(runs)} runs in {took_s:.1f} s on {n_processes} processes")
    result.findings.append(f"reading the traces: {read_s:.1f} s")
    result.tables.append(table)
    return result
