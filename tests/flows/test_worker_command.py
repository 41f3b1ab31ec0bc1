"""`tokensweep worker`: makes its pool with our job template, carries out shards, and ends them before it ends."""

from __future__ import annotations

import signal
from typing import Any

from tasks.clouds.base import Resource
from tasks.domain.lifecycle import LedgerRow, ResourceState
from tasks.settings import Settings
from tasks.wiring import open_services
from tests.e2e.product import Product, Running, command
from tests.flows.prefect_rest import Prefect, RefusedError, eventually

N_SERVERS = 4
PATIENCE_S = 240.0
"""A worker imports everything anew for each run."""
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
SLOW: dict[str, Any] = {
    "vendor": "sim",
    "servers": [f"*:{N_SERVERS}"],
    "models": ["smollm-135m", "qwen1.5-0.5b", "gemma-2b", "llama-7b"],
    "weights": "simulated",
    "pp": [16, 128, 512, 1024],
    "tg": [16, 128, 512],
    "max_usd": 20.0,
    "max_usd_per_server": 1.0,
    "deadline_s": 3600,
    "max_parallel": N_SERVERS,
    "vendor_options": {"seed": 1, "speedup": 20, "faults": 0.0},
}
"""A server run takes a minute or more at this pace, and a delete a second or two."""


def start_worker(product: Product, *options: str) -> Running:
    environment = product.env() | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    return Running([*command(), "worker", *options], environment)


def pool(prefect: Prefect, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = prefect.get(f"/work_pools/{name}")
    except RefusedError:
        return None
    return found


def test_without_a_server_it_says_what_to_set(product: Product) -> None:
    product.environment["PREFECT_API_URL"] = ""
    done = product.run("worker")
    assert done.rc == 2 and "PREFECT_API_URL" in done.err, str(done)


def test_a_missing_pool_is_made_with_our_template(prefect: Prefect, worker: Product) -> None:
    running = start_worker(worker, "--pool", "of-our-own", "--name", "first")
    made = eventually(lambda: pool(prefect, "of-our-own"), bool, PATIENCE_S)
    running.signal(signal.SIGTERM)
    done = running.end()
    assert made is not None, str(done)
    assert made["base_job_template"]["variables"]["properties"]["env"]["default"]["PREFECT_CLIENT_MAX_RETRIES"] == "8"
    assert done.rc in (0, 130), str(done)


def test_told_to_end_it_lets_its_shards_delete_their_servers(
    deployments: dict[str, dict[str, Any]], prefect: Prefect, worker: Product
) -> None:
    """SIGTERM to the worker alone, as a container gets it: nothing is left, without any pass of the reaper."""
    adhoc = deployments["sweep/adhoc"]
    request = {"preset": worker.preset("slow", **SLOW), "mode": "run", "max_usd": 20.0, "fan_out": "workers"}
    prefect.patch(f"/deployments/{adhoc['id']}", {"enforce_parameter_schema": False})
    running = start_worker(worker, "--limit", "2")
    try:
        sweep = prefect.post(f"/deployments/{adhoc['id']}/create_flow_run", {"parameters": {"request": request}})["id"]
        (shard,) = eventually(lambda: prefect.subflow_runs(sweep), bool, PATIENCE_S)
        assert eventually(lambda: living(worker), bool, PATIENCE_S)
        running.signal(signal.SIGTERM)
        done = running.end()
    finally:
        prefect.patch(f"/deployments/{adhoc['id']}", {"enforce_parameter_schema": True})
        running.kill()
    assert "delete their servers first" in done.err
    assert living(worker) == []
    assert servers_of_the_vendor(worker) == ()
    states = [prefect.flow_run(flow_run)["state_type"] for flow_run in (sweep, shard["id"])]
    assert set(states) <= set(FINAL), "Prefect knows that they have ended"


def test_the_reaper_has_a_place_while_sweeps_hold_all_others(
    deployments: dict[str, dict[str, Any]], prefect: Prefect, worker: Product
) -> None:
    """A sweep from the form on the only place waits for a shard that finds none: it says so, and the reaper passes."""
    adhoc = deployments["sweep/adhoc"]
    request = {"preset": worker.preset("held", **SLOW), "mode": "run", "max_usd": 20.0, "fan_out": "workers"}
    prefect.patch(f"/deployments/{adhoc['id']}", {"enforce_parameter_schema": False})
    running = start_worker(worker, "--limit", "1")
    try:
        sweep = prefect.post(f"/deployments/{adhoc['id']}/create_flow_run", {"parameters": {"request": request}})["id"]
        (shard,) = eventually(lambda: prefect.subflow_runs(sweep), bool, PATIENCE_S)
        reap = prefect.post(f"/deployments/{deployments['reap/cron']['id']}/create_flow_run", {})["id"]
        ended = eventually(lambda: prefect.flow_run(reap)["state_type"], lambda state: state in FINAL, PATIENCE_S)
        said = eventually(lambda: prefect.logs(sweep), lambda text: "no place free" in text, PATIENCE_S)
        waiting = prefect.flow_run(shard["id"])["state_type"]
        running.signal(signal.SIGTERM)
        done = running.end()
    finally:
        prefect.patch(f"/deployments/{adhoc['id']}", {"enforce_parameter_schema": True})
        running.kill()
    assert (ended, waiting) == ("COMPLETED", "SCHEDULED"), str(done)
    assert "Start another `tokensweep worker`" in said
    assert prefect.flow_run(shard["id"])["state_type"] == "CANCELLED", "its sweep was told to end"


def servers_of_the_vendor(product: Product) -> tuple[Resource, ...]:
    """By the vendor's own listing. A proof would take a second one, some time later."""
    return open_services(Settings(home=product.home)).cloud("sim").list_owned().resources


def living(product: Product) -> list[LedgerRow]:
    """Servers that the ledger believes to be there."""
    ledger = open_services(Settings(home=product.home)).ledger
    return [row for row in ledger.open_rows() if row.state is ResourceState.LIVE]
