"""A subflow started by `Subflows` is for Prefect what a called one is, with fewer calls to its API. Real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.product import CHECKOUT, Product
from tests.flows.lossy_api import LossyApi
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
BEGINNING = """
import asyncio, json, sys
from prefect import flow
from prefect.client.orchestration import PrefectClient
from prefect.runtime import flow_run
from flows.subflow import Subflows

made = asyncio.Event()
request = PrefectClient.request

async def slow_to_answer(self, method, path, **more):
    answer = await request(self, method, path, **more)
    if (method, path) == ("POST", "/flow_runs/") and flow_run.id:
        made.set()
        await asyncio.sleep(1.0)
    return answer

@flow(flow_run_name="child")
async def child() -> int:
    return 7

@flow
async def parent():
    found = {"parent": str(flow_run.id)}
    if sys.argv[1] == "cancel":
        PrefectClient.request = slow_to_answer
    starting = asyncio.create_task(Subflows(child).run("child"))
    if sys.argv[1] == "cancel":
        await made.wait()
        starting.cancel()
    try:
        found["returned"] = await starting
    except asyncio.CancelledError:
        found["returned"] = "cancelled"
    return found

print(json.dumps(asyncio.run(parent())))
"""
MANY = """
import asyncio, json
from prefect import flow
from prefect.runtime import flow_run
from flows.subflow import Subflows

running = 0

@flow
async def child():
    global running
    running += 1
    await asyncio.sleep(3600)

@flow
async def parent():
    subflows = Subflows(child)
    children = [asyncio.create_task(subflows.run(f"child/{n}")) for n in range(40)]
    while running < len(children):
        await asyncio.sleep(0.1)
    for _ in range(3):
        for one in children:
            one.cancel()
        await asyncio.sleep(0.2)
    await asyncio.gather(*children, return_exceptions=True)
    return {"parent": str(flow_run.id)}

print(json.dumps(asyncio.run(parent())))
"""
COMPARED = ("flow_id", "flow_version", "tags", "state_type", "run_count", "deployment_id", "empirical_policy")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, prefect_url: str) -> dict[str, Any]:
    return carried_out(tmp_path_factory.mktemp("subflows"), prefect_url, SCRIPT)


def carried_out(folder: Path, api_url: str, text: str, *argv: str) -> dict[str, Any]:
    """What the flow of that script has found."""
    script = folder / "parent.py"
    script.write_text(text)
    environment = Product(folder, folder, {"PREFECT_API_URL": api_url, "PYTHONPATH": str(CHECKOUT)}).env()
    done = subprocess.run([sys.executable, script, *argv], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_it_returns_and_raises_what_the_flow_does(outcome: dict[str, Any]) -> None:
    assert (outcome["called"], outcome["first"], outcome["together"]) == (10, 20, [30, 40])
    assert outcome["raised"] == "as ordered"


def test_prefect_has_of_it_what_it_has_of_a_called_one(outcome: dict[str, Any], prefect: Prefect) -> None:
    found = prefect.subflow_runs(outcome["parent"])
    runs = {run["name"]: {**run, "tags": sorted(run["tags"])} for run in found}  # a set, in any order
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


def test_it_takes_three_calls_from_its_start_to_its_end(outcome: dict[str, Any]) -> None:
    """Of a run that is called it takes eight."""
    calls = [call for call in outcome["calls_of_two"] if not call.endswith("/logs/")]  # sent by the clock, by a thread
    assert len(calls) == 6, calls


def test_an_answer_that_is_lost_makes_no_second_run(tmp_path: Path, prefect_url: str, prefect: Prefect) -> None:
    """Prefect's client asks again. A run that was made, and of which nobody knows, would be running for ever."""
    api = LossyApi(int(prefect_url.split(":")[2].split("/")[0]), lose=(2,), create=b"POST /api/flow_runs/ ")
    try:
        found = carried_out(tmp_path, api.url, BEGINNING, "lost")
    finally:
        api.close()
    assert found["returned"] == 7 and api.n_creates == 3
    assert [run["state_type"] for run in prefect.subflow_runs(found["parent"])] == ["COMPLETED"]


def test_one_that_is_cancelled_as_it_begins_does_not_run_for_ever(
    tmp_path: Path, prefect_url: str, prefect: Prefect
) -> None:
    found = carried_out(tmp_path, prefect_url, BEGINNING, "cancel")
    assert found["returned"] == "cancelled"
    assert [run["state_type"] for run in prefect.subflow_runs(found["parent"])] == ["CANCELLED"]


def test_none_that_is_cancelled_again_and_again_is_shown_as_running_for_ever(
    tmp_path: Path, prefect_url: str, prefect: Prefect
) -> None:
    """As those of a sweep are that is told to end, and whose process then ends."""
    found = carried_out(tmp_path, prefect_url, MANY)
    assert {run["state_type"] for run in prefect.subflow_runs(found["parent"])} == {"CRASHED"}
