"""What the views and macros answer over landed runs, and over an empty lake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tasks.domain.cells import Cell
from tasks.lake import Lake, completed_servers, connect, land, measured_cells, open_lake, query, rows_from_events
from tasks.lake.describe import describe
from tasks.lake.schema import TABLES
from tasks.lake.sql_catalogue import CATALOGUE
from tests.unit.lake_runs import START_UNIX_S, finished_run, lost_run, make_context

ROOT = Path(__file__).resolve().parents[2]


def land_runs(root: Path) -> None:
    for run in (finished_run(), lost_run()):
        land(root, run[0].server_run_id, rows_from_events(*run))


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    root = tmp_path_factory.mktemp("lake")
    land_runs(root)
    with open_lake(root) as lake:
        yield lake


def dicts(lake: Lake, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    return query(lake, sql, parameters).to_dicts()


def test_an_empty_lake_answers_with_no_rows_and_all_types(tmp_path: Path, lake: Lake) -> None:
    with open_lake(tmp_path / "nothing") as empty:
        assert empty.problems == [] and not (tmp_path / "nothing").exists()
        for name in [t.name for t in TABLES] + [i.name for i in CATALOGUE if i.kind == "VIEW"]:
            found = query(empty, f"FROM {name}")
            assert found.height == 0 or name == "v_gpu_peaks", name
            assert found.schema == query(lake, f"FROM {name}").schema, name
        assert query(empty, "FROM best_for_slo('m', 'tg', 16, 1.0)").height == 0
        assert query(empty, "FROM compare('a', 'b')").height == 0
        assert measured_cells(empty, "s1") == {} and completed_servers(empty, "s1") == set()


def test_everything_is_documented_inside_the_database(lake: Lake) -> None:
    for name in [t.name for t in TABLES] + [i.name for i in CATALOGUE if i.kind == "VIEW"]:
        silent = lake.con.execute(
            "SELECT column_name FROM duckdb_columns() WHERE table_name = ? AND coalesce(comment, '') = ''", [name]
        ).fetchall()
        assert silent == [], f"{name} has columns without a comment"
    comments = dict(
        lake.con.execute(
            "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal "
            "UNION ALL SELECT table_name, comment FROM duckdb_tables() "
            "UNION ALL SELECT function_name, comment FROM duckdb_functions() WHERE NOT internal"
        ).fetchall()
    )
    assert all(comments[item.name] for item in CATALOGUE) and all(comments[t.name] for t in TABLES)
    (unit,) = lake.con.execute(
        "SELECT comment FROM duckdb_columns() WHERE table_name = 'v_speed' AND column_name = 'tok_per_s'"
    ).fetchall()
    assert unit[0].startswith("[tok/s] ")


def test_every_macro_parameter_is_documented() -> None:
    """A parameter named like a column would match every row, so all begin with p_."""
    for item in CATALOGUE:
        assert all(p.startswith("p_") and p in item.own for p in item.parameters), item.name


def test_every_sql_file_is_in_the_catalogue() -> None:
    files = {p.stem for p in (ROOT / "tasks" / "lake" / "sql").glob("*.sql")}
    assert files == {item.name for item in CATALOGUE}


def test_the_documentation_is_current() -> None:
    written = (ROOT / "docs" / "lake.md").read_text(encoding="utf-8")
    assert written == describe(), "run: python -m tasks.lake.describe > docs/lake.md"


def test_speed_is_the_closing_table(lake: Lake) -> None:
    rows = dicts(lake, "FROM v_speed WHERE server = 'cx22' ORDER BY model_bytes, task, n_tokens")
    assert [(r["model"], r["task"], r["n_tokens"]) for r in rows] == [
        (m, t, n) for m in ("small", "large") for t in ("pp", "tg") for n in (16, 128)
    ]
    first, second, _, gated = rows[:4]
    assert (first["tok_per_s"], first["half_width_pct"]) == (8.0, 0.0)
    # Rates 64, 64, 58.18: mean 62.06, sd 3.359, times 4.3027 / sqrt(3), over the mean.
    assert second["half_width_pct"] == pytest.approx(13.45, abs=0.01)
    assert (gated["tok_per_s"], gated["reason"]) == (None, "predicted_too_slow")


def test_coverage_counts_outcomes_and_names_the_main_reason(lake: Lake) -> None:
    rows = {(r["server"], r["model"]): r for r in dicts(lake, "FROM v_coverage")}
    small, large = rows["cx22", "small"], rows["cx22", "large"]
    assert (small["n_cells"], small["n_measured"], small["n_gated"]) == (4, 3, 1)
    assert (small["main_reason"], large["main_reason"]) == ("predicted_too_slow", "shorter_cell_too_slow")
    assert rows["cx32", "large"]["main_reason"] == "server_lost" and rows["cx32", "large"]["n_infeasible"] == 1


def test_failures_leave_out_what_was_gated_on_purpose(lake: Lake) -> None:
    rows = dicts(lake, "FROM v_failures")
    assert {r["server"] for r in rows} == {"cx32"}
    small = next(r for r in rows if r["model"] == "small")
    assert (small["reason"], small["n_cells"], small["cells"]) == ("server_lost", 3, "pp128 tg16 tg128")
    assert small["run_outcome"] == "interrupted"


def test_latest_has_one_row_per_cell_and_prefers_the_newest(tmp_path: Path) -> None:
    plan, lines, context = finished_run()
    land(tmp_path, "run-a", rows_from_events(plan, lines, context))
    later = [{**x, "unix_s": x["unix_s"] + 86400} for x in lines]
    for line in later:
        if line["kind"] == "Finished":
            line["results"] = [{**r, "samples_s": [s * 2 for s in r["samples_s"]]} for r in line["results"]]
    newer = replace(plan, sweep_id="s2", server_run_id="run-c")
    context = make_context(started_unix_s=START_UNIX_S + 86400 - 20, ended_unix_s=START_UNIX_S + 86400 + 80)
    land(tmp_path, "run-c", rows_from_events(newer, later, context))
    with open_lake(tmp_path) as lake:
        rows = dicts(lake, "SELECT task, n_tokens, sweep_id, tok_per_s_median FROM v_latest ORDER BY task, n_tokens")
        assert [(r["sweep_id"], r["tok_per_s_median"]) for r in rows] == [("s2", 4.0), ("s2", 32.0), ("s2", 8.0)]
        assert query(lake, "FROM v_cells WHERE outcome = 'measured'").height == 6


def test_cost(lake: Lake) -> None:
    rows = {r["server"]: r for r in dicts(lake, "FROM v_cost")}
    assert rows["cx22"]["cost_usd"] == Decimal("0.001") and rows["cx22"]["n_measured_here"] == 3
    assert rows["cx22"]["usd_per_measured_cell"] == pytest.approx(0.001 / 3)
    assert rows["cx22"]["bench_s"] == pytest.approx(34.3) and rows["cx22"]["bench_share"] == pytest.approx(0.343)
    assert rows["cx22"]["max_usd_share"] == pytest.approx(0.002)


def test_pipeline_compares_the_makespan_with_its_lower_bound(lake: Lake) -> None:
    (row,) = dicts(lake, "FROM v_pipeline WHERE server = 'cx22'")
    assert row["makespan_s"] == pytest.approx(39 - 1)
    assert row["lower_bound_s"] == pytest.approx(max(3 + 11 + 14.9, 3 + 19.4 + 14.9))
    assert row["tightness"] == pytest.approx(38 / 37.3) and row["guard_paused_s"] == pytest.approx(8)


def test_samples_downloads_phases_decisions(lake: Lake) -> None:
    ratios = query(
        lake, "SELECT duration_ratio FROM v_samples WHERE model = 'small' AND n_tokens = 128 AND server = 'cx22'"
    )
    assert sorted(ratios["duration_ratio"]) == [1.0, 1.0, pytest.approx(1.1)]
    (large,) = dicts(lake, "FROM v_downloads WHERE model = 'large' AND server = 'cx22'")
    assert large["paused_share"] == pytest.approx(8 / 19) and large["place"] == "here-1"
    (create,) = dicts(lake, "FROM v_phases WHERE name = 'create' AND server = 'cx22'")
    assert create["run_share"] == pytest.approx(0.15) and (create["ended_at"] - create["started_at"]).seconds == 15
    assert dicts(lake, "SELECT count(*) AS n FROM v_decisions WHERE server = 'cx22'") == [{"n": 3}]


def test_benchmark_score_has_the_columns_of_spare_cores(tmp_path: Path) -> None:
    plan, lines, context = finished_run()
    real = replace(plan, models=tuple(replace(m, weights="real") for m in plan.models))
    land(tmp_path, "run-a", rows_from_events(real, lines, context))
    with open_lake(tmp_path) as lake:
        rows = dicts(lake, "FROM v_benchmark_score ORDER BY benchmark_id, config")
    assert list(rows[0]) == [
        "vendor_id", "server_id", "benchmark_id", "config", "framework_version", "kernel_version", "score",
        "score_breakdown", "note", "status", "observed_at", "source",
    ]  # fmt: skip
    assert rows[1]["benchmark_id"] == "llm_speed:prompt_processing" and rows[2]["benchmark_id"].endswith("generation")
    assert rows[1]["config"] == '{"model": "small.Q4_K_M.gguf", "tokens": 16}' and rows[1]["score"] == 8.0
    assert rows[1]["kernel_version"] == "6.1.0" and rows[1]["framework_version"] == "0c1e570"


def test_random_weights_are_no_score(lake: Lake) -> None:
    assert query(lake, "FROM v_benchmark_score").height == 0


def test_usd_per_mtok(lake: Lake) -> None:
    rows = dicts(lake, "SELECT usd_per_mtok(0.36, 100) AS a, usd_per_mtok(0.36, 0) AS b, usd_per_mtok(NULL, 1) AS c")
    assert rows == [{"a": pytest.approx(1.0), "b": None, "c": None}]


def test_best_for_slo_is_cheapest_first(lake: Lake) -> None:
    rows = dicts(lake, "FROM best_for_slo('small', 'pp', 16, 8.0)")
    assert [(r["server"], r["tok_per_s"], r["sure"]) for r in rows] == [("cx22", 8.0, True), ("cx32", 16.0, True)]
    assert [r["server"] for r in dicts(lake, "FROM best_for_slo('small', 'pp', 16, 8.5)")] == ["cx32"]
    assert query(lake, "FROM best_for_slo('small', 'pp', 512, 1.0)").height == 0
    (unsure,) = dicts(lake, "FROM best_for_slo('small', 'pp', 128, 60.0)")
    assert unsure["sure"] is False


def test_compare_takes_names_with_and_without_vendor(lake: Lake) -> None:
    (row,) = dicts(lake, "FROM compare('cx22', 'local/cx32')")
    assert (row["task"], row["n_tokens"], row["b_over_a"], row["within_noise"]) == ("pp", 16, 2.0, False)
    (same, *_) = dicts(lake, "FROM compare('cx22', 'cx22')")
    assert same["b_over_a"] == 1.0 and same["within_noise"] is True


def test_an_interrupted_sweep_is_taken_up(tmp_path: Path) -> None:
    """The cells of the lost run go into the next plan, are carried over, and count once."""
    land_runs(tmp_path)
    with open_lake(tmp_path) as lake:
        measured = measured_cells(lake, "s1")
        assert measured["cx32"] == {Cell("small", "pp", 16): (1.0, 1.0)}
        assert measured["cx22"][Cell("small", "pp", 128)] == (2.0, 2.0, 2.2)
        assert completed_servers(lake, "s1") == {"cx22"} and completed_servers(lake, "s2") == set()
        assert measured_cells(lake, "s1", vendor="aws") == {} and set(measured_cells(lake, "s1", vendor="local")) == {
            "cx22",
            "cx32",
        }
    plan, lines, context = finished_run()
    again = replace(plan, server="cx32", server_run_id="run-b2", measured=tuple(measured["cx32"].items()))
    skipped = Cell("small", "pp", 16)
    rest = [x for x in lines if x.get("cell") != vars(skipped)]
    for line in rest:
        if line["kind"] == "Finished":
            line["results"][0]["samples_s"] = [1.0, 1.0]
    context = make_context(started_unix_s=START_UNIX_S + 1000, ended_unix_s=START_UNIX_S + 1100, attempt=2)
    rows = rows_from_events(again, rest, context)
    assert rows["server_runs"][0]["n_resumed"] == 1
    land(tmp_path, "run-b2", rows)
    with open_lake(tmp_path) as lake:
        assert completed_servers(lake, "s1") == {"cx22", "cx32"}
        assert measured_cells(lake, "s1")["cx32"][skipped] == (1.0, 1.0)
        (cell,) = dicts(
            lake, "FROM v_sweep_cells WHERE server = 'cx32' AND model = 'small' AND task = 'pp' AND n_tokens = 16"
        )
        assert (cell["server_run_id"], cell["resumed"]) == ("run-b", False)
        assert query(lake, "FROM v_sweep_cells WHERE server = 'cx32'").height == 8
        (cost,) = dicts(lake, "FROM v_cost WHERE server_run_id = 'run-b2'")
        assert cost["n_measured_here"] == 2


def test_times_are_utc_whatever_the_machine_says(lake: Lake) -> None:
    (row,) = dicts(lake, "SELECT started_at, hour(started_at) AS h FROM server_runs WHERE server_run_id = 'run-a'")
    assert isinstance(row["started_at"], datetime) and row["started_at"].hour == row["h"]
    assert row["started_at"].timestamp() == START_UNIX_S - 20


def test_connect_gives_the_same_views(tmp_path: Path) -> None:
    land_runs(tmp_path)
    con = connect(tmp_path)
    assert con.execute("SELECT count(*) FROM v_cells").fetchall() == [(16,)]
    con.close()
