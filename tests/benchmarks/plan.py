"""How fast is it decided what a budget measures? And, with TOKENSWEEP_TRACES, how good the decision is."""

from __future__ import annotations

import os
import random
import time

from tasks.domain.choose import TWIN_INTERVALS, select
from tasks.domain.policies import policy_for
from tasks.domain.twins import Machine
from tasks.replay.headers import headers_of
from tasks.replay.replaying import Setting, replay
from tasks.replay.twin_check import check_twins
from tests.benchmarks.replay import runs_to_replay
from tests.benchmarks.result import Result, Table
from tests.benchmarks.workbench import Workbench

N_MACHINES = 4000
N_CPU_MODELS = 150
BUDGET_SHARE = 0.13


def run(bench: Workbench) -> Result:
    result = Result("plan", {"machines": N_MACHINES})
    drawn = random.Random(1)
    machines = []
    for i in range(N_MACHINES):
        n_cpus = 2 ** drawn.randint(0, 7)
        usd = n_cpus * drawn.uniform(0.02, 0.08)
        cpu = f"cpu {drawn.randrange(N_CPU_MODELS)}"
        machines.append(Machine("v", f"m{i}", cpu, n_cpus, n_cpus, memory_bytes=n_cpus * 2**32, usd_per_hour=usd))
    began = time.perf_counter()
    found = select(machines, lambda m: m.usd_per_hour or 0.0, 500.0)
    took_s = time.perf_counter() - began
    result.raw["select_s"] = took_s
    result.findings.append(f"{N_MACHINES} server types, {len(found.measured)} chosen: {took_s * 1e3:.0f} ms")
    if os.environ.get("TOKENSWEEP_TRACES"):
        _judge(result)
    return result


def _judge(result: Result) -> None:
    """The plan on recorded runs: what it costs, how far off the predictions are, and whether intervals hold."""
    runs, _ = runs_to_replay()
    scores = replay(runs, Setting(policy_for("dynamic", {}), headers_of()))
    recorded_usd = sum(run.usd or 0.0 for run in runs if run.n_ok)
    table = Table(
        "one of each twin group first, on recorded runs",
        [
            "budget",
            "measured",
            "predicted",
            "left out",
            "error p50",
            "error p90",
            *(f"in {c:.0%}" for c in TWIN_INTERVALS),
        ],
        [],
    )
    for share in (0.08, 0.10, BUDGET_SHARE, 1.0):
        check = check_twins(runs, scores, recorded_usd * share, TWIN_INTERVALS)
        chosen = check.selection
        table.rows.append(
            [
                f"{check.usd_share:.1%}",
                str(len(chosen.measured)),
                str(len(chosen.predicted)),
                str(len(chosen.unreached)),
                f"{check.error_p50:.1%}",
                f"{check.error_p90:.1%}",
                *(f"{check.reliability[c]:.1%}" for c in TWIN_INTERVALS),
            ]
        )
    result.tables.append(table)
