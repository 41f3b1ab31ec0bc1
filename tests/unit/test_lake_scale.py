"""A lake of a thousand server runs: right counts; how long it takes is printed, not asserted."""

from __future__ import annotations

import time
from pathlib import Path

import polars as pl

from tasks.lake import land, open_lake, query, rows_from_events
from tests.unit.lake_runs import finished_run

N_RUNS = 1000


def test_a_thousand_runs(tmp_path: Path) -> None:
    plan, lines, context = finished_run()
    land(tmp_path, "run-a", rows_from_events(plan, lines, context))
    for table in ("server_runs", "cells"):
        first = tmp_path / table / "sweep=s1" / "run-a.parquet"
        frame = pl.read_parquet(first, hive_partitioning=False)
        for i in range(1, N_RUNS):
            named = frame.with_columns(server_run_id=pl.lit(f"run-{i}"), server=pl.lit(f"server-{i:04}"))
            named = named.with_columns(landed_rows=pl.lit('{"cells": 8}')) if table == "server_runs" else named
            named.write_parquet(first.with_name(f"run-{i}.parquet"))
    began = time.monotonic()
    with open_lake(tmp_path) as lake:
        took = {"open": time.monotonic() - began}
        assert lake.problems == []
        for sql, height in (
            ("FROM v_coverage", 2 * N_RUNS),
            ("FROM v_speed", 8 * N_RUNS),
            ("FROM v_latest", 3 * N_RUNS),
            ("FROM best_for_slo('small', 'pp', 16, 1.0)", N_RUNS),
            ("FROM compare('server-0001', 'server-0999')", 3),
        ):
            began = time.monotonic()
            assert query(lake, sql).height == height
            took[sql] = time.monotonic() - began
    print("\n" + "\n".join(f"{seconds:6.2f} s  {what}" for what, seconds in took.items()))
