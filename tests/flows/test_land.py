"""The deployment that lands what a machine's runs left in their spools: once, all of it, also without the ledger."""

from __future__ import annotations

import os
import time
from typing import Any

from tests.e2e.product import Product
from tests.flows.deploying import execute
from tests.flows.prefect_rest import Prefect

SIM: dict[str, Any] = {
    "vendor": "sim",
    "servers": ["*:4"],
    "models": ["smollm-135m", "qwen1.5-0.5b"],
    "weights": "simulated",
    "pp": [16, 128],
    "tg": [16],
    "max_usd": 20.0,
    "max_usd_per_server": 1.0,
    "deadline_s": 3600,
    "max_parallel": 4,
    "vendor_options": {"seed": 1, "speedup": 20, "faults": 0.0},
}


def landed(worker: Product) -> dict[str, str]:
    rows = worker.query("SELECT server_run_id, outcome FROM server_runs")
    assert len({row["server_run_id"] for row in rows}) == len(rows)
    return {row["server_run_id"]: row["outcome"] for row in rows}


def test_what_dead_controllers_left_is_landed_once_also_when_the_ledger_is_lost(
    deployments: dict[str, dict[str, Any]], prefect: Prefect, worker: Product
) -> None:
    running = worker.start("run", "--yes", worker.preset("four", **SIM))
    running.wait_for(": run ", n=8)
    running.kill()
    running.end()
    left = sorted(path.name.removesuffix(".plan.json") for path in (worker.home / "spool").glob("*.plan.json"))
    assert left, "the kill came in the middle"
    for path in worker.home.glob("ledger.sqlite*"):
        path.unlink()
    an_hour_ago = time.time() - 3600
    for path in (worker.home / "spool").iterdir():
        os.utime(path, (an_hour_ago, an_hour_ago))

    first = execute(worker, prefect, deployments["land/hourly"])
    assert prefect.flow_run(first)["state_type"] == "COMPLETED", prefect.logs(first)
    there = landed(worker)
    assert set(left) <= set(there) and {there[run] for run in left} <= {"interrupted", "completed"}
    assert worker.samples(), "what was measured is in the lake"
    assert list((worker.home / "spool").iterdir()) == []

    files = sorted((path, path.stat().st_mtime_ns) for path in (worker.home / "lake").rglob("*.parquet"))
    second = execute(worker, prefect, deployments["land/hourly"])
    assert prefect.flow_run(second)["state_type"] == "COMPLETED", prefect.logs(second)
    assert landed(worker) == there
    assert sorted((path, path.stat().st_mtime_ns) for path in (worker.home / "lake").rglob("*.parquet")) == files


def test_a_spool_that_cannot_be_landed_is_kept_and_told(
    deployments: dict[str, dict[str, Any]], prefect: Prefect, worker: Product
) -> None:
    spool = worker.home / "spool"
    spool.mkdir(parents=True)
    (spool / "broken.plan.json").write_text("{")
    an_hour_ago = time.time() - 3600
    os.utime(spool / "broken.plan.json", (an_hour_ago, an_hour_ago))
    run = prefect.flow_run(execute(worker, prefect, deployments["land/hourly"]))
    assert run["state_type"] == "FAILED" and "broken" in run["state"]["message"], run["state"]
    assert (spool / "broken.plan.json").is_file()
