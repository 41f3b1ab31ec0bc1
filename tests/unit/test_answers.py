"""`best`, `compare`, `coverage`, `compact`, `export` as a person or a program calls them, over landed runs."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from tasks.analysis.sparecores_export import checked, score_rows
from tasks.domain.errors import ConfigError
from tasks.lake import land, open_lake, rows_from_events
from tasks.settings import Settings
from tests.unit.lake_runs import lost_run
from tests.unit.test_lake_questions import cells, faster, hardware, later, priced, run_rows


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Four servers of two vendors, the fifth lost."""
    home = tmp_path_factory.mktemp("home")
    for rows in (
        run_rows("a", "cheap", priced("0.01"), cells(weights="real")),
        run_rows("b", "fast", priced("0.06"), faster(3.0), cells(weights="real")),
        run_rows("c", "dear", priced("0.09"), faster(2.0), cells(weights="real", vendor="aws"), hardware(vendor="aws")),
        run_rows("d", "close", priced("0.02"), faster(1.02), cells(weights="real")),
        rows_from_events(*lost_run()),
    ):
        vendor = rows["cells"][0]["vendor"]
        for row in (row for table in rows.values() for row in table):
            row["vendor"] = vendor
        land(home / "lake", rows["server_runs"][0]["server_run_id"], rows)
    yield home


