"""`status` and `metrics` of a ledger with many runs: what people and dashboards see."""

from __future__ import annotations

import signal
import socket
import time
import urllib.request
from decimal import Decimal
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tasks.ledger import Intent, Ledger, RunState
from tests.e2e.product import Product

N_RUNS = 100


@pytest.fixture
def fleet(tmp_path: Path) -> Product:
    """A hundred runs, one of them under way with a server that lives."""
    product = Product(tmp_path / "home", tmp_path / "cache")
    product.home.mkdir()
    ledger = Ledger(f"sqlite:///{product.home}/ledger.sqlite")
    for number in range(N_RUNS):
        run = f"big.server-{number}.1"
        ledger.begin_run(run, sweep_id="big", server=f"server-{number}", vendor="local", spool_path="")
        if number:
            ledger.end_run(run, RunState.LANDED)
    intent = Intent(
        intent_id="i-1",
        sweep_id="big",
        server_run_id="big.server-0.1",
        vendor="local",
        place="localhost",
        name="tokensweep-1",
        token="t",
        server_type="server-0",
        deadline_unix_s=time.time() + 3600,
        usd_per_hour=Decimal("0.5"),
        reserved_usd=Decimal("0.75"),
        attempt=0,
        host_public_key="k",
        billing_minimum_s=0,
        billing_increment_s=1,
    )
    ledger.creating(ledger.intend(intent, cap_usd=Decimal(10)))
    ledger.beat("test", ("local",))
    return product


def test_status_of_a_large_sweep_is_summed_up(fleet: Product) -> None:
    done = fleet.run("status")
    assert done.rc == 0, str(done)
    assert "server-0 " in done.out and "40 more" in done.out
    assert "99 landed, 1 running" in done.out and "0.7500 USD reserved" in done.out
    assert "local tokensweep-1 (server-0): creating" in done.out


def test_status_can_be_watched(fleet: Product) -> None:
    running = fleet.start("status", "--watch", "0.2")
    running.wait_for_output("server-0")
    running.signal(signal.SIGINT)
    assert running.end().out.count("Server runs") >= 1


def test_metrics_are_printed_and_served(fleet: Product) -> None:
    printed = fleet.run("metrics").out
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(printed)
        for sample in family.samples
    }
    assert found["tokensweep_resources_open", "creating", "local"] == 1
    assert found["tokensweep_server_runs", "big", "landed"] == N_RUNS - 1
    assert found["tokensweep_reserved_usd", "big"] == 0.75
    assert found["tokensweep_reaper_last_pass_timestamp_seconds", "local"] > 1e9

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = fleet.start("metrics", "--port", str(port))
    url, end = f"http://127.0.0.1:{port}/metrics", time.monotonic() + 60
    text = ""
    while not text and time.monotonic() < end:
        try:
            text = urllib.request.urlopen(url, timeout=5).read().decode()
        except OSError:
            time.sleep(0.2)
    running.signal(signal.SIGTERM)
    assert running.end().rc == 0 and "tokensweep_resources_open" in text
