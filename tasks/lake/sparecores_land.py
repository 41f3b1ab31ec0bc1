"""Imported runs become files of the lake: one file per table and vendor, replaced by the next import.

The rows say where they come from: `cells.source` names the repository, `server_runs.detail` its address and licence,
`server_runs.methodology_version` 0 keeps them apart from our own numbers.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from tasks.domain.cells import OUTCOME_OF, Cell, Outcome, Reason
from tasks.domain.classic import CLASSIC_MIN_TOK_PER_S
from tasks.domain.errors import ConfigError
from tasks.domain.stats import median, summarize
from tasks.lake.columns import SCHEMA_VERSION, Table
from tasks.lake.foreign import as_column, as_usd
from tasks.lake.location import run_file
from tasks.lake.objects import RemoteLake, writable_folder
from tasks.lake.schema import CELLS, DOWNLOADS, HARDWARE, SAMPLES, SERVER_RUNS
from tasks.lake.sparecores import (
    DATA_LICENCE,
    METHODOLOGY_OF_OTHERS,
    MODELS,
    SOURCE,
    SOURCE_URL,
    SWEEP_ID,
    VENDOR_NAMES,
    ImportReport,
    PublishedCell,
    PublishedRun,
)
from tasks.lake.sparecores_layout import read_server, server_folders
from tasks.lake.sparecores_tables import has_tables, read_tables
from tasks.lake.writer import write_parquet

Rows = dict[str, list[dict[str, Any]]]
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_FILE = {m.name: m for m in MODELS}
_ROW_COLUMNS = {
    "n_threads": "n_threads",
    "backend": "backends",
    "ngl": "n_gpu_layers",
    "engine_commit": "build_commit",
    "engine_build_number": "build_number",
    "n_batch": "n_batch",
    "n_ubatch": "n_ubatch",
    "cache_type_k": "type_k",
    "cache_type_v": "type_v",
    "n_params": "model_n_params",
}
TABLES = (CELLS, SAMPLES, DOWNLOADS, HARDWARE, SERVER_RUNS)


def import_sparecores(
    root: Path, lake_root: str | Path | RemoteLake, *, n_processes: int = 1, all_runs: bool = False
) -> ImportReport:
    """Put the results under `root` (the repository's layout, or its Parquet tables) into the lake.

    `all_runs`: of tables, the earlier runs of each server as well; the repository's layout has the newest alone.
    A second import replaces the files of the first. Raises ConfigError where there is neither; damage inside is
    counted in the report and never raises.
    """
    folders = [] if has_tables(root) else server_folders(root)
    if not folders and not has_tables(root):
        raise ConfigError(
            f"{root} holds no results of Spare Cores.",
            next_step=f"Give a clone of {SOURCE_URL} (data/<vendor>/<server>/llm), or the folder of its trace tables.",
        )
    with writable_folder(lake_root) as folder:
        report = _import_layout(folders, folder, n_processes) if folders else _import_tables(root, folder, all_runs)
        if isinstance(lake_root, RemoteLake):
            lake_root.push([path for table in TABLES for path in _files(folder, table)])
    return report


def _files(folder: Path, table: Table) -> list[Path]:
    """The imported files of a table; TABLES has the one that commits them last."""
    return sorted(run_file(folder, table, SWEEP_ID, SWEEP_ID).parent.glob(f"{SWEEP_ID}-*.parquet"))


def _import_tables(root: Path, lake: Path, all_runs: bool) -> ImportReport:
    damage: Counter[str] = Counter()
    by_vendor: dict[str, list[PublishedRun]] = {}
    for run in read_tables(root, damage, latest_only=not all_runs):
        by_vendor.setdefault(run.vendor, []).append(run)
    report = ImportReport()
    for vendor, runs in by_vendor.items():
        report.add(_land(lake, vendor, runs, len({run.server for run in runs})))
    report.unreadable.update(damage)
    return report


def _import_layout(folders: Sequence[Path], lake: Path, n_processes: int) -> ImportReport:
    by_vendor: dict[str, list[Path]] = {}
    for path in folders:
        by_vendor.setdefault(path.parent.name, []).append(path)
    work = sorted(((vendor, paths, lake) for vendor, paths in by_vendor.items()), key=lambda w: -len(w[1]))
    report = ImportReport()
    if n_processes <= 1 or len(work) == 1:
        for one in work:
            report.add(_import_vendor(one))
        return report
    with ProcessPoolExecutor(n_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for part in pool.map(_import_vendor, work):
            report.add(part)
    return report


def _import_vendor(work: tuple[str, list[Path], Path]) -> ImportReport:
    vendor, folders, lake = work
    damage: Counter[str] = Counter()
    runs = [run for run in (read_server(path, damage) for path in folders) if run is not None]
    damage["servers without anything to read"] += len(folders) - len(runs)
    report = _land(lake, vendor, runs, len(folders))
    report.unreadable.update(+damage)
    return report


def _land(lake: Path, vendor: str, runs: Iterable[PublishedRun], n_servers: int) -> ImportReport:
    """Write one vendor's files; its server_runs come last, as with every landing."""
    rows: Rows = {table.name: [] for table in TABLES}
    imported_at = datetime.now(UTC).date().isoformat()
    for run in runs:
        for name, some in _rows(run, imported_at).items():
            rows[name] += some
    for table in TABLES:
        if rows[table.name]:
            write_parquet(run_file(lake, table, SWEEP_ID, f"{SWEEP_ID}-{vendor}"), _frame(table, rows[table.name]))
    return ImportReport(
        n_servers=n_servers,
        n_runs=len(rows[SERVER_RUNS.name]),
        n_cells=len(rows[CELLS.name]),
        n_measured=sum(row["outcome"] == Outcome.MEASURED.value for row in rows[CELLS.name]),
        n_samples=len(rows[SAMPLES.name]),
    )


def _frame(table: Table, rows: list[dict[str, Any]]) -> pl.DataFrame:
    """All columns of the table; those that nobody filled are null."""
    given = {c.name: c.dtype for c in table.columns if c.name in rows[0]}
    frame = pl.DataFrame(rows, schema=given, orient="row", strict=True)
    missing = [pl.lit(None, dtype=c.dtype).alias(c.name) for c in table.columns if c.name not in given]
    return frame.with_columns(missing).select([c.name for c in table.columns])


def run_id(run: PublishedRun) -> str:
    """Stable for a run: a second import gives the same id."""
    return f"{SWEEP_ID}-{run.vendor}-{_UNSAFE.sub('_', run.server)}-{run.started_at:%Y%m%dT%H%M%S}"


def _rows(run: PublishedRun, imported_at: str) -> Rows:
    head = {
        "sweep_id": SWEEP_ID,
        "server_run_id": run_id(run),
        "vendor": VENDOR_NAMES.get(run.vendor, run.vendor),
        "server": run.server,
        "schema_version": SCHEMA_VERSION,
    }
    cells = [{**head, **_cell(run, cell, found)} for cell, found in run.cells.items()]
    return {
        SERVER_RUNS.name: [{**head, **_server_run(run, imported_at)}],
        CELLS.name: cells,
        SAMPLES.name: [{**head, **row} for cell, found in run.cells.items() for row in _samples(cell, found)],
        DOWNLOADS.name: [{**head, **row} for row in _downloads(run)],
        HARDWARE.name: [{**head, **_hardware(run)}] if run.hardware else [],
    }


def _server_run(run: PublishedRun, imported_at: str) -> dict[str, Any]:
    counts = Counter(OUTCOME_OF[c.reason] for c in run.cells.values())
    seconds = (run.ended_at - run.started_at).total_seconds() if run.ended_at else None
    cost = None
    if seconds is not None and run.price_usd_per_hour is not None and run.ran:
        cost = float(run.price_usd_per_hour) * max(0.0, seconds) / 3600
    outcome = "completed" if counts[Outcome.MEASURED] else "failed"
    said = f"; {run.error}" if run.error else ""
    return {
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "region": run.region or None,
        "outcome": outcome,
        "reason": "complete" if outcome == "completed" else Reason.SERVER_FAILED.value,
        "detail": f"imported on {imported_at} from {SOURCE_URL}, {DATA_LICENCE}; exit code {run.exit_code}{said}"[:500],
        "price_usd_per_hour": as_usd(run.price_usd_per_hour),
        "price_source": run.price_source or None,
        "billed_s": seconds if run.ran else None,
        "cost_usd": as_usd(cost),
        "policy": "classic",
        "engine": "llama.cpp",
        "engine_commit": run.engine_commit or None,
        "methodology_version": METHODOLOGY_OF_OTHERS,
        "n_cells": len(run.cells),
        "n_resumed": 0,
        **{f"n_{o.value}": counts[o] for o in Outcome},
    }


def _cell(run: PublishedRun, cell: Cell, found: PublishedCell) -> dict[str, Any]:
    started_at = None if found.started_s is None else run.started_at + timedelta(seconds=found.started_s)
    row: dict[str, Any] = {
        "model": cell.model,
        "model_file": _FILE[cell.model].file,
        "model_bytes": _FILE[cell.model].bytes,
        "weights": "real",
        "task": cell.task,
        "n_tokens": cell.n_tokens,
        "outcome": OUTCOME_OF[found.reason].value,
        "reason": found.reason.value,
        "detail": found.detail or None,
        "source": SOURCE,
        "resumed": False,
        "started_at": started_at,
        "observed_at": run.ended_at or started_at,
        "n_samples": len(found.samples_s),
        "n_repeats_planned": 5,
        "min_tok_per_s": CLASSIC_MIN_TOK_PER_S[cell.task][cell.n_tokens],
        "bench_row_json": found.row_text or None,
        **dict.fromkeys(_SPEEDS),
        **{name: as_column(CELLS.column(name), found.row.get(key)) for name, key in _ROW_COLUMNS.items()},
    }
    if found.samples_s:
        speed = summarize(found.samples_s, cell.n_tokens)
        row.update({f"tok_per_s_{name}": getattr(speed, name) for name in _STATISTICS})
        if len(found.samples_s) > 2:
            row["first_repeat_ratio"] = found.samples_s[0] / median(found.samples_s[1:])
    return row


_STATISTICS = ("median", "mean", "sd", "cv", "ci95_low", "ci95_high", "min", "max")
_SPEEDS = (*(f"tok_per_s_{name}" for name in _STATISTICS), "first_repeat_ratio")


def _samples(cell: Cell, found: PublishedCell) -> Iterator[dict[str, Any]]:
    for k, duration_s in enumerate(found.samples_s, 1):
        yield {
            "model": cell.model,
            "task": cell.task,
            "n_tokens": cell.n_tokens,
            "k": k,
            "duration_s": duration_s,
            "tok_per_s": cell.n_tokens / duration_s,
            "source": "row",
        }


def _downloads(run: PublishedRun) -> Iterator[dict[str, Any]]:
    attempts: Counter[str] = Counter()
    for download in run.downloads:
        attempts[download.model] += 1
        ended = run.started_at + timedelta(seconds=download.ended_s or 0.0)
        yield {
            "model": download.model,
            "attempt": attempts[download.model],
            "url_host": "huggingface.co",
            "bytes_total": download.n_bytes,
            "bytes": download.n_bytes,
            "bytes_resumed": 0,
            "started_at": ended - timedelta(seconds=download.seconds),
            "ended_at": None if download.ended_s is None else ended,
            "seconds": download.seconds,
            "paused_s": 0.0,
            "bytes_per_s": download.n_bytes / download.seconds if download.seconds > 0 else None,
            "outcome": "finished",
        }


def _hardware(run: PublishedRun) -> dict[str, Any]:
    known = {c.name: as_column(c, run.hardware.get(c.name)) for c in HARDWARE.own_columns if c.name != "hardware_json"}
    text = repr(sorted(run.hardware.items()))
    return {**known, "fingerprint_sha256": hashlib.sha256(text.encode()).hexdigest(), "hardware_json": "{}"}
