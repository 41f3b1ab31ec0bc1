"""The control room in a real browser: a sweep is started from the form, watched and cancelled on its page, and the page
of the reaper's artifact shows that nothing is left."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.product import Product
from tests.flows.prefect_rest import Prefect, eventually

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
PATIENCE_S = 240.0
N_DEPLOYMENTS = 7
SIM: dict[str, Any] = {
    "vendor": "sim",
    "servers": ["*:6"],
    "models": ["smollm-135m", "qwen1.5-0.5b"],
    "weights": "simulated",
    "pp": [16, 128],
    "tg": [16],
    "max_usd": 20.0,
    "max_usd_per_server": 1.0,
    "deadline_s": 36000,
    "max_parallel": 2,
    # So slow that it is still at work when the page has been looked at.
    "vendor_options": {"seed": 1, "speedup": 4, "faults": 0.0},
}


@pytest.fixture
def page() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        try:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except sync_api.Error as exc:
            pytest.skip(f"no Chromium can be started here: {str(exc).splitlines()[0]}")
        page = browser.new_page(viewport={"width": 1400, "height": 1300})
        page.set_default_timeout(1000 * PATIENCE_S)
        yield page
        browser.close()


@pytest.fixture
def product(tmp_path: Path) -> Product:
    """Simulated servers need no runtime; `tokensweep ui` brings its Prefect server."""
    presets = tmp_path / "presets"
    presets.mkdir()
    for name in ("local", "simulated"):
        (presets / f"{name}.yaml").write_text(yaml.safe_dump(SIM))
    settings = {"TOKENSWEEP_PRESETS": str(presets), "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    return Product(tmp_path / "home", tmp_path / "cache", settings)


@pytest.fixture
def address(product: Product) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = product.start("ui", "--port", str(port))
    running.wait_for(f"UI: http://127.0.0.1:{port}")
    yield f"http://127.0.0.1:{port}"
    if running.process.poll() is None:
        running.signal(signal.SIGINT, group=True)
        running.end()


@pytest.fixture
def prefect(address: str) -> Iterator[Prefect]:
    asked = Prefect(f"{address}/api")
    yield asked
    asked.close()


def field(page: Any, name: str) -> Any:
    """The innermost part of the form that holds this title."""
    return page.locator(".schema-form-property", has=page.get_by_text(name)).last


def choose(page: Any, name: str, value: str) -> None:
    field(page, name).locator(".p-select-button__control").focus()
    page.keyboard.press("ArrowDown")
    page.locator("[class*=select-option]", has_text=value).last.click()


def submit(page: Any, prefect: Prefect, deployment_id: str) -> str:
    """Press the button; the id of the run that it makes, which no cron has made."""
    page.get_by_role("button", name="Submit").click()

    def made() -> list[dict[str, Any]]:
        found = prefect.post("/flow_runs/filter", {"deployments": {"id": {"any_": [deployment_id]}}})
        return [run for run in found if not run["auto_scheduled"]]

    (run,) = eventually(made, bool, PATIENCE_S)
    return str(run["id"])


def test_a_sweep_is_started_watched_and_cancelled_in_the_browser(
    product: Product, prefect: Prefect, address: str, page: Any
) -> None:
    found = eventually(
        lambda: prefect.post("/deployments/filter", {}), lambda found: len(found) >= N_DEPLOYMENTS, PATIENCE_S
    )
    ids = {deployment["name"]: deployment["id"] for deployment in found}

    page.goto(f"{address}/deployments/deployment/{ids['adhoc']}/run")
    choose(page, "Preset (Optional)", "simulated")
    choose(page, "Mode (Optional)", "run")
    field(page, "Money cap (USD)").get_by_role("button", name="float").click()
    field(page, "Money cap (USD)").locator("input").fill("20")
    sweep = submit(page, prefect, ids["adhoc"])
    asked = prefect.flow_run(sweep)["parameters"]["request"]
    assert (asked["preset"], asked["mode"], asked["max_usd"]) == ("simulated", "run", 20)

    page.goto(f"{address}/runs/flow-run/{sweep}")
    eventually(lambda: prefect.subflow_runs(sweep), lambda runs: len(runs) >= 2, PATIENCE_S)
    page.get_by_text("6 servers to run, at most 20.0 USD").wait_for()
    page.get_by_text("Running", exact=True).first.wait_for()
    eventually(lambda: "progress" in prefect.artifacts(sweep), bool, PATIENCE_S)

    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    page.get_by_text("Cancelled", exact=True).first.wait_for()
    state = eventually(lambda: prefect.flow_run(sweep)["state_type"], lambda state: state == "CANCELLED", PATIENCE_S)
    assert state == "CANCELLED"

    page.goto(f"{address}/deployments/deployment/{ids['cron']}/run")
    reaped = submit(page, prefect, ids["cron"])
    eventually(lambda: prefect.flow_run(reaped)["state_type"], lambda state: state == "COMPLETED", PATIENCE_S)
    proof = eventually(lambda: prefect.artifacts(reaped).get("leaks"), bool, PATIENCE_S)
    assert proof is not None
    page.goto(f"{address}/artifacts/artifact/{proof['id']}")
    page.get_by_text("Nothing is left").first.wait_for()
    assert product.run("leaks").rc == 0
