"""How fast are published results imported? A repository of made-up servers in the source's own layout."""

from __future__ import annotations

import json
import os
import time

from tasks.lake.sparecores import LADDER, MODELS
from tasks.lake.sparecores_land import import_sparecores
from tests.benchmarks.result import Result, Table
from tests.benchmarks.workbench import Workbench

VENDORS = ("aws", "azure", "gcp", "upcloud")
N_SERVERS = 3700
START = "2026-05-22 18:21"


def _log_and_rows() -> tuple[str, str]:
    """The log and the rows of a server that measured half of the ladder of every model."""
    log, rows = [], []
    for model in MODELS:
        log.append(f"{START}:35,130 - INFO - Benchmarking model {model.file} ...")
        log.append(f"{START}:37,396 - DEBUG - Downloaded model {model.file} ({model.mib} MB) in 1.19 sec (84.81 MB/s)")
        for task, n in LADDER[::2]:
            word = "prompt processing" if task == "pp" else "text generation"
            log.append(f"{START}:37,398 - DEBUG - Benchmarking {word} with {n} tokens for max 41 sec")
            row = {"build_commit": "51f311e0", "model_filename": f"/models/{model.file}", "n_threads": 48,
                   "n_prompt": n if task == "pp" else 0, "n_gen": n if task == "tg" else 0, "backends": "CPU",
                   "samples_ns": [n * 10**6 + k for k in range(5)], "samples_ts": [1000.0] * 5}  # fmt: skip
            rows.append(json.dumps(row))
    return "\n".join(log), "\n".join(rows)


def run(bench: Workbench) -> Result:
    n_servers = N_SERVERS // 20 if bench.quick else N_SERVERS
    root, lake = bench.scratch / "published", bench.scratch / "published-lake"
    log, rows = _log_and_rows()
    meta = json.dumps({"start": "2026-05-22T18:19:25", "end": "2026-05-22T18:41:01", "exit_code": 0, "version": "b1"})
    for i in range(n_servers):
        folder = root / "data" / VENDORS[i % len(VENDORS)] / f"type-{i}" / "llm"
        folder.mkdir(parents=True)
        (folder / "meta.json").write_text(meta)
        (folder / "stdout").write_text(rows)
        (folder / "stderr").write_text(log)
    n_processes = len(os.sched_getaffinity(0))
    began = time.perf_counter()
    report = import_sparecores(root, lake, n_processes=n_processes)
    took_s = time.perf_counter() - began
    megabytes = sum(path.stat().st_size for path in lake.rglob("*.parquet")) / 1e6
    result = Result("import_", {"servers": n_servers, "processes": n_processes})
    result.raw = {"took_s": took_s, "n_cells": report.n_cells, "n_samples": report.n_samples, "megabytes": megabytes}
    line = [str(report.n_servers), str(report.n_cells), str(report.n_samples), f"{took_s:.1f}", f"{megabytes:.1f}"]
    columns = ["servers", "cells", "samples", "s", "MB of Parquet"]
    result.tables.append(Table("import of published results into an empty lake", columns, [line]))
    result.findings.append(f"{report.n_servers} servers in {took_s:.1f} s")
    return result
