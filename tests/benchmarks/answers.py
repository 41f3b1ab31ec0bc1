"""How fast does the lake answer? Every view, the questions of a person, and the same questions on a SQLite file of the
predecessor's shape (benchmark_score with a JSON config, server_price), on lakes of made-up fleets; with
TOKENSWEEP_TRACES on the published results as well. And the report: built, and painted by a browser."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import polars as pl

from tasks.lake import Lake, open_lake, query
from tasks.lake.sparecores_land import import_sparecores
from tasks.lake.sql_catalogue import CATALOGUE
from tests.benchmarks.answers_report import measure_report
from tests.benchmarks.result import Result, Table
from tests.benchmarks.spread import spread
from tests.benchmarks.workbench import Workbench
from tests.lake_fleet import write_fleet

SMALL = (800, 1)
LARGE = (2000, 40)
"""Servers and sweeps: 52,800 cells, and 5,280,000."""

REPORT_SERVERS = 1600
"""105,600 cells."""

REPEATS = 5
MODEL, FILE = "llama-7b", "llama-7b.Q4_K_M.gguf"

# By question: SQL for the lake, SQL for SQLite.
QUESTIONS: dict[str, tuple[str, str]] = {
    "cheapest server at 10 tok/s": (
        f"SELECT vendor, server, price_usd_per_hour, tok_per_s FROM best_for_slo('{MODEL}', 'tg', 128, 10) LIMIT 20",
        f"""
        SELECT s.vendor_id, s.server_id, min(p.price) AS price, s.score FROM benchmark_score AS s
        JOIN server_price AS p ON p.vendor_id = s.vendor_id AND p.server_id = s.server_id
        WHERE s.benchmark_id = 'llm_speed:text_generation' AND json_extract(s.config, '$.model') = '{FILE}'
            AND json_extract(s.config, '$.tokens') = 128 AND s.score >= 10
        GROUP BY s.vendor_id, s.server_id ORDER BY price LIMIT 20
        """,
    ),
    "price against speed, frontier": (
        f"FROM pareto('{MODEL}', 'tg', 128)",
        f"""
        SELECT vendor_id, server_id, price, score, score > coalesce(max(score) OVER (
            ORDER BY price, score DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), -1) AS on_frontier
        FROM (SELECT s.vendor_id, s.server_id, min(p.price) AS price, s.score FROM benchmark_score AS s
            JOIN server_price AS p ON p.vendor_id = s.vendor_id AND p.server_id = s.server_id
            WHERE s.benchmark_id = 'llm_speed:text_generation' AND json_extract(s.config, '$.model') = '{FILE}'
                AND json_extract(s.config, '$.tokens') = 128 GROUP BY s.vendor_id, s.server_id)
        """,
    ),
    "servers per model": (
        "FROM v_models",
        """
        SELECT json_extract(config, '$.model') AS model, count(DISTINCT vendor_id || '/' || server_id)
        FROM benchmark_score GROUP BY 1
        """,
    ),
    "cells per server and model": (
        "SELECT vendor, server, model, count(*) FROM v_latest GROUP BY ALL",
        """
        SELECT vendor_id, server_id, json_extract(config, '$.model') AS model, count(*) FROM benchmark_score
        GROUP BY 1, 2, 3
        """,
    ),
}
EXTRA = {
    "compare two servers": "FROM compare('{a}', '{b}')",
    "USD per 1M tokens, three kinds": f"FROM token_cost('{MODEL}', 512, 128)",
    "drift of one server": "FROM drift('{a}')",
    "flags, counted": "SELECT flags, count(*) FROM v_trust GROUP BY 1",
    "coverage of a sweep": "FROM v_coverage WHERE sweep_id = (SELECT max(sweep_id) FROM server_runs)",
}


def run(bench: Workbench) -> Result:
    result = Result("answers")
    traces = os.environ.get("TOKENSWEEP_TRACES")
    if traces and not bench.quick:
        root = bench.scratch / "imported"
        import_sparecores(Path(traces), root, n_processes=len(os.sched_getaffinity(0)))
        _measure(result, bench, root, "published results", whole=True)
    for n_servers, n_sweeps in [SMALL] if bench.quick else [SMALL, LARGE]:
        root = bench.scratch / f"fleet-{n_servers}x{n_sweeps}"
        write_fleet(root, n_servers, n_sweeps=n_sweeps, samples=True)
        _measure(result, bench, root, "a made-up fleet", whole=(n_servers, n_sweeps) == SMALL)
        shutil.rmtree(root)
    measure_report(result, bench.scratch, REPORT_SERVERS // (10 if bench.quick else 1))
    return result


def _measure(result: Result, bench: Workbench, root: Path, what: str, *, whole: bool) -> None:
    began = time.perf_counter()
    with open_lake(root, documented=False) as lake:
        opened_s = time.perf_counter() - began
        n_cells, n_repeats = query(lake, "SELECT (SELECT count(*) FROM cells), (SELECT count(*) FROM samples)").row(0)
        title = f"{what}: {n_cells:,} cells, {n_repeats:,} repeats"
        _questions(result, lake, bench.scratch / f"predecessor-{n_cells}.sqlite", title, opened_s)
        _views(result, lake, title, whole=whole)


def _questions(result: Result, lake: Lake, file: Path, title: str, opened_s: float) -> None:
    a, b = query(lake, "SELECT DISTINCT vendor || '/' || server AS s FROM v_latest ORDER BY 1 LIMIT 2")["s"]
    sqlite = predecessor(lake, file)
    table = Table(
        f"questions, {title} (opening the lake: {opened_s * 1e3:.0f} ms)",
        ["question", "rows", "lake, ms", "SQLite, ms", "SQLite over lake"],
        [],
    )
    for name, (sql, theirs) in QUESTIONS.items():
        ours_s, n_rows = timed(partial(_rows, lake, sql, whole=True))
        theirs_s, _ = timed(partial(_fetched, sqlite, theirs))
        table.rows.append([name, f"{n_rows:,}", ms(ours_s), ms(theirs_s), f"{theirs_s[0] / ours_s[0]:.1f}"])
        result.raw[f"{title}: {name}"] = {"lake_s": ours_s, "sqlite_s": theirs_s}
    for name, template in EXTRA.items():
        sql = template.format(a=a, b=b)
        ours_s, n_rows = timed(partial(_rows, lake, sql, whole=True))
        table.rows.append([name, f"{n_rows:,}", ms(ours_s), "not asked", ""])
        result.raw[f"{title}: {name}"] = {"lake_s": ours_s}
    result.tables.append(table)
    slowest = max(float(row[2].split()[0]) for row in table.rows)
    result.findings.append(f"{title}: the slowest question takes {slowest:.0f} ms")
    sqlite.close()


def _views(result: Result, lake: Lake, title: str, *, whole: bool) -> None:
    """whole: all rows come into Python. Else DuckDB makes every column of every row, and counts them."""
    what = "all rows of each view" if whole else "each view, every column of all rows"
    table = Table(f"{what}, {title}", ["view", "rows", "ms"], [])
    slowest, slowest_s = "", 0.0
    for item in CATALOGUE:
        if item.kind != "VIEW":
            continue
        sql = f"FROM {item.name}" if whole else f"SELECT count(*), count(COLUMNS(*)) FROM {item.name}"
        took_s, n_rows = timed(partial(_rows, lake, sql, whole=whole), REPEATS if whole else 2)
        table.rows.append([item.name, f"{n_rows:,}", ms(took_s)])
        result.raw[f"{title}: {item.name}"] = took_s
        if took_s[0] > slowest_s:
            slowest, slowest_s = item.name, took_s[0]
    result.tables.append(table)
    result.findings.append(f"{title}: the slowest view takes {slowest_s * 1e3:.0f} ms ({slowest}; {what})")


def _fetched(sqlite: sqlite3.Connection, sql: str) -> int:
    return len(sqlite.execute(sql).fetchall())


def _rows(lake: Lake, sql: str, *, whole: bool) -> int:
    found = query(lake, sql)
    return found.height if whole else int(found.row(0)[0])


def timed(ask: Callable[[], int], repeats: int = REPEATS) -> tuple[tuple[float, float, float], int]:
    """Median, least and most of the seconds that it takes once it has been asked before, and its number of rows."""
    n_rows = ask()
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        ask()
        took.append(time.perf_counter() - began)
    found = spread(took)
    return (found.median, found.low, found.high), n_rows


def ms(took_s: tuple[float, float, float]) -> str:
    return f"{took_s[0] * 1e3:.0f} [{took_s[1] * 1e3:.0f} to {took_s[2] * 1e3:.0f}]"


def predecessor(lake: Lake, file: Path) -> sqlite3.Connection:
    """The same results as Spare Cores keeps them: the newest score per server and config, under its primary key."""
    con = sqlite3.connect(file)
    con.execute(
        "CREATE TABLE benchmark_score (vendor_id TEXT, server_id TEXT, benchmark_id TEXT, config TEXT,"
        " framework_version TEXT, kernel_version TEXT, score REAL, note TEXT, status TEXT, observed_at TEXT,"
        " PRIMARY KEY (vendor_id, server_id, benchmark_id, config))"
    )
    con.execute(
        "CREATE TABLE server_price (vendor_id TEXT, region_id TEXT, server_id TEXT, allocation TEXT, price REAL,"
        " currency TEXT, observed_at TEXT, PRIMARY KEY (vendor_id, region_id, server_id, allocation))"
    )
    scores = query(lake, "SELECT * FROM v_benchmark_score")
    con.executemany(
        "INSERT INTO benchmark_score VALUES (?, ?, ?, ?, ?, ?, ?, NULL, 'ACTIVE', ?)", _score_values(scores)
    )
    prices = query(
        lake,
        "SELECT vendor, place, server, 'ONDEMAND' AS a, min(CAST(price_usd_per_hour AS DOUBLE)) AS p, 'USD' AS c,"
        " CAST(max(started_at) AS VARCHAR) AS t FROM server_runs GROUP BY ALL",
    )
    con.executemany("INSERT OR REPLACE INTO server_price VALUES (?, ?, ?, ?, ?, ?, ?)", prices.rows())
    con.commit()
    con.execute("ANALYZE")
    return con


def _score_values(scores: pl.DataFrame) -> list[tuple[object, ...]]:
    names = ("vendor_id", "server_id", "benchmark_id", "config", "framework_version", "kernel_version", "score")
    return [
        (*row[:3], json.dumps(json.loads(row[3]), sort_keys=True), *row[4:], str(at))
        for row, at in zip(scores.select(names).rows(), scores["observed_at"].to_list(), strict=True)
    ]
