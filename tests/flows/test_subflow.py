"""A subflow started by `Subflows` is for Prefect what a called one is, with fewer calls to its API. Real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.product import CHECKOUT, Product
from tests.flows.prefect_rest import Prefect, eventually

SCRIPT = """
import asyncio, json, logging
from prefect import flow, tags
from prefect.runtime import flow_run
from pydantic import BaseModel
from flows.subflow import Subflows

class Order(BaseModel):
    number: int
    fails: bool = False

calls = []
class Calls(logging.Handler):
    def emit(self, record):
        calls.append(str(record.args[0]) + " " + str(record.args[1]))
logging.getLogger("httpx").setLevel(logging.INFO)
logging.getLogger("httpx").addHandler(Calls())

@flow(flow_run_name="child/{order.number}")
async def child(order: Order) -> int:
    if order.fails:
        raise ValueError("as ordered")
    return order.number * 10

@flow
async def parent():
    found = {"parent": str(flow_run.id)}
    with tags("a", "b"):
        found["called"] = await child(Order(number=1))
        subflows = Subflows(child)
        found["first"] = await subflows.run("child/2", order=Order(number=2))
        n = len(calls)
        found["together"] = list(await asyncio.gather(
            subflows.run("child/3", order=Order(number=3)), subflows.run("child/4", order=Order(number=4))
        ))
        found["calls_of_two"] = calls[n:]
        try:
            await subflows.run("child/5", order=Order(number=5, fails=True))
        except ValueError as exc:
            found["raised"] = str(exc)
    return found

print(json.dumps(asyncio.run(parent())))
"""
COMPARED = ("flow_id", "flow_version", "tags", "state_type", "run_count", "deployment_id", "empirical_policy")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, prefect_url: str) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("subflows")
    script = folder / "parent.py"
    script.write_text(SCRIPT)
    environment = Product(folder, folder, {"PREFECT_API_URL": prefect_url, "PYTHONPATH": str(CHECKOUT)}).env()
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_it_returns_and_raises_what_the_flow_does(outcome: dict[str, Any]) -> None:
    assert (outcome["called"], outcome["first"], outcome["together"]) == (10, 20, [30, 40])
    assert outcome["raised"] == "as ordered"


def test_prefect_has_of_it_what_it_has_of_a_called_one(outcome: dict[str, Any], prefect: Prefect) -> None:
    runs = {run["name"]: run for run in prefect.subflow_runs(outcome["parent"])}
    assert sorted(runs) == [f"child/{n}" for n in (1, 2, 3, 4, 5)]
    called = runs["child/1"]
    for number in (2, 3, 4):
        run = runs[f"child/{number}"]
        assert {k: run[k] for k in COMPARED} == {k: called[k] for k in COMPARED}
        assert run["parameters"] == {"order": {"number": number, "fails": False}}
        assert run["start_time"] and run["end_time"]
    assert (runs["child/5"]["state_type"], runs["child/5"]["tags"]) == ("FAILED", ["a", "b"])


def test_a_task_run_of_its_own_stands_for_it_in_its_parent(outcome: dict[str, Any], prefect: Prefect) -> None:
    runs = prefect.subflow_runs(outcome["parent"])

    def standing() -> dict[str, str]:
        return {run["id"]: run["state_type"] for run in prefect.task_runs(outcome["parent"]).values()}

    states = eventually(standing, lambda found: set(found.values()) == {"COMPLETED", "FAILED"} and len(found) == 5)
    assert {run["parent_task_run_id"]: run["state_type"] for run in runs} == states


def test_it_takes_four_calls_from_its_start_to_its_end(outcome: dict[str, Any]) -> None:
    """Of a run that is called it takes eight."""
    assert len(outcome["calls_of_two"]) == 8, outcome["calls_of_two"]
