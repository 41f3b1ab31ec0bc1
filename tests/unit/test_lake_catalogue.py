"""Every view and macro, one after the other, over one lake of landed runs: documented, and it answers with rows.

What each answers is tested by hand-made cases in test_lake_views and test_lake_questions; here none can be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tasks.lake import Lake, land, open_lake, query, rows_from_events
from tasks.lake.schema import TABLES
from tasks.lake.sql_catalogue import CATALOGUE
from tests.unit.lake_runs import lost_run
from tests.unit.test_lake_questions import cells, faster, gpu, later, priced, run_rows

Row = dict[str, Any]
Check = Callable[[list[Row]], bool]

# By view: how many rows at least, and what holds of them.
VIEWS: dict[str, tuple[int, Check]] = {
    "v_server_runs": (5, lambda rows: all(r["run_s"] > 0 for r in rows)),
    "v_cells": (40, lambda rows: all(r["place"] for r in rows)),
    "v_sweep_cells": (40, lambda rows: len({(r["sweep_id"], r["server"], r["model"], r["task"], r["n_tokens"])
                                             for r in rows}) == len(rows)),
    "v_samples": (12, lambda rows: all(0.5 < r["duration_ratio"] < 2 for r in rows if r["server"] == "gpu")),
    "v_latest": (9, lambda rows: all(r["outcome"] == "measured" for r in rows)),
    "v_speed": (40, lambda rows: any(r["tok_per_s"] == 64.0 for r in rows) and any(r["reason"] != "ok" for r in rows)),
    "v_coverage": (10, lambda rows: all(r["n_measured"] < r["n_cells"] and r["main_reason"] for r in rows)),
    "v_failures": (1, lambda rows: {r["run_outcome"] for r in rows} == {"interrupted"}),
    "v_decisions": (5, lambda rows: {r["policy"] for r in rows} != {None}),
    "v_downloads": (5, lambda rows: all(r["bytes_moved"] >= 0 for r in rows)),
    "v_phases": (5, lambda rows: all(r["run_share"] >= 0 for r in rows)),
    "v_pipeline": (1, lambda rows: any(r["tightness"] and r["tightness"] >= 1 for r in rows)),
    "v_cost": (5, lambda rows: all(r["cost_usd"] > 0 for r in rows)),
    "v_spend": (2, lambda rows: sum(r["n_runs"] for r in rows) == 5),
    "v_prices": (4, lambda rows: {r["price_usd_per_hour"] for r in rows} >= {Decimal("0.06"), Decimal("0.5")}),
    "v_models": (2, lambda rows: {r["model"] for r in rows} == {"small", "large"}),
    "v_gates": (1, lambda rows: all(r["spared_s"] > 0 for r in rows)),
    "v_leaks": (1, lambda rows: {r["server"] for r in rows} == {"fast"}),
    "v_teardown": (2, lambda rows: sum(r["n_open"] for r in rows) == 1),
    "v_gpu_peaks": (20, lambda rows: all(r["peak_flop_per_s"] > 1e12 for r in rows)),
    "v_hardware": (5, lambda rows: {r["gpu_read_bytes_per_s"] for r in rows} == {None, 300.1e9}),
    "v_roofline": (9, lambda rows: {r["on_gpu"] for r in rows} == {True, False}),
    "v_scaling": (9, lambda rows: {r["unit"] for r in rows} == {"cpu", "gpu"}),
    "v_drift": (3, lambda rows: {r["changed"] for r in rows} == {"engine"} and {r["ratio"] for r in rows} == {0.5}),
    "v_throttling": (1, lambda rows: all(r["throttled_share"] == 1 for r in rows)),
    "v_trust": (9, lambda rows: {f for r in rows for f in r["flags"].split()} >= {"drift", "throttled"}),
    "v_benchmark_score": (9, lambda rows: all(r["benchmark_id"].startswith("llm_speed:") for r in rows)),
    "v_problems": (1, lambda rows: {r["kind"] for r in rows} == {"damaged"}),
}  # fmt: skip

# By macro: the question, and what holds of its rows.
MACROS: dict[str, tuple[str, Check]] = {
    "usd_per_mtok": ("SELECT usd_per_mtok(0.7, 57.9) AS x", lambda rows: abs(rows[0]["x"] - 3.358) < 0.001),
    "usd_per_mtok_blended": (
        "SELECT usd_per_mtok_blended(0.36, 100, 10, 500, 100) AS x", lambda rows: abs(rows[0]["x"] - 2.5) < 1e-9,
    ),
    "energy_usd_per_hour": ("SELECT energy_usd_per_hour(250, 0.16) AS x", lambda rows: abs(rows[0]["x"] - 0.04) < 1e-9),
    "break_even_h": ("SELECT break_even_h(10000, 1.65, 250, 0.16) AS x", lambda rows: round(rows[0]["x"]) == 6211),
    "parity_rent_usd_per_hour": (
        "SELECT parity_rent_usd_per_hour(1000, 0, 0, 1000, 2) AS x", lambda rows: rows[0]["x"] == 2,
    ),
    "ownership_roi": ("SELECT ownership_roi(1000, 1, 0, 0, 2000) AS x", lambda rows: rows[0]["x"] == 1),
    "roofline_tok_per_s": ("SELECT roofline_tok_per_s(1e9, 3e11) AS x", lambda rows: rows[0]["x"] == 300),
    "ran_on_gpu": (
        "SELECT ran_on_gpu(1, 'CUDA', -1) AS a, ran_on_gpu(1, 'CPU', -1) AS b, ran_on_gpu(0, 'CUDA', -1) AS c",
        lambda rows: rows == [{"a": True, "b": False, "c": False}],
    ),
    "roofline_needed": (
        "SELECT roofline_needed('tg', 10, 4e9, 7e9, 'llama') AS tg, roofline_needed('pp', 10, 4e9, 7e9, 'llama') AS pp",
        lambda rows: rows == [{"tg": 3.6e10, "pp": 1.4e11}],
    ),
    "roofline_peak": (
        "SELECT roofline_peak('tg', false, 0, NULL, NULL, 2e10, 1e6, 4e9) AS cpu,"
        " roofline_peak('pp', true, 2, 1e12, 3e11, 2e10, 1e6, 4e9) AS gpus",
        lambda rows: rows == [{"cpu": 2e10, "gpus": 2e12}],
    ),
    "best_for_slo": ("FROM best_for_slo('small', 'tg', 16, 1)", lambda rows: rows[0]["server"] == "cheap"),
    "best_for_slo_at": (
        "FROM best_for_slo_at('small', 'tg', 16, 1, '2100-01-01')", lambda rows: rows[0]["server"] == "cheap",
    ),
    "pareto": ("FROM pareto('small', 'tg', 16)", lambda rows: any(r["on_frontier"] for r in rows)),
    "compare": ("FROM compare('cheap', 'fast')", lambda rows: len(rows) == 3),
    "token_cost": (
        "FROM token_cost('small', 16, 16)", lambda rows: {r["kind"] for r in rows} == {"prompt", "output", "blended"},
    ),
    "fits": ("FROM fits('small')", lambda rows: {r["server"] for r in rows} >= {"cheap", "fast", "gpu"}),
    "what_if_gate": ("FROM what_if_gate(0.5)", lambda rows: len(rows) > 0),
    "drift": ("FROM drift('cheap')", lambda rows: len(rows) == 3),
    "own_or_rent": (
        "FROM own_or_rent('small', 'tg', 16, 16, 1000, 100, 0.2)", lambda rows: all(r["break_even_h"] for r in rows),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """Two sweeps of three servers: one drifted, one with a GPU that is slowed down, one left behind; one lost; and a
    file that is no Parquet."""
    root = tmp_path_factory.mktemp("lake")
    left = run_rows("b", "fast", priced("0.5"), faster(3.0), cells(weights="real"))
    left["resources"][0].update(gone_at=None, state="deleting")
    hot = run_rows("c", "gpu", priced("0.9"), gpu(), cells(weights="real", backend="CUDA", ngl=99))
    for reading in hot["telemetry"]:
        reading.update(gpu_busy_share=0.9, gpu_throttle_reasons=0x40)
    newer = run_rows(
        "d", "cheap", priced("0.06"), faster(0.5), later(40), cells(weights="real", engine_commit="new"), sweep_id="s2"
    )
    first = run_rows("a", "cheap", priced("0.05"), cells(weights="real"))
    for rows in (first, left, hot, newer, rows_from_events(*lost_run())):
        land(root, rows["server_runs"][0]["server_run_id"], rows)
    (root / "cells" / "sweep=s1" / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    with open_lake(root) as lake:
        yield lake


def test_each_view_and_macro_has_a_case() -> None:
    """Here, or in a test of its own where the rows that it needs are."""
    assert {*VIEWS, *MACROS} <= {item.name for item in CATALOGUE}
    others = [p.read_text(encoding="utf-8") for p in Path(__file__).parent.glob("test_*.py") if p != Path(__file__)]
    for item in CATALOGUE:
        if item.name not in VIEWS and item.name not in MACROS:
            assert any(item.name in text for text in others), f"{item.name} has no test"


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_answers_with_rows(lake: Lake, name: str) -> None:
    least, holds = VIEWS[name]
    rows = query(lake, f"FROM {name}").to_dicts()
    assert len(rows) >= least and holds(rows), rows[:3]


@pytest.mark.parametrize("name", MACROS)
def test_a_macro_answers_with_rows(lake: Lake, name: str) -> None:
    sql, holds = MACROS[name]
    rows = query(lake, sql).to_dicts()
    assert rows and holds(rows), rows[:3]


def test_every_comment_is_in_the_database(lake: Lake) -> None:
    sources = ("duckdb_views() WHERE NOT internal", "duckdb_tables()", "duckdb_functions() WHERE NOT internal")
    names = ("view_name", "table_name", "function_name")
    told: dict[str, str] = {}
    for name, source in zip(names, sources, strict=True):
        told.update(lake.con.execute(f"SELECT {name}, comment FROM {source}").fetchall())
    for item in CATALOGUE:
        assert len(told[item.name] or "") > 30, f"{item.name} has no COMMENT"
    assert all(told[table.name] for table in TABLES)


def test_a_macro_says_what_its_parameters_are() -> None:
    for item in CATALOGUE:
        assert all(item.own[p].comment for p in item.parameters), item.name


def test_every_column_is_documented(lake: Lake) -> None:
    """A view that takes over columns of a table documents each of them, its units first."""
    silent = lake.con.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND coalesce(comment, '') = ''"
        " AND table_name <> 'lake_problems'"
    ).fetchall()
    assert silent == []
