"""What the report shows, from the lake to compact columns.

Cells are columns of numbers; everything that repeats (servers, runs, reasons, builds) is a list of its own and an
index.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import polars as pl

from tasks.lake import Lake, query
from tasks.lake.sql_catalogue import CATALOGUE

FLAGS = (
    "few_repeats", "wide_interval", "slow_first_repeat", "steal", "throttled", "download_active", "cpu_on_gpu_server",
    "above_roofline", "twin_disagreement", "drift", "price_unknown", "price_old", "random_weights",
    "cpu_fallback", "gpu_memory_unused", "anchor_drift", "burst",
)  # fmt: skip
"""Flags of v_trust; the report packs them into the bits of one number, in this order."""

MAX_DETAIL = 160

# Of one sweep v_trust is asked about its own cells alone, since a newer sweep may have measured the same ones.
_V_TRUST = next(item.sql for item in CATALOGUE if item.name == "v_trust")
_TRUST_OF_SWEEP = """(
WITH cells AS (SELECT * FROM main.cells WHERE sweep_id = $sweep_id), judged_cells AS (
{v_trust}
)
FROM judged_cells
)""".replace("{v_trust}", _V_TRUST.partition("CREATE VIEW v_trust AS")[2].strip().removesuffix(";"))

# The newest state of each cell: a measurement before none, the newer before the older.
_CELLS = """
WITH chosen AS (
    SELECT sweep_id, server_run_id, vendor, server, model, coalesce(weights, 'real') AS weights, task, n_tokens,
        outcome, reason, detail, model_bytes, n_params, quant, n_samples, tok_per_s_median, tok_per_s_mean,
        tok_per_s_ci95_high, tok_per_s_min, tok_per_s_max, first_repeat_ratio, steal_share, download_active,
        min_tok_per_s,
        predicted_high_tok_per_s, backend, build, ngl, n_threads, engine_commit, source, observed_at, run_started_at
    FROM v_cells
    WHERE CASE WHEN $sweep_id = '' THEN weights IS DISTINCT FROM 'simulated' ELSE sweep_id = $sweep_id END
    QUALIFY row_number() OVER (
        PARTITION BY vendor, server, model, weights, task, n_tokens
        ORDER BY outcome = 'measured' DESC, resumed, observed_at DESC NULLS LAST, run_started_at DESC
    ) = 1
)
SELECT c.*, coalesce(t.flags, s.flags) AS flags, coalesce(t.peak_share, s.peak_share) AS peak_share,
    coalesce(t.drift_ratio, s.drift_ratio) AS drift_ratio
FROM chosen AS c
LEFT JOIN v_trust AS t USING (sweep_id, server_run_id, model, task, n_tokens)
LEFT JOIN {trust_of_sweep} AS s USING (sweep_id, server_run_id, model, task, n_tokens)
ORDER BY c.vendor, c.server, c.model_bytes, c.model, c.task, c.n_tokens
"""

_RUNS = """
SELECT r.sweep_id, r.server_run_id, r.vendor, r.server, r.place, r.spot, CAST(r.price_usd_per_hour AS DOUBLE) AS usd,
    r.price_read_at, r.started_at, r.outcome, r.reason, r.detail, CAST(r.cost_usd AS DOUBLE) AS cost, r.billed_s,
    t.throttled_share, h.arch, h.cpu_model, h.n_cpus, h.n_cores, h.memory_total_bytes, h.gpu_model, h.n_gpus,
    h.vram_total_bytes, h.kernel, h.is_virtual
