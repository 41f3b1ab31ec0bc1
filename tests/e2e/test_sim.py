"""A sweep of forty simulated servers with five per cent of every class of faults, killed in the middle: the whole
product on a cloud whose meter can be read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.clouds.sim import SimCloud
from tasks.ledger import Ledger
from tasks.settings import Settings
from tasks.wiring import open_services
from tests.e2e.product import Done, Product

N_SERVERS = 40
CAP_USD = 30.0
PRESET: dict[str, Any] = {
    "vendor": "sim",
    "servers": [f"*:{N_SERVERS}"],
    "models": ["smollm-135m", "qwen1.5-0.5b"],
    "weights": "simulated",
    "pp": [16, 128],
    "tg": [16],
    "max_usd": CAP_USD,
    "max_usd_per_server": 0.5,
    "deadline_s": 3600,
    "max_parallel": 20,
    "vendor_options": {"seed": 4, "speedup": 60, "faults": 0.05},
}
N_CELLS = 6
MOST_PASSES = 8


@pytest.fixture
def product(tmp_path: Path) -> Product:
    """No runtime is built and no model made: simulated servers need none. Every command brings its own Prefect."""
    return Product(tmp_path / "home", tmp_path / "cache")


def preset(product: Product, **changes: Any) -> str:
    path = product.home.parent / "forty.yaml"
    path.write_text(yaml.safe_dump({**PRESET, **changes}))
    return str(path)


def cloud_of(product: Product) -> SimCloud:
    cloud = open_services(Settings(home=product.home)).cloud("sim")
    assert isinstance(cloud, SimCloud)
    return cloud


def reap_until_finished(product: Product) -> None:
    """The faults go on, so a pass may meet an outage or a deletion that is stuck; the next one goes on."""
    for _ in range(MOST_PASSES):
        done = product.run("reap")
        assert done.rc in (0, 6), str(done)
        if done.rc == 0 and product.run("leaks").rc == 0:
            return
    raise AssertionError(f"{MOST_PASSES} passes of the reaper, and still: {product.run('leaks')}")


def assert_nothing_is_left(product: Product) -> None:
    """By the product's own proof, and by the meter of the cloud itself."""
    reap_until_finished(product)
    cloud = cloud_of(product)
    assert [thing for thing in cloud.existing() if thing.ours] == []
    before = cloud.bill()
    time.sleep(0.5)
    assert before.usd_per_hour == 0 and cloud.bill() == before, "the meter is flat"


def assert_within_the_cap(product: Product) -> None:
    ledger = Ledger(f"sqlite:///{product.home}/ledger.sqlite")
    for sweep_id in {run.sweep_id for run in ledger.server_runs()}:
        assert ledger.spent(sweep_id).committed_usd <= CAP_USD
    assert 0 < cloud_of(product).bill().total_usd <= CAP_USD


def assert_every_server_has_its_end(product: Product) -> None:
    runs = product.query("SELECT server, outcome, reason FROM server_runs")
    assert len({run["server"] for run in runs}) == N_SERVERS
    assert all(run["outcome"] and run["reason"] for run in runs)
    done = {run["server"] for run in runs if run["outcome"] == "completed"}
    # One fault strikes all at once: while the credentials have expired every create is refused, and fails at once.
    refused = {run["server"] for run in runs if run["reason"] == "ExpiredToken"} - done
    assert len(done) > (N_SERVERS - len(refused)) / 4
    cells = product.cells()
    assert len(cells) == N_SERVERS * N_CELLS and all(outcome and reason for outcome, reason in cells.values())


def assert_marked_as_simulated(product: Product) -> None:
    (marks,) = product.query("SELECT list(DISTINCT weights) AS weights, list(DISTINCT vendor) AS vendors FROM cells")
    assert marks == {"weights": ["simulated"], "vendors": ["sim"]}
    assert product.query("SELECT DISTINCT engine, isolation FROM server_runs") == [
        {"engine": "simulated", "isolation": "simulated"}
    ]
    assert product.query("SELECT * FROM v_latest") == [], "views of real answers leave simulated ones out"
    assert product.query("SELECT count(*) AS n FROM v_speed")[0]["n"] == N_SERVERS * N_CELLS


def killed_in_the_middle(product: Product, path: str) -> None:
    running = product.start("run", "--yes", path)
    running.wait_for(": done", n=6)
    running.kill()
    running.end()


def test_forty_servers_with_faults_and_a_kill_end_whole_paid_and_gone(product: Product) -> None:
    path = preset(product)
    killed_in_the_middle(product, path)
    assert cloud_of(product).bill().n_existing > 0, "the kill left servers behind"
    assert_nothing_is_left(product)
    before = product.samples()
    assert before

    done: Done = product.run("run", "--yes", path)
    assert done.rc in (0, 4, 6), str(done)
    assert_nothing_is_left(product)
    assert_within_the_cap(product)
    assert_every_server_has_its_end(product)
    assert_marked_as_simulated(product)
    after = product.samples()
    assert {key: after[key] for key in before} == before, "what was measured before the kill is kept"


def test_an_account_that_cannot_be_opened_keeps_the_reaper_from_no_other(product: Product, prefect_url: str) -> None:
    """A Prefect block that was deleted, or whose Prefect server is away: what other vendors hold bills on."""
    product.environment["PREFECT_API_URL"] = prefect_url
    options = {"seed": 1, "speedup": 10, "faults": 0.0}
    running = product.start("run", "--yes", preset(product, servers=["c3a-8"], vendor_options=options))
    running.wait_for(": connect")
    running.kill()
    running.end()
    assert cloud_of(product).bill().n_existing > 0
    product.environment["TOKENSWEEP_HETZNER_BLOCK"] = "nobody"
    leaks = product.run("leaks")
    assert leaks.rc == 6 and "left behind" in leaks.out and "of hetzner nothing is proven" in leaks.out
    done = product.run("reap")
    assert done.rc == 6 and "Traceback" not in done.err, "of hetzner nothing is proven"
    assert "hetzner-credentials/nobody" in done.out and "listed sim" in done.out, str(done)
    assert [thing for thing in cloud_of(product).existing() if thing.ours] == []
    assert "hetzner-credentials/nobody" in product.run("leaks", "--json").out
    del product.environment["TOKENSWEEP_HETZNER_BLOCK"]
    assert product.run("leaks").rc == 0


def test_until_it_is_chosen_the_simulated_cloud_is_not_looked_at(product: Product) -> None:
    path = preset(product, servers=["c3a-8", "t4x1-4"])
    plan = product.run("plan", path, "--json")
    assert plan.rc == 0 and {s["offer"]["name"] for s in plan.json()["servers"]} == {"c3a-8", "t4x1-4"}, str(plan)
    assert not (product.home / "sim").exists(), "planning makes nothing"
    assert {x["vendor"] for x in product.run("leaks", "--json").json()["listed"]} == {"local"}

    assert product.run("run", "--yes", path, "--server", "c3a-8").rc in (0, 4)
    assert {x["vendor"] for x in product.run("leaks", "--json").json()["listed"]} == {"local", "sim"}

    refused = product.run("plan", preset(product, vendor_options={"faults": {"capcity": 1}}))
    assert refused.rc == 2 and "capacity" in refused.err, str(refused)
