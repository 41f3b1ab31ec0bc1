"""A sweep carried out by real workers: shards of simulated servers, a worker that is killed, and a cancelled sweep."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from tests.e2e.product import CHECKOUT, Product
from tests.flows.installation import kill_tree
from tests.flows.prefect_rest import Prefect, eventually

N_SERVERS = 6
PATIENCE_S = 240.0
"""A worker imports everything anew for each run."""
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
SIM: dict[str, Any] = {
    "vendor": "sim",
    "servers": [f"*:{N_SERVERS}"],
    "models": ["smollm-135m", "qwen1.5-0.5b"],
    "weights": "simulated",
    "pp": [16, 128],
    "tg": [16],
    "max_usd": 20.0,
    "max_usd_per_server": 1.0,
    "deadline_s": 3600,
    "max_parallel": N_SERVERS,
    "vendor_options": {"seed": 1, "speedup": 300, "faults": 0.0},
}


@pytest.fixture
def adhoc(deployments: dict[str, dict[str, Any]], prefect: Prefect) -> Iterator[dict[str, Any]]:
    """Without the list of the form: the presets of these tests are not in its folder."""
    found = deployments["sweep/adhoc"]
    prefect.patch(f"/deployments/{found['id']}", {"enforce_parameter_schema": False})
    yield found
    prefect.patch(f"/deployments/{found['id']}", {"enforce_parameter_schema": True})


@contextmanager
def worker_process(product: Product) -> Iterator[subprocess.Popen[bytes]]:
    """A process worker of the pool."""
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", "tokensweep", "--type", "process"],
        env=product.env() | {"PREFECT_WORKER_QUERY_SECONDS": "1"},
        cwd=CHECKOUT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        kill_tree(process)


def start(prefect: Prefect, deployment: dict[str, Any], request: dict[str, Any]) -> str:
    created = prefect.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"request": request}})
    return str(created["id"])


def preset(product: Product, name: str, **changes: Any) -> str:
    return product.preset(name, **{**SIM, **changes})


def test_a_sweep_is_carried_out_by_a_worker(adhoc: dict[str, Any], prefect: Prefect, worker: Product) -> None:
    request = {"preset": preset(worker, "sharded"), "mode": "run", "max_usd": 20.0, "fan_out": "workers"}
    with worker_process(worker):
        flow_run_id = start(prefect, adhoc, request)
        eventually(lambda: prefect.flow_run(flow_run_id)["state_type"], lambda state: state in FINAL, PATIENCE_S)
    assert prefect.flow_run(flow_run_id)["state_type"] == "COMPLETED", prefect.logs(flow_run_id)
    (shard,) = prefect.subflow_runs(flow_run_id)
    assert shard["name"].startswith("shard/sharded-") and shard["state_type"] == "COMPLETED"
    assert len(prefect.subflow_runs(shard["id"])) == N_SERVERS
    assert len({server for server, *_ in worker.cells()}) == N_SERVERS
    assert "Nothing is left" in prefect.artifacts(flow_run_id)["leaks"]["data"]


def test_a_killed_worker_loses_no_outcome_and_no_server(
    adhoc: dict[str, Any], prefect: Prefect, worker: Product
) -> None:
    """SIGKILL to the worker and its shard: the sweep is started again, and everything has an outcome."""
    path = preset(worker, "killed", vendor_options={"seed": 1, "speedup": 20, "faults": 0.0})
    request = {"preset": path, "mode": "run", "max_usd": 20.0, "fan_out": "workers"}
    with worker_process(worker) as process:
        sweep = start(prefect, adhoc, request)
        (shard,) = eventually(lambda: prefect.subflow_runs(sweep), bool, PATIENCE_S)
        eventually(lambda: prefect.subflow_runs(shard["id"]), lambda runs: len(runs) == N_SERVERS, PATIENCE_S)
        kill_tree(process)
    assert worker.run("reap").rc in (0, 6)
    done = worker.run("run", "--yes", path)
    assert done.rc == 0, str(done)
    assert len({server for server, *_ in worker.cells()}) == N_SERVERS
    assert worker.run("leaks").rc == 0


def test_what_a_worker_that_is_killed_alone_leaves_deletes_its_servers_and_ends(
    adhoc: dict[str, Any], prefect: Prefect, worker: Product
) -> None:
    """Nobody can cancel it any more, and nobody reads what it writes: it ends by itself, in good order."""
    path = preset(worker, "orphaned", vendor_options={"seed": 1, "speedup": 5, "faults": 0.0})
    request = {"preset": path, "mode": "run", "max_usd": 20.0, "fan_out": "workers"}
    with worker_process(worker) as process:
        sweep = start(prefect, adhoc, request)
        (shard,) = eventually(lambda: prefect.subflow_runs(sweep), bool, PATIENCE_S)
        eventually(lambda: prefect.subflow_runs(shard["id"]), lambda runs: len(runs) == N_SERVERS, PATIENCE_S)
        left = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        assert len(left) >= 2, "the sweep and its shard"
        assert psutil.wait_procs(left, timeout=PATIENCE_S)[1] == []
    assert {run["state_type"] for run in prefect.subflow_runs(shard["id"])} <= set(FINAL)
    assert worker.run("leaks").rc == 0, "without a pass of the reaper"


def test_cancelling_the_sweep_cancels_its_shards(adhoc: dict[str, Any], prefect: Prefect, worker: Product) -> None:
    path = preset(worker, "cancelled", vendor_options={"seed": 1, "speedup": 5, "faults": 0.0})
    request = {"preset": path, "mode": "run", "max_usd": 20.0, "fan_out": "workers"}
    with worker_process(worker):
        sweep = start(prefect, adhoc, request)
        (shard,) = eventually(lambda: prefect.subflow_runs(sweep), bool, PATIENCE_S)
        eventually(lambda: prefect.subflow_runs(shard["id"]), lambda runs: len(runs) == N_SERVERS, PATIENCE_S)
        prefect.post(f"/flow_runs/{sweep}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        ended = eventually(
            lambda: (prefect.flow_run(sweep)["state_type"], prefect.flow_run(shard["id"])["state_type"]),
            lambda states: set(states) <= set(FINAL),
            PATIENCE_S,
        )
    assert ended == ("CANCELLED", "CANCELLED")
    worker.run("reap")
    assert worker.run("leaks").rc == 0
