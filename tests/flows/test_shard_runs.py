"""A sweep's shards when an answer of Prefect's API is lost, it is cancelled between their starts, or the API goes
away: none is made twice, none is forgotten. Real server, real sweep; nobody carries the shards out."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.states import Pending
from prefect.states import Running as RunningState

from flows.shards import _Dead
from tasks.settings import Settings
from tasks.wiring import open_services
from tests.e2e.product import CHECKOUT, Product, Running
from tests.flows.lossy_api import LossyApi
from tests.flows.prefect_rest import Prefect, eventually

N_SERVERS, IN_A_SHARD, N_SHARDS = 6, 2, 3
PATIENCE_S = 180.0
SIM: dict[str, Any] = {
    "vendor": "sim",
    "servers": [f"*:{N_SERVERS}"],
    "models": ["smollm-135m"],
    "weights": "simulated",
    "pp": [16],
    "tg": [16],
    "max_usd": 20.0,
    "max_usd_per_server": 1.0,
    "deadline_s": 3600,
}
SWEEP = """
import asyncio, sys
from flows.request import SweepRequest
from flows.sweep import sweep
request = SweepRequest(preset=sys.argv[1], mode="run", max_usd=20.0, fan_out="workers")
result = asyncio.run(sweep(request))
print(result.status, len(result.servers), result.servers[0].reason)
"""
CLAIM = """
import sys
from tasks.wiring import open_services
open_services().ledger.claim_sweep(sys.argv[1])
"""
"""What a shard does before its first server. Here its process ends without a word then."""


@pytest.fixture
def product(tmp_path: Path, prefect_url: str) -> Product:
    """Simulated servers need no runtime."""
    return Product(tmp_path / "home", tmp_path / "cache", {"PREFECT_API_URL": prefect_url})


@pytest.fixture
def shard_worker(deployments: dict[str, dict[str, Any]]) -> str:
    """The deployment, whose runs stay scheduled: no worker has been started."""
    return str(deployments["shard/worker"]["id"])


@pytest.fixture
def through(prefect_url: str, product: Product) -> Iterator[Callable[..., LossyApi]]:
    """Lead the product to the API by a way with faults."""
    made: list[LossyApi] = []

    def lead(**faults: tuple[int, ...]) -> LossyApi:
        made.append(LossyApi(int(prefect_url.split(":")[2].split("/")[0]), **faults))
        product.environment["PREFECT_API_URL"] = made[0].url
        return made[0]

    yield lead
    for api in made:
        api.close()


def start(product: Product, name: str) -> Running:
    path = product.home.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(SIM))
    changes = {
        "PREFECT_CLIENT_MAX_RETRIES": "0",  # Prefect's own client does not try again, so that ours has to
        "PREFECT_LOGGING_LEVEL": "INFO",
        "TOKENSWEEP_SHARD_SERVERS": str(IN_A_SHARD),
    }
    return Running([sys.executable, "-c", SWEEP, str(path)], product.env() | changes)


def shards(prefect: Prefect, deployment_id: str, name: str) -> dict[str, str]:
    """State of each shard of that preset, by its number."""
    found = prefect.post("/flow_runs/filter", {"deployments": {"id": {"any_": [deployment_id]}}})
    own = [run for run in found if run["parameters"]["request"]["sweep_id"].startswith(f"{name}-")]
    assert len({run["idempotency_key"] for run in own}) == len(own)
    numbers = [run["parameters"]["request"]["number"] for run in own]
    assert len(set(numbers)) == len(numbers), f"a shard was made twice: {numbers}"
    return {str(number): run["state_type"] for number, run in zip(numbers, own, strict=True)}


def test_a_create_whose_answer_is_lost_makes_one_shard(
    product: Product, prefect: Prefect, shard_worker: str, through: Callable[..., LossyApi]
) -> None:
    api = through(lose=(1, 3))
    running = start(product, "lost")
    running.wait_for(f"{N_SERVERS} servers in {N_SHARDS} shards")
    assert api.n_creates >= N_SHARDS + 2
    assert shards(prefect, shard_worker, "lost") == {"1": "SCHEDULED", "2": "SCHEDULED", "3": "SCHEDULED"}
    running.signal(signal.SIGINT)
    running.end()
    assert set(shards(prefect, shard_worker, "lost").values()) == {"CANCELLED"}


def test_a_sweep_cancelled_while_its_shards_are_started_forgets_none(
    product: Product, prefect: Prefect, shard_worker: str, through: Callable[..., LossyApi]
) -> None:
    api = through(stall=(2,))
    running = start(product, "stalled")
    eventually(lambda: api.n_answered, bool, PATIENCE_S)
    assert set(shards(prefect, shard_worker, "stalled").values()) == {"SCHEDULED"}
    running.signal(signal.SIGTERM)
    running.end()
    assert shards(prefect, shard_worker, "stalled") == {"1": "CANCELLED", "2": "CANCELLED"}


def test_a_sweep_waits_for_an_api_that_is_away(
    product: Product, prefect: Prefect, shard_worker: str, through: Callable[..., LossyApi]
) -> None:
    api = through()
    running = start(product, "away")
    running.wait_for(f"{N_SERVERS} servers in {N_SHARDS} shards")
    api.away()
    eventually(lambda: api.n_refused, lambda n: n > 2, PATIENCE_S)
    running.wait_for("Prefect's API is away, the shards go on")
    found = prefect.post("/flow_runs/filter", {"deployments": {"id": {"any_": [shard_worker]}}})
    for run in found:
        if run["state_type"] == "SCHEDULED":
            prefect.post(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CRASHED"}, "force": True})
    api.back()
    done = running.end()
    assert done.rc == 0 and done.out.split() == ["some_failed", str(N_SERVERS), "shard_died"], str(done)


def test_what_no_worker_takes_up_is_told_with_its_reason(
    product: Product, prefect: Prefect, shard_worker: str, through: Callable[..., LossyApi]
) -> None:
    """A sweep that only waits looks like one that is at work."""
    running = start(product, "waiting")
    running.wait_for("no worker of the work pool tokensweep is online")
    running.signal(signal.SIGINT)
    running.end()
    prefect.patch("/work_pools/tokensweep", {"is_paused": True})
    try:
        running = start(product, "paused")
        running.wait_for("prefect work-pool resume tokensweep")
        running.signal(signal.SIGINT)
        running.end()
    finally:
        prefect.patch("/work_pools/tokensweep", {"is_paused": False})
    for name in ("waiting", "paused"):
        assert set(shards(prefect, shard_worker, name).values()) == {"CANCELLED"}


def test_a_shard_that_dies_before_its_first_server_does_not_hold_up_its_sweep(
    product: Product, prefect: Prefect, shard_worker: str
) -> None:
    """A killed worker tells nobody. One shard is dead, one was cancelled by itself, one comes to its end."""
    running = start(product, "died")
    running.wait_for(f"{N_SERVERS} servers in {N_SHARDS} shards")
    found = prefect.post("/flow_runs/filter", {"deployments": {"id": {"any_": [shard_worker]}}})
    own = {run["parameters"]["request"]["number"]: run["id"] for run in found if run["state_type"] == "SCHEDULED"}
    dead = subprocess.run([sys.executable, "-c", CLAIM, own[1]], env=product.env(), cwd=CHECKOUT, check=False)
    assert dead.returncode == 0
    for number, state in ((1, "RUNNING"), (2, "CANCELLED"), (3, "COMPLETED")):
        prefect.post(f"/flow_runs/{own[number]}/set_state", {"state": {"type": state}, "force": True})
    done = running.end()
    assert done.rc == 0 and done.out.split()[:2] == ["some_failed", str(N_SERVERS)], str(done)
    assert done.out.split()[2] == "shard_died", str(done)
    assert shards(prefect, shard_worker, "died") == {"1": "CRASHED", "2": "CANCELLED", "3": "COMPLETED"}


@pytest.mark.parametrize(("claimed", "lives"), [(True, True), (False, False)])
def test_a_shard_that_nobody_can_see_is_dead_when_it_has_been_silent_for_long(
    tmp_path: Path, claimed: bool, lives: bool
) -> None:
    services = open_services(Settings(home=tmp_path))
    run = FlowRun(id=uuid4(), flow_id=uuid4(), state=Pending())
    if claimed:
        services.ledger.claim_sweep(str(run.id))
    dead = _Dead(services, silent_s=0.2)
    assert dead({1: run}) == []
    time.sleep(0.3)
    assert dead({1: run}) == ([] if lives else [1])
    assert dead({1: run.model_copy(update={"state": RunningState()})}) == [], "something has changed"
