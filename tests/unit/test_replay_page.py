"""The charts of a replay: one file, no connection, every figure of the reports in it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flows.replay_page import frontier_rows, reliability_rows, write_page
from tasks.domain.choose import TWIN_INTERVALS
from tasks.domain.classic import ClassicPolicy
from tasks.domain.dynamic import DynamicPolicy
from tasks.domain.predict import QUANTILES
from tasks.replay.fit import reliability
from tasks.replay.headers import headers_of
from tasks.replay.recorded import RecordedRun
from tasks.replay.replaying import Setting, replay
from tasks.replay.report import Report, report
from tasks.replay.twin_check import TwinCheck, check_twins
from tests.recorded_runs import FAST, SLOW, record

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)


def scaled(factor: float) -> dict[str, dict[str, float]]:
    return {model: {task: v * factor for task, v in of.items()} for model, of in SLOW.items()}


@pytest.fixture(scope="module")
def runs() -> list[RecordedRun]:
    """Twins of a few per cent between them, and fast servers of another vendor."""
    slow = [replace(record(scaled(1 + i / 100)), server=f"s{i}") for i in range(16)]
    return slow + [replace(record(FAST), server=f"f{i}", vendor="gcp", cpu_model="Y") for i in range(4)]


@pytest.fixture(scope="module")
def judged(runs: list[RecordedRun]) -> tuple[list[tuple[str, Report]], TwinCheck]:
    headers = headers_of()
    scores = {
        "dynamic": replay(runs, Setting(DynamicPolicy(), headers), n_processes=1),  # type: ignore[arg-type]
        "classic": replay(runs, Setting(ClassicPolicy(), headers), n_processes=1),  # type: ignore[arg-type]
    }
    twins = check_twins(runs, scores["dynamic"], 10.0, TWIN_INTERVALS)
    return [(name, report(runs, found)) for name, found in scores.items()], twins


def test_the_rows_are_the_figures_of_the_reports(judged: tuple[list[tuple[str, Report]], TwinCheck]) -> None:
    reports, twins = judged
    dynamic, classic = frontier_rows(reports, "usd")
    assert dynamic["share"] == reports[0][1].total.usd.value < classic["share"] == pytest.approx(1.0, abs=0.01)
    held = {row["claimed"]: row["held"] for row in reliability_rows({}, twins)}
    assert held[50.0] == twins.unseen[0.5] * 100 and set(held) == {50.0, 80.0, 90.0, 95.0}


def test_quantiles_of_predictions_are_judged_on_servers_that_they_were_not_fitted_on(runs: list[RecordedRun]) -> None:
    many = [replace(run, server=f"{run.server}-{i}") for i in range(4) for run in runs]
    held = reliability(many)
    assert set(held) == set(QUANTILES)
    assert list(held.values()) == sorted(held.values()) and held[QUANTILES[-1]] > 0.9
    assert reliability([]) == {}


def test_the_page_draws_every_chart_and_asks_nobody(
    runs: list[RecordedRun], judged: tuple[list[tuple[str, Report]], TwinCheck], tmp_path: Path
) -> None:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    reports, twins = judged
    path = tmp_path / "replay.html"
    write_page(path, reports, gates=dict.fromkeys(QUANTILES, 0.5), twins=twins, unseen=False)
    asked: list[str] = []
    problems: list[str] = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda problem: problems.append(str(problem)))
        page.goto(path.as_uri())
        titles = page.locator("h2").all_inner_texts()
        n_drawn = page.locator("div[id^=chart]:has(svg)").count()
        text = page.locator("body").inner_text()
        browser.close()
    assert problems == [] and asked == [path.as_uri()]
    assert n_drawn == len(titles) >= 5 and "How far predictions can be trusted" in titles
    assert "20 recorded server runs" in text
