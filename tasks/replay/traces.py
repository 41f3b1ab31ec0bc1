"""Recorded runs from the Parquet trace tables of a sweep (`runs`, `downloads`, `benches`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from tasks.domain.cells import Cell
from tasks.domain.errors import ConfigError
from tasks.lake.sparecores import MODEL_OF_FILE, SOURCE, cache_bytes, cpu_that_ran
from tasks.lake.sparecores_tables import has_tables
from tasks.replay.recorded import FAILED, OK, TIMED_OUT, UNTRIED, RecordedCall, RecordedModel, RecordedRun

KEY = ("vendor", "server", "run")
_MIB = 2**20
_STATUS = {"ok": OK, "timed_out": TIMED_OUT, "failed": FAILED}
DEFAULT_RATE_BYTES_PER_S = 50e6
"""For a run in which no download was ever finished."""

MAX_LAG_S = 10.0
LATE = 1.02
"""A download that was waited for in vain would have come this much later than the wait ended."""


def read_traces(folder: Path, *, latest_only: bool = True) -> list[RecordedRun]:
    """Every run that ran and whose clocks agree, the newest of each server unless told otherwise.

    Raises ConfigError where the tables are missing or cannot be read.
    """
    if not has_tables(folder):
        raise ConfigError(
            f"{folder} holds no trace tables (runs.parquet, downloads.parquet, benches.parquet).",
            next_step=f"Give the folder of the trace tables made from {SOURCE}.",
        )
    try:
        runs, downloads, benches = (
            pl.read_parquet(folder / f"{name}.parquet") for name in ("runs", "downloads", "benches")
        )
        runs = runs.filter(pl.col("ran") & ~pl.col("clock_mismatch") & (pl.col("wall_s") > 0))
        if latest_only:
            runs = runs.filter(pl.col("is_latest"))
        of_run = {
            name: frame.partition_by(list(KEY), as_dict=True, include_key=False)
            for name, frame in (("d", downloads), ("b", benches))
        }
        none = pl.DataFrame()
        found = []
        for raw in runs.sort(KEY).iter_rows(named=True):
            key = tuple(raw[name] for name in KEY)
            found.append(_run(raw, of_run["d"].get(key, none), of_run["b"].get(key, none)))
        return found
    except (pl.exceptions.PolarsError, OSError, KeyError, TypeError, ValueError) as exc:
        raise ConfigError(f"The trace tables in {folder} cannot be read: {exc!r}"[:500]) from exc


def _run(raw: dict[str, Any], downloads: pl.DataFrame, benches: pl.DataFrame) -> RecordedRun:
    calls = {}
    for row in benches.iter_rows(named=True):
        model = MODEL_OF_FILE.get(row["model"])
        if model is not None:
            calls[Cell(model.name, row["task"], row["n_tokens"])] = _call(row)
    tried = {cell.model for cell, call in calls.items() if call.status != UNTRIED}
    models, waits_end_s = _models(list(downloads.iter_rows(named=True)), tried)
    names = {m.name for m in models}
    calls = {cell: call for cell, call in calls.items() if cell.model in names}
    ends = [c.started_s + c.wall_s for c in calls.values() if c.status != UNTRIED] + waits_end_s
    cpu_model = cpu_that_ran(raw["cpu_info"], raw["cpu_model"]) or ""
    head_s = raw["log_start_s"] if raw["log_start_s"] is not None else raw["wall_s"]
    return RecordedRun(
        vendor=raw["vendor"],
        server=raw["server"],
        run=raw["run"],
        wall_s=raw["wall_s"],
        usd_per_hour=raw["price_usd_hour"],
        head_s=head_s,
        tail_s=max(0.0, raw["wall_s"] - max(ends, default=head_s)),
        end_reason=raw["end_reason"] or "",
        n_cpus=raw["lscpu_cpus"] or raw["vcpus"] or 1,
        n_threads=raw["n_threads"] or raw["phys_cores"] or 1,
        memory_bytes=int((raw["memory_mib"] or 0) * _MIB),
        vram_bytes=int((raw["vram_mib"] or 0) * _MIB),
        has_gpu="CUDA" in (raw["backend"] or ""),
        cpu_model=cpu_model,
        gpu_model=raw["gpu_model"] or "",
        gpu_count=raw["gpu_count"] or 0,
        models=models,
        bytes_downloaded=sum(
            MODEL_OF_FILE[row["model"]].bytes for row in downloads.iter_rows(named=True) if row["finished"] is not None
        ),
        calls=calls,
        l3_bytes=(cache_bytes(raw.get("l3")) or 0) if cpu_model == raw["cpu_model"] else 0,
        is_april=bool(raw["in_apr2025"]),
        calm=calm_calls(calls, list(downloads.iter_rows(named=True)), raw["wall_s"]),
    )


def calm_calls(calls: dict[Cell, RecordedCall], downloads: list[dict[str, Any]], wall_s: float) -> frozenset[Cell]:
    """Ok calls beside which nothing was downloaded; a download without an end went on to the run's end."""
    spans = [(d["started"], wall_s if d["finished"] is None else d["finished"]) for d in downloads]
    moving = [(since_s, until_s) for since_s, until_s in spans if since_s is not None]

    def alone(call: RecordedCall) -> bool:
        ends_s = call.started_s + call.wall_s
        return not any(since_s < ends_s and until_s > call.started_s for since_s, until_s in moving)

    return frozenset(cell for cell, call in calls.items() if call.status == OK and alone(call))