FROM server_runs AS r
LEFT JOIN hardware AS h USING (sweep_id, server_run_id)
LEFT JOIN v_throttling AS t USING (sweep_id, server_run_id)
"""


def report_data(lake: Lake, sweep_id: str = "") -> dict[str, Any]:
    """Everything the page needs, ready for JSON. Times are days since 1970, shares are percent."""
    cells = query_named(lake, _CELLS.replace("{trust_of_sweep}", _TRUST_OF_SWEEP if sweep_id else "v_trust"), sweep_id)
    runs = _indexed(query(lake, _RUNS), cells)
    cells = cells.join(runs.select("sweep_id", "server_run_id", "run"), on=["sweep_id", "server_run_id"], how="left")
    models = _models(cells)
    cells = cells.join(models.select("model", "weights", "m"), on=["model", "weights"], how="left")
    return {
        "generated": datetime.now(UTC).isoformat(timespec="seconds"),
        "sweep": sweep_id,
        "flags": FLAGS,
        "models": models.drop("m").to_dict(as_series=False),
        "runs": _run_columns(runs),
        "cells": _cell_columns(cells),
        "spend": _plain(lake, "FROM v_spend", sweep_id),
        "teardown": _plain(lake, "FROM v_teardown", sweep_id),
        "leaks": _plain(lake, "SELECT sweep_id, vendor, kind, name, state, open_s, usd_so_far FROM v_leaks", sweep_id),
        "gates": _plain(lake, "SELECT sweep_id, reason, count(*) AS n_cells, sum(spared_s) / 3600 AS spared_h,"
                              " sum(spared_usd) AS spared_usd, count(*) FILTER (near_miss) AS n_near"
                              " FROM v_gates GROUP BY ALL ORDER BY sweep_id, n_cells DESC", sweep_id),
        "problems": [] if sweep_id else query(lake, "FROM v_problems LIMIT 200").to_dicts(),
    }  # fmt: skip


def query_named(lake: Lake, sql: str, sweep_id: str) -> pl.DataFrame:
    return query(lake, sql.replace("$sweep_id", "?"), [sweep_id] * sql.count("$sweep_id"))


def _indexed(runs: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    """The runs that show a cell, numbered."""
    shown = cells.select("sweep_id", "server_run_id").unique()
    kept = runs.join(shown, on=["sweep_id", "server_run_id"], how="semi").sort("vendor", "server", "started_at")
    return kept.with_row_index("run")


def _models(cells: pl.DataFrame) -> pl.DataFrame:
    by_size = cells.group_by("model", "weights").agg(
        pl.col("model_bytes").max().alias("bytes"), pl.col("n_params").max().alias("params"), pl.col("quant").first()
    )
    return by_size.sort("bytes", "model", "weights", nulls_last=True).with_row_index("m")


def _days(name: str) -> pl.Expr:
    return (pl.col(name).dt.timestamp("ms") / 86_400_000).round(2)


def _run_columns(runs: pl.DataFrame) -> dict[str, Any]:
    frame = runs.select(
        "vendor", "server", "place", "spot", "usd", _days("price_read_at").alias("price_day"), "sweep_id",
        "server_run_id", _days("started_at").alias("day"), "outcome", "reason", "cost", "arch", "cpu_model", "n_cpus",
        "n_cores", pl.col("memory_total_bytes").alias("memory"), "gpu_model", "n_gpus",
        pl.col("vram_total_bytes").alias("vram"), "kernel",
        (pl.col("throttled_share") * 100).round(1).alias("throttled"),
    )  # fmt: skip
    return _packed(
        frame, ("vendor", "place", "sweep_id", "outcome", "reason", "arch", "cpu_model", "gpu_model", "kernel")
    )


def _cell_columns(cells: pl.DataFrame) -> dict[str, Any]:
    flag_bits = sum(
        (
            (pl.col("flags").fill_null("").str.split(" ").list.contains(flag)).cast(pl.Int32) * (1 << bit)
            for bit, flag in enumerate(FLAGS)
        ),
        start=pl.lit(0, dtype=pl.Int32),
    )
    measured = pl.col("outcome") == "measured"
    frame = cells.select(
        pl.col("run").alias("x"),
        "m",
        (pl.col("task") == "tg").cast(pl.Int8).alias("t"),
        pl.col("n_tokens").alias("n"),
        "outcome",
        "reason",
        pl.when(~measured).then(pl.col("detail").str.slice(0, MAX_DETAIL)).alias("detail"),
        pl.col("tok_per_s_median").round_sig_figs(4).alias("v"),
        ((pl.col("tok_per_s_ci95_high") / pl.col("tok_per_s_mean") - 1) * 100).round_sig_figs(2).alias("h"),
        (pl.col("tok_per_s_mean") / pl.col("tok_per_s_median")).round_sig_figs(4).alias("mr"),
        pl.col("tok_per_s_min").round_sig_figs(4).alias("lo"),
        pl.col("tok_per_s_max").round_sig_figs(4).alias("hi"),
        pl.col("n_samples").alias("k"),
        flag_bits.alias("f"),
        (pl.col("steal_share") * 100).round_sig_figs(2).alias("st"),
        pl.col("download_active").cast(pl.Int8).alias("dl"),
        pl.col("first_repeat_ratio").round(2).alias("fr"),
        (pl.col("peak_share") * 100).round(0).cast(pl.Int32).alias("pk"),
        pl.when(~measured).then(pl.col("predicted_high_tok_per_s").round_sig_figs(3)).alias("ph"),
        pl.when(~measured).then(pl.col("min_tok_per_s")).alias("g"),
        pl.concat_str(
            [
                pl.col("backend").fill_null("?"),
                pl.col("build").fill_null("?"),
                pl.concat_str([pl.lit("ngl "), pl.col("ngl").cast(pl.String)]).fill_null(""),
                pl.concat_str([pl.col("n_threads").cast(pl.String), pl.lit(" threads")]).fill_null(""),
                pl.col("engine_commit").fill_null(""),
                pl.col("source").fill_null(""),
            ],
            separator="|",
        ).alias("how"),
        _days("observed_at").round(0).cast(pl.Int32).alias("d"),
    )
    return _packed(frame, ("outcome", "reason", "detail", "how"))


def _packed(frame: pl.DataFrame, texts: tuple[str, ...]) -> dict[str, Any]:
    """Columns by name; a text column becomes {"of": distinct values, "i": indices}."""
    packed: dict[str, Any] = {}
    for name in frame.columns:
        column = frame[name]
        if name in texts:
            distinct = column.drop_nulls().unique().sort()
            number = dict(zip(distinct.to_list(), range(len(distinct)), strict=True))
            packed[name] = {"of": distinct.to_list(), "i": [number.get(value, -1) for value in column.to_list()]}
        elif column.null_count() == len(column):
            packed[name] = None
        else:
            packed[name] = [int(v) if isinstance(v, float) and v.is_integer() else v for v in column.to_list()]
    return packed


def _plain(lake: Lake, sql: str, sweep_id: str) -> list[dict[str, Any]]:
    """Rows of a small view, of one sweep where one is asked for, as JSON takes them."""
    rows = query(lake, f"SELECT * FROM ({sql}) WHERE ? = '' OR sweep_id = ?", [sweep_id, sweep_id]).to_dicts()  # noqa: S608
    return [
        {
            name: value.isoformat() if isinstance(value, datetime) else float(value) if _is_decimal(value) else value
            for name, value in row.items()
        }
        for row in rows
    ]


def _is_decimal(value: Any) -> bool:
    return type(value).__name__ == "Decimal"
