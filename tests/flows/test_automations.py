"""Automations on a real Prefect server: they are made once, and a crash starts the reaper."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

import pytest

from tests.e2e.product import CHECKOUT, Product
from tests.flows.prefect_rest import Prefect, eventually

SEEN_S = 5.0
NAMES = {
    "tokensweep: reap after a crash",
    "tokensweep: something is left behind",
    "tokensweep: four fifths of a budget are spent",
    "tokensweep: the reaper is silent",
}
BLOCK = """
from prefect.blocks.notifications import SlackWebhook
SlackWebhook(url="http://127.0.0.1:9/nobody").save("ops", overwrite=True)
"""
TELL = """
import sys
from decimal import Decimal
from tasks.occurrences import tell_budget
from prefect.events.worker import EventsWorker
print(tell_budget(sys.argv[1], Decimal(sys.argv[2]), Decimal(10)))
EventsWorker.instance().drain()
"""


@pytest.fixture
def prefect(prefect_url: str) -> Iterator[Prefect]:
    asked = Prefect(prefect_url)
    yield asked
    asked.close()


def _reaper(prefect: Prefect) -> str:
    """A deployment of the reaper that nobody serves: its runs stay scheduled."""
    flow_id = prefect.post("/flows/", {"name": "reap"})["id"]
    return str(
        prefect.post("/deployments/", {"name": "cron", "flow_id": flow_id, "entrypoint": "flows.reap.reap"})["id"]
    )


def test_automations_are_made_once_and_a_crash_starts_the_reaper(product: Product, prefect: Prefect) -> None:
    reaper_id = _reaper(prefect)
    first = product.run("automations", "--json")
    assert first.rc == 0 and set(first.json()["made"]) == NAMES, str(first)
    second = product.run("automations", "--json")
    assert set(second.json()["replaced"]) == NAMES and second.json()["made"] == []
    there = prefect.post("/automations/filter", {})
    assert sorted(a["name"] for a in there if a["name"].startswith("tokensweep")) == sorted(NAMES)

    wrong = product.run("automations", "--notify", "slack-webhook/nobody")
    assert wrong.rc == 2 and "slack-webhook/nobody" in wrong.err

    def reaper_runs() -> int:
        return len(prefect.post("/flow_runs/filter", {"deployments": {"id": {"any_": [reaper_id]}}}))

    before = reaper_runs()
    server = prefect.post("/flows/", {"name": "server"})["id"]
    state = {"type": "RUNNING", "name": "Running"}
    runs = [
        prefect.post("/flow_runs/", {"flow_id": server, "name": f"local/{n}", "state": state})["id"] for n in range(3)
    ]
    for run in runs:
        prefect.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CRASHED", "name": "Crashed"}, "force": True})
    assert eventually(reaper_runs, lambda n: n > before) == before + 1
    assert eventually(reaper_runs, lambda n: n > before + 1, SEEN_S) == before + 1, "one pass looks at all of them"


def test_an_upgrade_does_not_silence_them(product: Product, prefect: Prefect) -> None:
    """deployments/setup.sh is run again then, perhaps without naming the block."""
    _reaper(prefect)
    command = [sys.executable, "-c", BLOCK]
    subprocess.run(command, env=product.env(), cwd=CHECKOUT, check=True, capture_output=True)
    for arguments in (["--notify", "slack-webhook/ops"], []):
        assert product.run("automations", *arguments).rc == 0
        found = {a["name"]: a["actions"][0]["type"] for a in prefect.post("/automations/filter", {})}
        assert Counter(found[name] for name in NAMES) == {"send-notification": 3, "run-deployment": 1}


@pytest.mark.parametrize(("committed", "told"), [("7.99", False), ("8", True)])
def test_a_budget_is_told_at_four_fifths(product: Product, prefect: Prefect, committed: str, told: bool) -> None:
    sweep = f"sweep-{committed.replace('.', '-')}"
    done = subprocess.run(
        [sys.executable, "-c", TELL, sweep, committed], env=product.env(), cwd=CHECKOUT, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(told), done.stderr
    question = {"filter": {"event": {"name": ["tokensweep.budget"]}, "resource": {"id": [f"tokensweep.sweep.{sweep}"]}}}

    def events() -> list[dict[str, object]]:
        found: list[dict[str, object]] = prefect.post("/events/filter", question)["events"]
        return found

    if told:
        (event,) = eventually(events, bool)
        assert event["payload"] == {"sweep": sweep, "committed_usd": float(Decimal(committed)), "cap_usd": 10.0}
    else:
        assert events() == []


def test_what_is_found_again_and_again_is_told_once(product: Product, prefect: Prefect) -> None:
    """Each shard of a sweep sees that its budget is spent, and each pass of the reaper what is stuck."""
    _reaper(prefect)
    assert product.run("automations").rc == 0
    found = prefect.post("/automations/filter", {})
    (budget,) = [a["id"] for a in found if a["name"] == "tokensweep: four fifths of a budget are spent"]
    question = {
        "event": {"name": ["prefect.automation.triggered"]},
        "resource": {"id": [f"prefect.automation.{budget}"]},
    }

    def n_told() -> int:
        return len(prefect.post("/events/filter", {"filter": question})["events"])

    for sweep in ("one", "one", "another", "one", "another"):
        command = [sys.executable, "-c", TELL, sweep, "9"]
        subprocess.run(command, env=product.env(), cwd=CHECKOUT, check=True, capture_output=True)
    assert eventually(n_told, lambda n: n >= 2) == 2
    assert eventually(n_told, lambda n: n > 2, SEEN_S) == 2, "once for each sweep"
