"""Our results as rows of Spare Cores' `benchmark_score` table, so that they can go into its database.

Two layouts: `resource` is that of sparecores-crawler 0.10 (resource_type and resource_id, environment), `server` the
one before it (server_id, kernel_version). Both have the same score, config and times.
"""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from tasks.domain.errors import ConfigError
from tasks.lake import Lake, query

Layout = Literal["resource", "server"]
Row = dict[str, Any]
OURS = "tokensweep"
OWN_IDS = ("gcp", "hcloud")
"""Vendors whose server_id is not the name of the server type; `ids` translates."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "resource": (
        "vendor_id", "benchmark_id", "resource_type", "resource_id", "config", "framework_version", "environment",
        "score", "score_breakdown", "note", "status", "observed_at",
    ),
    "server": (
        "vendor_id", "server_id", "benchmark_id", "config", "framework_version", "kernel_version", "score",
        "score_breakdown", "note", "status", "observed_at",
    ),
}  # fmt: skip


def score_rows(
    lake: Lake,
    *,
    layout: Layout = "resource",
    ids: Mapping[tuple[str, str], str] | None = None,
    all_sources: bool = False,
) -> list[Row]:
    """The newest measurement of every cell with real weights; imported ones only with `all_sources`.

    `ids`: server_id by vendor and server type, for vendors where they differ.
    """
    sql = """
        FROM v_benchmark_score WHERE ? OR source = ?
        QUALIFY row_number() OVER (
            PARTITION BY vendor_id, server_id, benchmark_id, config ORDER BY observed_at DESC NULLS LAST, source
        ) = 1
        ORDER BY vendor_id, server_id, benchmark_id, config
    """
    return [_row(row, layout, ids or {}) for row in query(lake, sql, [all_sources, OURS]).to_dicts()]


def _row(found: Row, layout: Layout, ids: Mapping[tuple[str, str], str]) -> Row:
    server_id = ids.get((found["vendor_id"], found["server_id"]), found["server_id"])
    observed_at: datetime | None = found["observed_at"]
    kernel = found["kernel_version"]
    values = {
        **found,
        "server_id": server_id,
        "resource_type": "server",
        "resource_id": server_id,
        "config": json.loads(found["config"]),
        "environment": {"kernel_version": kernel} if kernel else None,
        "status": "active" if layout == "resource" else "ACTIVE",
        # Their column is UTC without a zone.
        "observed_at": observed_at.replace(tzinfo=None).isoformat() if observed_at else None,
    }
    return {name: values[name] for name in COLUMNS[layout]}


def read_ids(path: Path) -> dict[tuple[str, str], str]:
    """server_id by vendor and server from a CSV with the columns vendor, server, server_id. Raises ConfigError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {(row["vendor"], row["server"]): row["server_id"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as exc:
        raise ConfigError(
            f"The ids cannot be read from {path}: {exc}.",
            next_step="Give a CSV with the columns vendor,server,server_id.",
        ) from exc


def untranslated(rows: Iterable[Row]) -> int:
    """Rows of vendors with ids of their own whose server still has the name of its type: their id is a number."""
    return sum(
        row["vendor_id"] in OWN_IDS and not str(row.get("resource_id", row.get("server_id"))).isdigit() for row in rows
    )


def checked(rows: list[Row]) -> str:
    """Check every row, by the models of sparecores-crawler where it is installed; returns by what they were checked.

    Raises ConfigError naming the first row that does not fit.
    """
    try:
        tables: Any = importlib.import_module("sc_crawler.tables")
    except ImportError:
        tables = None
    keys: set[str] = set()
    for row in rows:
        missing = [n for n in ("vendor_id", "benchmark_id", "config", "score", "observed_at") if row.get(n) is None]
        key = json.dumps(
            [row["vendor_id"], row.get("resource_id", row.get("server_id")), row["benchmark_id"], row["config"]]
        )
        if missing or key in keys:
            fault = f"lacks {', '.join(missing)}" if missing else "has the key of another row"
            raise ConfigError(f"A row {fault}: {json.dumps(row)}.", next_step="Look at it in v_benchmark_score.")
        keys.add(key)
        if tables is not None:
            _check_by_model(tables.BenchmarkScore, row)
    return "the models of sparecores-crawler" if tables is not None else "the documented columns"


def _check_by_model(model: Any, row: Row) -> None:
    values = {name: value for name, value in row.items() if name in model.model_fields or name == "server_id"}
    values["status"] = str(values["status"]).lower()
    try:
        model.model_validate(values)
    except ValueError as exc:
        raise ConfigError(f"A row is not what sparecores-crawler takes: {exc}.", next_step=json.dumps(row)) from exc
