"""The same results as Parquet tables (`runs`, `benches`, `downloads`), read into runs.

Each table has one row per (vendor, server, run) and what it names; times are seconds since the run's start. Columns
that are not there are taken as unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl

from tasks.domain.cells import TASKS, Cell, Reason
from tasks.domain.errors import ConfigError
from tasks.lake.sparecores import (
    MODEL_OF_FILE,
    PublishedCell,
    PublishedDownload,
    PublishedRun,
    cache_bytes,
    cpu_that_ran,
    utc,
)

TABLES = ("runs", "benches", "downloads")
_KEY = ("vendor", "server", "run")
_REASON = {
    "timed_out": Reason.CELL_TIMEOUT,
    "failed": Reason.BENCH_FAILED,
    "after_timeout": Reason.SHORTER_CELL_TOO_SLOW,
    "after_failure": Reason.BENCH_FAILED,
    "unlikely_gate": Reason.PREDICTED_TOO_SLOW,
    "run_ended_simplest_failed": Reason.SMALLEST_FAILED,
    "run_ended_download_timed_out": Reason.DOWNLOAD_TOO_SLOW,
    "run_ended_download_gave_up": Reason.DOWNLOAD_TOO_SLOW,
    "model_not_downloaded": Reason.DOWNLOAD_FAILED,
    "run_cut": Reason.SERVER_LOST,
}


def has_tables(root: Path) -> bool:
    return all((root / f"{name}.parquet").is_file() for name in TABLES)


def read_tables(root: Path, damage: Counter[str], *, latest_only: bool = True) -> Iterator[PublishedRun]:
    """Every run of the tables, the newest of each server unless told otherwise. Raises ConfigError for a table that
    cannot be read."""
    runs, benches, downloads = (_table(root / f"{name}.parquet") for name in TABLES)
    if latest_only and "is_latest" in runs.columns:
        runs = runs.filter(pl.col("is_latest"))
    by_key = {name: frame.partition_by(list(_KEY), as_dict=True) for name, frame in (("b", benches), ("d", downloads))}
    for raw in runs.iter_rows(named=True):
        run = _run(raw, damage)
        if run is None:
            continue
        key = tuple(raw[name] for name in _KEY)
        for bench in _rows_of(by_key["b"].get(key)):
            _add_cell(run, bench, damage)
        for download in _rows_of(by_key["d"].get(key)):
            _add_download(run, download)
        yield run


def _table(path: Path) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError, ValueError) as exc:
        raise ConfigError(f"{path} cannot be read as Parquet: {str(exc).splitlines()[0]}.") from exc
    missing = [name for name in _KEY if name not in frame.columns]
    if missing:
        raise ConfigError(f"{path} has no column {', '.join(missing)}.", next_step="Give the folder of trace tables.")
    return frame


def _rows_of(frame: pl.DataFrame | None) -> Iterator[dict[str, Any]]:
    return iter(()) if frame is None else frame.iter_rows(named=True)


def _run(raw: dict[str, Any], damage: Counter[str]) -> PublishedRun | None:
    started_at = utc(raw.get("start"))
    if started_at is None:
        damage["runs: a run without a start"] += 1
        return None
    run = PublishedRun(raw["vendor"], raw["server"], started_at)
    run.ended_at = utc(raw.get("end"))
    run.exit_code, run.error = raw.get("exit_code"), str(raw.get("error") or "")[:500]
    run.engine_commit = raw.get("llama_cpp") or ""
    cpu_model = cpu_that_ran(raw.get("cpu_info"), raw.get("cpu_model"))
    memory_mib, vram_mib = raw.get("memory_mib"), raw.get("vram_mib")
    hardware = {
        "arch": raw.get("arch"),
        "cpu_model": cpu_model,
        "n_cpus": raw.get("lscpu_cpus") or raw.get("vcpus"),
        "n_hardware_threads": raw.get("lscpu_cpus"),
        "n_cores": raw.get("phys_cores"),
        "n_numa_nodes": raw.get("numa"),
        "l3_bytes": cache_bytes(raw.get("l3")) if cpu_model == raw.get("cpu_model") else None,
        "memory_total_bytes": int(memory_mib * 2**20) if memory_mib else None,
        "n_gpus": raw.get("gpu_count"),
        "gpu_model": raw.get("gpu_model"),
        "vram_total_bytes": vram_mib * 2**20 if vram_mib else None,
    }
    run.hardware = {name: value for name, value in hardware.items() if value is not None}
    if raw.get("price_usd_hour") is not None:
        run.price_usd_per_hour = Decimal(str(raw["price_usd_hour"]))
        run.price_source = raw.get("price_source") or ""
        run.region = raw.get("price_region") or ""
    return run


def _add_cell(run: PublishedRun, raw: dict[str, Any], damage: Counter[str]) -> None:
    model = MODEL_OF_FILE.get(raw.get("model") or "")
    if model is None or raw.get("task") not in TASKS or not raw.get("n_tokens"):
        damage["benches: a row that belongs to no cell"] += 1
        return
    status, why = raw.get("status"), raw.get("gate_reason")
    samples_s = tuple(ns / 1e9 for ns in raw.get("samples_ns") or () if ns and ns > 0)
    reason = Reason.OK if status == "ok" else _REASON.get(why or status or "")
    if reason is None or (reason is Reason.OK and not samples_s):
        damage["benches: a status that is not known, or ok without samples"] += 1
        return
    row = {} if status != "ok" else {"n_threads": None, "n_gpu_layers": raw.get("ngl")}
    detail = "" if status == "ok" else why or f"{status} after {raw.get('wall_s') or 0:.0f} s"
    cell = Cell(model.name, raw["task"], raw["n_tokens"])
    run.cells[cell] = PublishedCell(reason, detail, raw.get("started"), samples_s if status == "ok" else (), row)


def _add_download(run: PublishedRun, raw: dict[str, Any]) -> None:
    model = MODEL_OF_FILE.get(raw.get("model") or "")
    if model is not None and raw.get("status") == "done" and raw.get("seconds"):
        run.downloads.append(PublishedDownload(model.name, model.bytes, raw["seconds"], raw.get("finished")))