def _call(row: dict[str, Any]) -> RecordedCall:
    status = _STATUS.get(row["status"], UNTRIED)
    samples_s = tuple(ns / 1e9 for ns in row["samples_ns"] or () if ns > 0) if status == OK else ()
    if status == UNTRIED or row["started"] is None or (status == OK and not samples_s):
        return RecordedCall(UNTRIED)
    timeout_s = float(row["timeout_s"] or 0.0)
    wall_s = row["wall_s"]
    if status == OK and timeout_s:
        wall_s = min(wall_s, timeout_s - 0.01)  # a few printed their row while they were being killed
    return RecordedCall(status, row["started"], wall_s, timeout_s, samples_s)


def _models(rows: list[dict[str, Any]], tried: set[str]) -> tuple[tuple[RecordedModel, ...], list[float]]:
    """The models that the ladder came to, smallest first, and when each wait in vain ended."""
    out: list[RecordedModel] = []
    waits_end_s: list[float] = []
    rates: list[float] = []
    previous_end_s: float | None = None
    for row in sorted(rows, key=lambda r: r["order"]):
        model = MODEL_OF_FILE[row["model"]]
        lag_s = 0.0
        if row["started"] is not None and previous_end_s is not None:
            lag_s = min(max(0.0, row["started"] - previous_end_s), MAX_LAG_S)
        took_s = _took_s(row)
        if took_s is not None:
            rates.append(model.bytes / max(took_s, 1e-3))
            previous_end_s = row["finished"]
        if model.name in tried and took_s is None:
            took_s = 0.0  # it was there, and the log does not say since when
        if model.name in tried:
            out.append(RecordedModel(model.name, model.bytes, lag_s, took_s, 0.0, row["probe_s"] or 0.0))
        elif row["bench_at"] is not None and row["status"] not in ("skipped_disk", "done"):
            out.append(RecordedModel(model.name, model.bytes, lag_s, None, _rate(row, model.bytes, rates), 0.0))
            waits_end_s.append(row["bench_at"] + (row["waited_s"] or 0.0))
            break
    return tuple(out), waits_end_s


def _took_s(row: dict[str, Any]) -> float | None:
    if row["status"] != "done" or row["finished"] is None:
        return None
    if row["started"] is not None:
        return float(max(0.0, row["finished"] - row["started"]))
    return float(row["seconds"] or 0.0)


def _rate(row: dict[str, Any], n_bytes: int, rates: list[float]) -> float:
    """Of a download that never came: what its record allows, at most; 0 once it had died."""
    if row["status"] == "crashed" or row["started"] is None:
        return 0.0
    mean = sum(rates) / len(rates) if rates else DEFAULT_RATE_BYTES_PER_S
    wait_end_s = row["bench_at"] + (row["waited_s"] or 0.0)
    late = n_bytes / max(1.0, (wait_end_s - row["started"]) * LATE)
    if row["status"] == "gave_up":
        # The rest would have taken 900 s at the mean speed so far, or longer.
        so_far_s = max(1.0, row["bench_at"] - row["started"])
        return float(max(0.0, min(mean, late, (n_bytes - mean * 900.0 * LATE) / so_far_s)))
    return float(min(mean, late))
