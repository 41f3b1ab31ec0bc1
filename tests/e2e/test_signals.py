"""SIGTERM and Ctrl-C in the middle: servers are deleted before the command ends, and what was measured is kept."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from tests.e2e.product import Product
from tests.flows.prefect_rest import Prefect, eventually

TEARDOWN_S = 30.0
"""What Prefect leaves a flow run after a cancel, before it is killed."""
N_SERVERS = 8
SIM: dict[str, Any] = {
    "vendor": "sim",
    "servers": [f"*:{N_SERVERS}"],
    "models": ["smollm-135m", "llama-7b"],
    "weights": "simulated",
    "max_usd_per_server": 0.1,
    "deadline_s": 3600,
    "max_parallel": N_SERVERS,
    "vendor_options": {"seed": 1, "speedup": 10, "faults": 0.0},
}
LADDER = {"pp": [16, 512, 1024], "tg": [16, 512]}


def stopped(product: Product, step: str, number: signal.Signals, *, group: bool, times: int = 1) -> None:
    """Interrupt a sweep when it says `step`, and see its servers go."""
    running = product.start("run", "--yes", product.preset(**LADDER))
    running.wait_for(f": {step}")
    for _ in range(times):
        running.signal(number, group=group)
        time.sleep(0.2)
    began = time.monotonic()
    while product.servers():
        assert time.monotonic() < began + TEARDOWN_S, f"its server is still there:\n{running.err}"
        time.sleep(0.05)
    done = running.end()
    assert done.rc in {130, 143} and "Traceback" not in done.err, str(done)
    assert "leaks" in done.err.splitlines()[-1], "it says what to do next"
    product.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("create", signal.SIGTERM),
        ("create", signal.SIGINT),
        ("connect", signal.SIGTERM),
        ("download", signal.SIGINT),
        ("run tiny-15m pp512", signal.SIGTERM),
        ("run tiny-15m pp512", signal.SIGINT),
    ],
)
def test_a_stopped_sweep_deletes_its_servers_first(product: Product, step: str, number: signal.Signals) -> None:
    stopped(product, step, number, group=False)
    reasons = {reason for outcome, reason in product.cells().values() if outcome != "measured"}
    assert reasons <= {"cancelled"}
    if step.startswith("run"):
        assert product.samples(), "what was measured before is kept"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_reaches_the_same_end(bare: Product, number: signal.Signals) -> None:
    """Ctrl-C in a terminal, where the command has brought its own Prefect server; and again, by the impatient."""
    stopped(bare, "run tiny-15m pp512", number, group=True, times=3)
    assert bare.samples()


def test_prefect_is_told_how_every_server_run_ended_however_often_the_signal_came(
    product: Product, prefect_url: str
) -> None:
    """Ctrl-C reaches a worker's whole group, and the worker passes it on: twice is the rule."""
    running = product.start("run", "--yes", product.preset("impatient", **SIM))
    running.wait_for(": connect", n=N_SERVERS // 2)
    for _ in range(4):
        running.signal(signal.SIGINT)
        time.sleep(0.15)
    done = running.end()
    assert done.rc == 130 and "Traceback" not in done.err, str(done)
    assert "reap" in done.err.splitlines()[-1], "the vendor's listings are behind: the proof is still to come"
    prefect = Prefect(prefect_url)
    found = prefect.post("/flow_runs/filter", {"flow_runs": {"tags": {"all_": ["sim"]}}})
    ids = [run["id"] for run in found if "impatient-" in run["parameters"].get("order", {}).get("sweep_id", "")]

    def ask() -> list[str]:
        return [prefect.flow_run(flow_run_id)["state_type"] for flow_run_id in ids]

    states = eventually(ask, lambda found: "RUNNING" not in found, 20.0)
    prefect.close()
    assert len(states) >= N_SERVERS // 2 and "RUNNING" not in states, states
    assert {reason for outcome, reason in product.cells().values() if outcome == "not_reached"} == {"cancelled"}