@pytest.fixture
def ask(home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TOKENSWEEP_HOME", str(home))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    return run


def rows_of(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return list(json.loads(result.stdout))


def test_best_is_cheapest_first_for_programs(ask: Any) -> None:
    rows = rows_of(ask("best", "--model", "small", "--phase", "tg", "--tokens", "16", "--min-tps", "16", "--json"))
    assert [r["server"] for r in rows] == ["cheap", "close", "fast", "dear"]
    assert rows[0]["ratio_to_best"] == 1.0 and rows[3]["ratio_to_best"] == pytest.approx(4.5)
    table = ask("best", "--model", "small", "--tokens", "16", "--min-tps", "30", "--csv").stdout
    assert [r["server"] for r in csv.DictReader(io.StringIO(table))] == ["fast", "dear"]


def test_best_can_be_kept_to_a_vendor_and_a_day(ask: Any) -> None:
    common = ("best", "--model", "small", "--phase", "tg", "--tokens", "16", "--min-tps", "1", "--json")
    assert [r["server"] for r in rows_of(ask(*common, "--vendor", "aws"))] == ["dear"]
    assert len(rows_of(ask(*common, "--at", "2100-01-01"))) == 4
    assert ask(*common, "--at", "2000-01-01").exit_code == 3


def test_best_for_people_says_what_to_trust_and_what_next(ask: Any) -> None:
    shown = ask("best", "--model", "small", "--phase", "tg", "--tokens", "16", "--min-tps", "16")
    assert shown.exit_code == 0 and "local/cheap" in shown.stdout and "price read" in shown.stdout
    assert "USD/1M tokens" in shown.stdout and "tokensweep compare local/cheap local/close" in shown.stderr


def test_best_marks_the_frontier_names_the_hardware(ask: Any) -> None:
    arguments = ("best", "--model", "small", "--phase", "tg", "--tokens", "16", "--min-tps", "16")
    rows = rows_of(ask(*arguments, "--json"))
    assert [r["on_frontier"] for r in rows] == [True, True, True, False], "the last is slower than a cheaper one"
    assert all(" × " in r["runs_on"] for r in rows)
    shown = ask(*arguments).stdout
    assert "local/fast *" in shown and "aws/dear *" not in shown and rows[0]["runs_on"][:4] in shown


def test_best_leaves_out_columns_that_say_nothing(ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run_rows("a", "old", cells(weights="real"))
    rows["server_runs"][0].update(price_read_at=None, place=None)
    land(tmp_path / "lake", "a", rows)
    monkeypatch.setenv("TOKENSWEEP_HOME", str(tmp_path))
    shown = ask("best", "--model", "small", "--tokens", "16").stdout
    assert "price read" not in shown and "place" not in shown and "These prices are of no known day." in shown


def test_coverage_of_a_vendor_is_that_of_the_newest_sweep_that_has_it(
    ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = run_rows("a", "old")
    for row in (row for table in older.values() for row in table):
        row["vendor"] = "aws"
    land(tmp_path / "lake", "a", older)
    land(tmp_path / "lake", "b", run_rows("b", "new", later(1), sweep_id="s2"))
    monkeypatch.setenv("TOKENSWEEP_HOME", str(tmp_path))
    assert {r["sweep_id"] for r in rows_of(ask("coverage", "--json"))} == {"s2"}
    assert {r["sweep_id"] for r in rows_of(ask("coverage", "--vendor", "aws", "--json"))} == {"s1"}
    refused = ask("coverage", "--vendor", "awss").exception
    assert isinstance(refused, ConfigError) and "Did you mean aws?" in str(refused)


def test_coverage_of_many_servers_is_cut_and_counted_by_vendor(ask: Any) -> None:
    shown = ask("coverage", "--limit", "2").stdout
    assert "3 more: --limit 5" in shown and "By vendor" in shown and "cells measured on 5 servers" in shown
    assert "3 more" not in ask("coverage").stdout


def test_a_query_with_many_columns_shows_one_below_the_other(ask: Any) -> None:
    shown = ask("query", "FROM v_trust LIMIT 1").stdout
    assert "row 1" in shown and "tok_per_s_median" in shown and "…" not in shown
    assert "┃" in ask("query", "SELECT vendor, server FROM v_latest LIMIT 1").stdout


def test_best_that_nothing_meets_names_the_fastest(ask: Any) -> None:
    shown = ask("best", "--model", "small", "--phase", "tg", "--tokens", "16", "--min-tps", "1e6")
    assert shown.exit_code == 3 and "Fastest: local/fast with 48" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("best", "--model", "smal", "--tokens", "16"), "Did you mean small?"),
        (("best", "--model", "small", "--tokens", "17"), "Lengths of tg: 16"),
        (("compare", "cheap", "fst"), "Did you mean"),
        (("compare", "cheap", "local/cheap"), "two different servers"),
        (("coverage", "--sweep", "s2"), "Newest: s1"),
        (("best", "--model", "small", "--tokens", "16", "--at", "2026-13-45"), "Write it like 2026-11-01."),
        (("explain", "chep"), "Did you mean cheap?"),
        (("explain", "cheap", "--model", "huge"), "no decision about local/cheap for model 'huge'"),
        (("query", "FROM v_sped"), "tokensweep query --list"),
    ],
)
def test_a_wrong_question_names_the_right_ones(ask: Any, arguments: tuple[str, ...], said: str) -> None:
    result = ask(*arguments)
    assert isinstance(result.exception, ConfigError) and result.exception.exit_code == 2
    assert said in str(result.exception)


def test_explain_takes_a_server_by_the_name_that_the_tables_show(ask: Any) -> None:
    assert rows_of(ask("explain", "local/cheap", "--json")) == rows_of(ask("explain", "cheap", "--json")) != []


def test_imported_results_have_nothing_to_explain(ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run_rows("a", "theirs")
    rows["decisions"] = []
    land(tmp_path / "lake", "a", rows)
    monkeypatch.setenv("TOKENSWEEP_HOME", str(tmp_path))
    assert "tokensweep explain" not in ask("coverage").stderr, "no step that leads nowhere"
    refused = str(ask("explain", "theirs").exception)
    assert "imported" in refused and "FROM v_coverage WHERE server = 'theirs'" in refused


def test_compare_tells_difference_from_noise(ask: Any) -> None:
    result = ask("compare", "cheap", "close", "aws/dear", "--json")
    found = json.loads(result.stdout)
    cell = next(c for c in found["cells"] if (c["task"], c["n_tokens"]) == ("pp", 128))
    assert found["servers"] == ["local/cheap", "local/close", "aws/dear"]
    assert (
        cell["servers"]["local/close"]["within_noise"] is True and cell["servers"]["aws/dear"]["within_noise"] is False
    )
    assert cell["servers"]["aws/dear"]["ratio"] == pytest.approx(2.0) and found["overall"]["aws/dear"] == pytest.approx(
        2
    )
    assert not cell["servers"]["local/cheap"]["dominated"]
    dominated = json.loads(ask("compare", "fast", "aws/dear", "--json").stdout)["cells"][0]["servers"]["aws/dear"]
    assert dominated["dominated"] is True


def test_compare_for_people(ask: Any) -> None:
    shown = ask("compare", "cheap", "fast").stdout
    assert "3.00×" in shown and "geometric mean" in shown and "0.0600 USD/h" in shown
    assert len(list(csv.DictReader(io.StringIO(ask("compare", "cheap", "fast", "--csv").stdout)))) == 6


def test_coverage_has_a_reason_for_every_gap(ask: Any) -> None:
    rows = rows_of(ask("coverage", "--json"))
    assert len(rows) == 10 and all(r["main_reason"] for r in rows if r["n_measured"] < r["n_cells"])
    shown = ask("coverage")
    assert "3/4 predicted too slow" in shown.stdout and "✗ server lost" in shown.stdout
    assert "tokensweep explain" in shown.stderr
    assert len(rows_of(ask("coverage", "--vendor", "aws", "--json"))) == 2


def test_compact_changes_no_answer(ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        rows = run_rows(name, name)
        land(tmp_path / "lake", name, rows)
        for path in (tmp_path / "lake").rglob(f"{name}.parquet"):
            os.utime(path, (0, 0))
    monkeypatch.setenv("TOKENSWEEP_HOME", str(tmp_path))
    before = rows_of(ask("coverage", "--json"))
    (done,) = rows_of(ask("compact", "--min-files", "2", "--json"))
    assert done["n_runs"] == 3 and rows_of(ask("coverage", "--json")) == before
    assert "Nothing to do" in ask("compact", "--min-files", "2").stdout


def test_an_empty_lake_says_so(ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENSWEEP_HOME", str(tmp_path))
    assert ask("coverage").exit_code == 3
    assert "nothing yet; see tokensweep run" in str(ask("best", "--model", "small").exception)


def test_export_writes_rows_of_benchmark_score(ask: Any, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    result = ask("export", "sparecores", "--out", str(out))
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    first = next(r for r in rows if r["resource_id"] == "cheap" and r["config"]["tokens"] == 128)
    assert first["benchmark_id"] == "llm_speed:prompt_processing" and first["resource_type"] == "server"
    assert first["config"] == {"model": "small.Q4_K_M.gguf", "tokens": 128} and list(first["config"]) == [
        "model",
        "tokens",
    ]
    assert first["score"] == pytest.approx((64 + 64 + 128 / 2.2) / 3) and first["status"] == "active"
    assert first["environment"] == {"kernel_version": "6.1.0"} and first["framework_version"] == "0c1e570"
    assert len(rows) == 12, "random weights are no score"


def test_export_in_the_older_layout_with_translated_ids(ask: Any, tmp_path: Path) -> None:
    ids = tmp_path / "ids.csv"
    ids.write_text("vendor,server,server_id\naws,dear,1234\n")
    result = ask("export", "sparecores", "--layout", "server", "--ids", str(ids), "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert {r["server_id"] for r in rows if r["vendor_id"] == "aws"} == {"1234"}
    assert rows[0]["status"] == "ACTIVE" and json.loads(rows[0]["config"])["model"] == "small.Q4_K_M.gguf"
    assert isinstance(ask("export", "sparecores", "--ids", str(tmp_path / "none.csv")).exception, ConfigError)


def test_imported_results_go_back_only_on_demand(tmp_path: Path) -> None:
    theirs = run_rows("a", "x", cells(weights="real", source="somewhere"))
    ours = run_rows("b", "y", cells(weights="real"), later(1), sweep_id="s2")
    for rows in (theirs, ours):
        land(tmp_path, rows["server_runs"][0]["server_run_id"], rows)
    with open_lake(tmp_path) as lake:
        assert {r["resource_id"] for r in score_rows(lake)} == {"y"}
        assert {r["resource_id"] for r in score_rows(lake, all_sources=True)} == {"x", "y"}


def test_a_row_that_does_not_fit_is_named(home: Path) -> None:
    with open_lake(home / "lake") as lake:
        rows = score_rows(lake)
    with pytest.raises(ConfigError, match="has the key of another row"):
        checked([rows[0], rows[0]])
    with pytest.raises(ConfigError, match="lacks score"):
        checked([{**rows[0], "score": None}])


ROUND_TRIP = """
import json, sys
from sc_crawler.tables import BenchmarkScore
from sqlalchemy import create_engine, func, select
from sqlmodel import Session
rows = [json.loads(line) for line in open(sys.argv[1])]
engine = create_engine("sqlite://")
BenchmarkScore.__table__.create(engine)
with Session(engine) as session:
    for row in rows:
        session.add(BenchmarkScore.model_validate(row))
    session.commit()
    print(session.scalar(select(func.count()).select_from(BenchmarkScore)))
"""


CRAWLER = "sparecores-crawler==0.10.2"


@pytest.fixture(scope="module")
def crawler_python() -> str:
    """A Python that has the predecessor's models: this one, the named one, or one in the cache, installed once."""
    named = os.environ.get("SPARECORES_CRAWLER_PYTHON", "")
    if named or importlib.util.find_spec("sc_crawler"):
        return named or sys.executable
    folder = Settings().cache_dir / CRAWLER.replace("==", "-")
    if not ((folder / "complete").exists() and os.access(folder / "bin" / "python", os.X_OK)):
        shutil.rmtree(folder, ignore_errors=True)  # the Python that it was made with has gone
        bundled = Path(__file__).resolve().parents[2] / ".tools" / "bin" / "uv"
        uv = shutil.which("uv") or (str(bundled) if bundled.exists() else "")
        if not uv:
            pytest.skip(f"there is no uv to install {CRAWLER} with, and SPARECORES_CRAWLER_PYTHON names no Python")
        made = folder.with_name(f"{folder.name}.{os.getpid()}")
        python = str(made / "bin" / "python")
        for command in (
            [uv, "venv", "-q", "--python", sys.executable, str(made)],
            [uv, "pip", "install", "-q", "--python", python, CRAWLER],
        ):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
                shutil.rmtree(made, ignore_errors=True)
                pytest.skip(f"{CRAWLER} cannot be installed here: {str(exc.stderr or exc)[-300:]}")
        (made / "complete").touch()
        try:
            made.rename(folder)
        except OSError:  # another run was first
            shutil.rmtree(made, ignore_errors=True)
    return str(folder / "bin" / "python")


def test_export_goes_into_the_predecessors_database(ask: Any, tmp_path: Path, crawler_python: str) -> None:
    out = tmp_path / "rows.jsonl"
    assert ask("export", "sparecores", "--out", str(out)).exit_code == 0
    command = [crawler_python, "-c", ROUND_TRIP, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "12", done.stderr


def test_what_no_server_of_a_vendor_reaches_is_said_of_that_vendor(ask: Any) -> None:
    common = ("best", "--model", "small", "--tokens", "16")
    shown = ask(*common, "--min-tps", "40", "--vendor", "aws")
    assert shown.exit_code == 3 and "Fastest: aws/dear with 32" in shown.stdout, "local/fast reaches it, and is no aws"
    refused = ask(*common, "--vendor", "awss").exception
    assert isinstance(refused, ConfigError) and "Did you mean aws?" in str(refused)


def test_prices_of_a_day_are_those_read_by_its_end(ask: Any) -> None:
    common = ("best", "--model", "small", "--tokens", "16", "--min-tps", "1")
    day = rows_of(ask(*common, "--json"))[0]["price_read_at"][:10]
    assert [r["server"] for r in rows_of(ask(*common, "--at", day, "--json"))] == ["cheap", "close", "fast", "dear"]
    shown = ask(*common, "--at", "2000-01-01")
    assert shown.exit_code == 3 and shown.stdout == "", "they reach it, whatever they cost"
    assert "4 servers reach it of which no price was read by 2000-01-01" in shown.stderr


def test_doubts_do_not_go_away_with_the_prices_of_another_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubtful = cells(weights="real", download_active=False, cpu_fallback="no_gpu_driver")
    land(tmp_path / "lake", "a", run_rows("a", "gpu", doubtful))
    monkeypatch.setenv("TOKENSWEEP_HOME", str(tmp_path))
    common = ("best", "--model", "small", "--tokens", "16", "--min-tps", "16", "--json")
    for more in ((), ("--at", "2100-01-01")):
        (row,) = rows_of(CliRunner().invoke(app, [*common, *more]))
        assert row["flags"] == "cpu_fallback" and row["sure"] is True and row["n_samples"] == 3


def test_a_price_of_spot_capacity_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spot = run_rows("a", "s", priced("0.01"), cells(weights="real"))
    spot["server_runs"][0]["spot"] = True
    for run_id, rows in (("a", spot), ("b", run_rows("b", "t", priced("0.02"), cells(weights="real")))):
        land(tmp_path / "lake", run_id, rows)
    monkeypatch.setenv("TOKENSWEEP_HOME", str(tmp_path))
    common = ("best", "--model", "small", "--tokens", "16")
    for more in ((), ("--at", "2100-01-01")):
        found = rows_of(CliRunner().invoke(app, [*common, *more, "--json"]))
        assert [(r["server"], r["spot"]) for r in found] == [("s", True), ("t", False)]
        shown = CliRunner().invoke(app, [*common, *more]).stdout
        assert [line.split()[0] for line in shown.splitlines() if " spot " in line] == ["local/s"]


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_a_limit_that_shows_nothing_is_refused(ask: Any, limit: str) -> None:
    for command in (("best", "--model", "small", "--tokens", "16"), ("coverage",)):
        result = ask(*command, "--limit", limit)
        assert result.exit_code == 2 and "No server reaches it" not in result.stdout


def test_a_model_that_was_only_simulated_is_not_too_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    land(tmp_path / "lake", "a", run_rows("a", "x", cells(weights="simulated")))
    monkeypatch.setenv("TOKENSWEEP_HOME", str(tmp_path))
    refused = CliRunner().invoke(app, ["best", "--model", "small", "--tokens", "16"]).exception
    assert isinstance(refused, ConfigError) and "no measurement of the model 'small'" in str(refused)


def test_the_price_over_a_comparison_is_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older run alone has the model that comes last."""
    older = run_rows("a", "x", priced("0.01"), cells(weights="real"))
    newer = run_rows("b", "x", priced("0.05"), later(30), cells(weights="real"), sweep_id="s2")
    for table in newer.values():
        for row in table:
            if row.get("model") == "small":
                row["model"] = "a-small"
    other = [run_rows(i, "y", cells(weights="real")) for i in ("c", "d")]
    for table in other[1].values():
        for row in table:
            if row.get("model") == "small":
                row["model"] = "a-small"
    for run_id, rows in zip("abcd", (older, newer, *other), strict=True):
        land(tmp_path / "lake", run_id, rows)
    monkeypatch.setenv("TOKENSWEEP_HOME", str(tmp_path))
    found = json.loads(CliRunner().invoke(app, ["compare", "x", "y", "--json"]).stdout)
    assert {c["model"] for c in found["cells"]} == {"a-small", "small"} and found["usd_per_hour"]["local/x"] == 0.05


def test_compare_refuses_a_model_that_there_is_not(ask: Any) -> None:
    refused = ask("compare", "cheap", "close", "--model", "smal").exception
    assert isinstance(refused, ConfigError) and "Did you mean small?" in str(refused)


def test_newer_results_of_others_do_not_keep_ours_from_the_export(tmp_path: Path) -> None:
    ours = run_rows("b", "x", cells(weights="real"))
    theirs = run_rows("a", "x", faster(2.0), cells(weights="real", source="somewhere"), later(1), sweep_id="s2")
    for rows in (theirs, ours):
        land(tmp_path, rows["server_runs"][0]["server_run_id"], rows)
    with open_lake(tmp_path) as lake:
        own, every = score_rows(lake), score_rows(lake, all_sources=True)
    assert len(own) == len(every) == 3 and checked(every)
    assert all(b["score"] == pytest.approx(2 * a["score"]) for a, b in zip(own, every, strict=True)), "the newest"


def test_a_score_of_a_gpu_server_that_its_cpus_made_says_so(tmp_path: Path) -> None:
    land(tmp_path, "a", run_rows("a", "x", cells(weights="real", cpu_fallback="fabric_manager")))
    land(tmp_path, "b", run_rows("b", "y", cells(weights="real")))
    with open_lake(tmp_path) as lake:
        notes = {r["resource_id"]: r["note"] for r in score_rows(lake)}
    assert notes["x"] is not None and "fabric_manager" in notes["x"] and notes["y"] is None
