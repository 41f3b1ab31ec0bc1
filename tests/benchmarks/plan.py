"""How long does a plan of thousands of server types take, from the shell and back?

And, with TOKENSWEEP_TRACES, how good the choice for a budget is.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from tasks.domain.choose import TWIN_INTERVALS, select
from tasks.domain.policies import policy_for
from tasks.domain.twins import Machine
from tasks.lake.server_types import write_reading
from tasks.replay.headers import headers_of
from tasks.replay.replaying import Setting, replay
from tasks.replay.twin_check import check_twins
from tests.benchmarks.replay import runs_to_replay
from tests.benchmarks.result import Result, Table
from tests.benchmarks.workbench import Workbench

N_MACHINES = 4000
N_CPU_MODELS = 150
BUDGET_SHARE = 0.13
VENDORS = ("aws", "azure", "gcp", "hetzner", "upcloud")
TIMES = 5
COMMANDS = (
    ("--help",),
    ("plan", "wide.yaml", "--offline"),
    ("plan", "wide.yaml", "--offline", "--json"),
    ("plan", "wide.yaml", "--offline", "--all"),
    ("plan", "wide.yaml", "--offline", "--max-usd", "500"),
)
PRESET = """
servers: [{servers}]
models: [smollm-135m, qwen1.5-0.5b]
weights: real
pp: [16, 128]
tg: [16]
max_usd: 500
max_usd_per_server: 1
deadline_s: 3600
"""


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
    result.tables.append(_whole_commands(bench.scratch, result))
    if os.environ.get("TOKENSWEEP_TRACES"):
        _judge(result)
    return result


def _whole_commands(home: Path, result: Result) -> Table:
    """The commands as they are typed: imports, reading, pricing, the choice of twins, tables. The first of each fills
    Python's cache of compiled modules and is not counted."""
    for vendor in VENDORS:
        write_reading(home / "lake", vendor, _types(vendor), datetime.now(UTC))
    servers = ", ".join(f'"{vendor}/*"' for vendor in VENDORS)
    (home / "wide.yaml").write_text(PRESET.format(servers=servers))
    table = Table(f"whole commands over {N_MACHINES} priced server types", ["command", "s", "CPU s"], [])
    for command in COMMANDS:
        took = [_timed(home, command) for _ in range(TIMES + 1)][1:]
        wall_s, cpu_s = min(wall for wall, _ in took), min(cpu for _, cpu in took)
        result.raw[" ".join(command)] = {"wall_s": wall_s, "cpu_s": cpu_s}
        table.rows.append([" ".join(command), f"{wall_s:.2f}", f"{cpu_s:.2f}"])
    return table


def _timed(home: Path, command: tuple[str, ...]) -> tuple[float, float]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"TOKENSWEEP_HOME": str(home), "PYTHONPYCACHEPREFIX": str(home / "pyc"), "PYTHONPATH": os.getcwd()}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "flows.cli", *command], cwd=home, env=environment, check=True, capture_output=True
    )
    took_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _types(vendor: str) -> list[dict[str, Any]]:
    drawn, now = random.Random(vendor), datetime.now(UTC)
    rows = []
    for i in range(N_MACHINES // len(VENDORS)):
        vcpus = 2 ** drawn.randint(0, 7)
        rows.append(
            {
                "vendor": vendor,
                "name": f"m{i}",
                "place": "a-place",
                "vcpus": vcpus,
                "memory_bytes": vcpus * 2**32,
                "disk_bytes": 0,
                "arch": drawn.choice(("x86_64", "aarch64")),
                "gpus": 0,
                "gpu_model": "",
                "gpu_memory_bytes": 0,
                "cpu_model": f"cpu {drawn.randrange(N_CPU_MODELS)}",
                "link_bytes_per_s": 0.0,
                "price_per_hour": (Decimal(vcpus) * Decimal(str(drawn.uniform(0.02, 0.08)))).quantize(Decimal("1e-6")),
                "spot_price_per_hour": None,
                "currency": "USD",
                "price_source": "made up",
                "price_read_at": now,
            }
        )
    return rows


def _judge(result: Result) -> None:
    """The plan on recorded runs: what it costs, how far off the predictions are, and whether intervals hold."""
    runs, _ = runs_to_replay()
    scores = replay(runs, Setting(policy_for("dynamic", {}), headers_of()))
    recorded_usd = sum(run.usd or 0.0 for run in runs if run.n_ok)
    table = Table(
        "twins first, on recorded runs",
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
    for share in (0.08, 0.10, BUDGET_SHARE):
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
