"""A small fleet whose PostgreSQL, Prefect server, worker and controller are killed in the middle of one sweep: it comes
to its end, keeps what was measured, and leaves nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.clouds.sim import SimCloud
from tasks.ledger import Ledger
from tasks.settings import Settings
from tasks.wiring import open_services
from tests.flows import postgres
from tests.flows.chaos import chaos
from tests.flows.installation import Installation

N_SERVERS, CAP_USD = 10, 20.0
SIM: dict[str, Any] = {
    "vendor": "sim",
    "servers": [f"*:{N_SERVERS}"],
    "models": ["smollm-135m", "qwen1.5-0.5b"],
    "weights": "simulated",
    "pp": [16, 128],
    "tg": [16],
    "max_usd": CAP_USD,
    "max_usd_per_server": 1.0,
    "deadline_s": 36000,
    "max_parallel": 1,
    "vendor_options": {"seed": 1, "speedup": 30, "faults": 0.0},
}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Installation]:
    """Two workers, and shards of five servers, one after the other: so that the blows find something to hit."""
    if why_not := postgres.why_not():
        pytest.skip(why_not)
    fleet = Installation(tmp_path, tmp_path / "cache", {"TOKENSWEEP_SHARD_SERVERS": "5"})
    try:
        fleet.start_server()
        fleet.deploy()
        for _ in range(2):
            fleet.start_worker(limit=1)
        yield fleet
    finally:
        fleet.close()


def test_a_sweep_outlives_everything_that_carries_it(fleet: Installation) -> None:
    product = fleet.product
    path = fleet.folder / "chaos.yaml"
    path.write_text(yaml.safe_dump(SIM))
    survived = chaos(fleet, str(path), N_SERVERS, landed_first=2, paced=False)

    after = product.samples()
    assert survived.samples and {key: after[key] for key in survived.samples} == survived.samples, "nothing is lost"
    assert {server for server, *_ in product.cells()} == {row["server"] for row in product.query("FROM server_runs")}
    assert product.run("leaks").rc == 0
    cloud = open_services(Settings(home=product.home)).cloud("sim")
    assert isinstance(cloud, SimCloud)
    before = cloud.bill()
    time.sleep(0.5)
    assert before.usd_per_hour == 0 and cloud.bill() == before, "the meter is flat"
    ledger = Ledger(product.environment["TOKENSWEEP_LEDGER_URL"])
    assert {float(ledger.spent(run.sweep_id).committed_usd) <= CAP_USD for run in ledger.server_runs()} == {True}
