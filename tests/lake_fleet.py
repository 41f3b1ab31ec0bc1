"""Lakes of any size, made up: a fleet of cloud servers, six models, the classic ladder, and what a sweep finds.

Speeds follow a roofline with noise; cells end as a gate, the memory or the deadline would end them. Everything is
written as compacted files, one per table and sweep, so that a million cells take seconds.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tasks.domain.classic import CLASSIC_MIN_TOK_PER_S
from tasks.domain.stats import t_975
from tasks.lake.columns import METHODOLOGY_VERSION, SCHEMA_VERSION
from tasks.lake.schema import RESOURCES, TABLE

GIB = 2**30
START = datetime(2026, 9, 1, tzinfo=UTC)
MODELS = {
    "smollm-135m": ("SmolLM-135M.Q4_K_M.gguf", 105_454_432, 134_515_008, "llama"),
    "qwen1.5-0.5b": ("qwen1_5-0_5b-chat-q4_k_m.gguf", 407_157_792, 619_570_176, "qwen2"),
    "gemma-2b": ("gemma-2b.Q4_K_M.gguf", 1_495_245_728, 2_506_172_416, "gemma"),
    "llama-7b": ("llama-7b.Q4_K_M.gguf", 4_081_004_224, 6_738_415_616, "llama"),
    "phi-4": ("phi-4-q4.gguf", 9_053_114_528, 14_659_507_200, "phi3"),
    "llama-3.3-70b": ("Llama-3.3-70B-Instruct-Q4_K_M.gguf", 42_520_398_048, 70_553_706_560, "llama"),
}
LADDER = [(task, n, float(least)) for task, steps in CLASSIC_MIN_TOK_PER_S.items() for n, least in steps.items()]
VENDORS = {
    "aws": (("eu-west-1", "us-east-1"), ("c7i", "m7g", "r7a", "c6a", "t4g")),
    "azure": (("westeurope", "eastus"), ("Standard_D{}s_v5", "Standard_E{}as_v5", "Standard_F{}s_v2")),
    "gcp": (("europe-west4-a", "us-central1-b"), ("c3-standard-{}", "n2d-highmem-{}", "t2a-standard-{}")),
    "hetzner": (("fsn1", "hel1"), ("cx{}2", "ccx{}3", "cax{}1")),
    "upcloud": (("fi-hel1", "de-fra1"), ("{}xCPU-GENERAL", "{}xCPU-HIMEM")),
}
CPUS = (("Intel Xeon Platinum 8488C", 8e9), ("AMD EPYC 9R14", 11e9), ("Neoverse-V1", 7e9), ("AMD EPYC 7763", 6e9))
GPUS = (("NVIDIA L4", 24, 300e9, 0.7), ("NVIDIA A10G", 24, 600e9, 1.0), ("Tesla T4", 16, 320e9, 0.5),
        ("NVIDIA A100-SXM4-80GB", 80, 2039e9, 4.1), ("NVIDIA H100 80GB HBM3", 80, 3352e9, 6.9))  # fmt: skip


def write_fleet(root: Path, n_servers: int, *, n_sweeps: int = 1, seed: int = 7, samples: bool = False) -> int:
    """Write the sweeps; returns the number of cells. Each sweep measures every server once, about a month apart.

    `samples`: every repeat of every measured cell as well.
    """
    rng = np.random.default_rng(seed)
    servers = [_server(i, rng) for i in range(n_servers)]
    n_cells = 0
    for number in range(n_sweeps):
        sweep_id = f"fleet-{number:02}"
        began = START + timedelta(days=30 * number)
        frames = _sweep(sweep_id, servers, began, rng)
        n_cells += frames["cells"].height
        if samples:
            frames = {"samples": _samples(frames["cells"], rng), **frames}
        for name, frame in frames.items():
            path = root / name / f"sweep={sweep_id}" / "compacted-000001-fleet.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            frame.write_parquet(path, compression="zstd")
    return n_cells


def _server(i: int, rng: np.random.Generator) -> dict[str, Any]:
    vendor = list(VENDORS)[i % len(VENDORS)]
    places, families = VENDORS[vendor]
    family = families[(i // len(VENDORS)) % len(families)]
    n_cpus = int(2 ** rng.integers(0, 8))
    cpu, per_core = CPUS[int(rng.integers(len(CPUS)))]
    gpu = GPUS[int(rng.integers(len(GPUS)))] if rng.random() < 0.12 else None
    n_gpus = int(2 ** rng.integers(0, 4)) if gpu else 0
    name = family.format(n_cpus) if "{}" in family else f"{family}.{n_cpus}xlarge"
    memory = n_cpus * int(2 ** rng.integers(1, 4)) * GIB
    price = 0.021 * n_cpus * rng.uniform(0.7, 1.6) + n_gpus * (gpu[3] if gpu else 0.0)
    return {
        "vendor": vendor, "server": f"{name}-{i}", "place": places[int(rng.integers(len(places)))], "n_cpus": n_cpus,
        "cpu_model": cpu, "read": min(n_cpus * per_core, 300e9), "flop": n_cpus * 4.5e10, "memory": memory,
        "gpu": gpu, "n_gpus": n_gpus, "price": round(float(price), 4), "factor": float(rng.normal(1, 0.04)),
    }  # fmt: skip


def _sweep(sweep_id: str, servers: list[dict[str, Any]], began: datetime, rng: np.random.Generator) -> Any:
    n, per = len(servers), len(MODELS) * len(LADDER)
    models = np.repeat(list(MODELS), len(LADDER))
    size = np.array([MODELS[m][1] for m in models], dtype=float)
    params = np.array([MODELS[m][2] for m in models], dtype=float)
    tokens = np.tile([step[1] for step in LADDER], len(MODELS))
    least = np.tile([step[2] for step in LADDER], len(MODELS))
    is_pp = np.tile([step[0] == "pp" for step in LADDER], len(MODELS))

    def of(key: str) -> Any:
        return np.array([s[key] for s in servers], dtype=float)[:, None]

    vram = np.array([s["n_gpus"] * s["gpu"][1] * GIB if s["gpu"] else 0 for s in servers], dtype=float)[:, None]
    silent = np.array([bool(s["gpu"]) and rng.random() < 0.06 for s in servers])[:, None]  # the GPU was not used
    on_gpu = (vram > size * 1.1) & ~silent
    read = np.where(
        on_gpu, np.array([s["gpu"][2] if s["gpu"] else 1.0 for s in servers])[:, None] * 0.62, of("read") * 0.8
    )
    flop = np.where(on_gpu, np.array([s["gpu"][2] if s["gpu"] else 1.0 for s in servers])[:, None] * 45, of("flop"))
    speed = np.where(is_pp, flop / (2 * params) / (1 + tokens / 2e4), read / size / (1 + tokens / 3e4))
    speed = np.minimum(speed * of("factor") * rng.normal(1, 0.02, (n, 1)), np.where(is_pp, 4e4, 900.0))
    cv = np.abs(rng.normal(0.012, 0.015, (n, per))) + 0.001
    speed = speed * rng.normal(1, 0.008, (n, per))

    fits = (size * 1.1 < of("memory")) | (size * 1.1 < vram)
    lost = rng.random((n, 1)) < 0.03
    outcome = np.full((n, per), "measured", dtype=object)
    reason = np.full((n, per), "ok", dtype=object)
    for mask, what, why in (
        (speed < least * 0.5, "gated", "predicted_too_slow"),
        ((speed >= least * 0.5) & (speed < least), "gated", "measured_too_slow"),
        (~fits & np.ones((n, per), dtype=bool), "infeasible", "memory"),
        (lost & (size > 1e9), "not_reached", "server_lost"),
        (rng.random((n, per)) < 0.004, "failed", "bench_killed"),
    ):
        outcome[mask], reason[mask] = what, why
    measured = outcome == "measured"
    repeats = np.where(rng.random((n, per)) < 0.03, 2, 5)
    half = np.where(repeats == 5, t_975(4) / np.sqrt(5), t_975(1) / np.sqrt(2)) * cv * speed

    def cells(values: Any, dtype: Any = None) -> pl.Series:
        return pl.Series(np.broadcast_to(values, (n, per)).ravel(), dtype=dtype)

    def where_measured(values: Any) -> pl.Series:
        return pl.Series(np.where(measured, values, np.nan).ravel()).fill_nan(None)

    run_ids = [f"{sweep_id}.{s['server']}.1" for s in servers]
    minute = np.arange(n * per).reshape(n, per) % 90
    frame = pl.DataFrame(
        {
            "sweep_id": pl.repeat(sweep_id, n * per, eager=True),
            "server_run_id": np.repeat(run_ids, per),
            "vendor": np.repeat([s["vendor"] for s in servers], per),
            "server": np.repeat([s["server"] for s in servers], per),
            "schema_version": pl.repeat(SCHEMA_VERSION, n * per, eager=True),
            "model": np.tile(models, n),
            "model_file": np.tile([MODELS[m][0] for m in models], n),
            "model_bytes": cells(size.astype(np.int64)),
            "n_params": cells(params.astype(np.int64)),
            "arch": np.tile([MODELS[m][3] for m in models], n),
            "quant": pl.repeat("Q4_K_M", n * per, eager=True),
            "weights": pl.repeat("real", n * per, eager=True),
            "task": np.tile(np.where(is_pp, "pp", "tg"), n),
            "n_tokens": cells(tokens),
            "outcome": cells(outcome, pl.String),
            "reason": cells(reason, pl.String),
            "detail": pl.repeat(None, n * per, dtype=pl.String, eager=True),
            "source": pl.repeat("tokensweep", n * per, eager=True),
            "resumed": pl.repeat(False, n * per, eager=True),
            "observed_at": pl.Series((began + timedelta(hours=1)).timestamp() * 1e6 + minute.ravel() * 60e6)
            .cast(pl.Int64).cast(pl.Datetime("us", "UTC")),
            "n_samples": cells(np.where(measured, repeats, 0)),
            "tok_per_s_median": where_measured(speed),
            "tok_per_s_mean": where_measured(speed),
            "tok_per_s_sd": where_measured(speed * cv),
            "tok_per_s_cv": where_measured(cv),
            "tok_per_s_ci95_low": where_measured(speed - half),
            "tok_per_s_ci95_high": where_measured(speed + half),
            "tok_per_s_min": where_measured(speed * (1 - 1.3 * cv)),
            "tok_per_s_max": where_measured(speed * (1 + 1.3 * cv)),
            "first_repeat_ratio": where_measured(1 + np.abs(rng.normal(0, 0.05, (n, per)))),
            "min_tok_per_s": cells(least),
            "predicted_low_tok_per_s": pl.Series((speed * 0.8).ravel()),
            "predicted_high_tok_per_s": pl.Series((speed * 1.2).ravel()),
            "n_threads": pl.Series(np.repeat([s["n_cpus"] for s in servers], per)),
            "build": np.where(on_gpu, "cuda", "avx512").ravel(),
            "backend": np.where(on_gpu, "CUDA", "CPU").ravel(),
            "ngl": pl.Series(np.where(on_gpu, -1, 0).ravel()),
            "engine_commit": pl.repeat("0c1e570", n * per, eager=True),
            "download_active": cells(rng.random((n, per)) < 0.01),
            "steal_share": pl.Series(np.where(rng.random((n, per)) < 0.02, 0.03, 0.0).ravel()),
        }
    )  # fmt: skip
    return {
        "cells": _typed("cells", frame),
        "hardware": _typed("hardware", _hardware(sweep_id, servers, run_ids)),
        "resources": _typed("resources", _resources(sweep_id, servers, run_ids, began)),
        "server_runs": _typed("server_runs", _runs(sweep_id, servers, run_ids, began, outcome)),
    }


def _samples(cells: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """The repeats of measured cells, spread about their median as wide as the cell says."""
    keys = ("sweep_id", "server_run_id", "vendor", "server", "schema_version", "model", "task", "n_tokens")
    frame = (
        cells.lazy()
        .filter(pl.col("outcome") == "measured")
        .select(*keys, "tok_per_s_median", "tok_per_s_cv", k=pl.int_ranges(1, pl.col("n_samples") + 1))
        .explode("k")
        .collect()
    )
    off = pl.Series(rng.normal(0, 1, frame.height))
    frame = frame.with_columns(tok_per_s=pl.col("tok_per_s_median") * (1 + pl.col("tok_per_s_cv") * off.clip(-3, 3)))
    return _typed(
        "samples",
        frame.with_columns(duration_s=pl.col("n_tokens") / pl.col("tok_per_s"), source=pl.lit("row")),
    )


def _head(sweep_id: str, servers: list[dict[str, Any]], run_ids: list[str]) -> dict[str, Any]:
    return {
        "sweep_id": [sweep_id] * len(servers),
        "server_run_id": run_ids,
        "vendor": [s["vendor"] for s in servers],
        "server": [s["server"] for s in servers],
        "schema_version": [SCHEMA_VERSION] * len(servers),
    }


def _hardware(sweep_id: str, servers: list[dict[str, Any]], run_ids: list[str]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            **_head(sweep_id, servers, run_ids),
            "arch": ["aarch64" if "Neoverse" in s["cpu_model"] else "x86_64" for s in servers],
            "cpu_model": [s["cpu_model"] for s in servers],
            "n_cpus": [s["n_cpus"] for s in servers],
            "n_cores": [max(1, s["n_cpus"] // 2) for s in servers],
            "l3_bytes": [32 * 2**20] * len(servers),
            "memory_total_bytes": [s["memory"] for s in servers],
            "memory_read_bytes_per_s": [s["read"] for s in servers],
            "n_gpus": [s["n_gpus"] for s in servers],
            "gpu_model": [s["gpu"][0] if s["gpu"] else None for s in servers],
            "vram_total_bytes": [s["n_gpus"] * s["gpu"][1] * GIB if s["gpu"] else None for s in servers],
            "kernel": ["6.8.0-1021"] * len(servers),
            "hardware_json": ["{}"] * len(servers),
        }
    )


def _resources(sweep_id: str, servers: list[dict[str, Any]], run_ids: list[str], began: datetime) -> pl.DataFrame:
    gone = [None if i % 211 == 210 else began + timedelta(minutes=95) for i in range(len(servers))]
    return pl.DataFrame(
        {
            **_head(sweep_id, servers, run_ids),
            "intent_id": [f"i{i}" for i in range(len(servers))],
            "kind": ["server"] * len(servers),
            "name": [f"tokensweep-{run_id}" for run_id in run_ids],
            "state": ["deleting" if at is None else "gone" for at in gone],
            "created_at": [began] * len(servers),
            "deleted_at": [began + timedelta(minutes=91)] * len(servers),
            "gone_at": gone,
        },
        schema_overrides={"gone_at": RESOURCES.column("gone_at").dtype},
    )


def _runs(
    sweep_id: str, servers: list[dict[str, Any]], run_ids: list[str], began: datetime, outcome: Any
) -> pl.DataFrame:
    counts = {
        what: (outcome == what).sum(axis=1)
        for what in ("measured", "gated", "timed_out", "infeasible", "failed", "not_reached")
    }
    hours = [0.4 + 1.1 * counts["measured"][i] / outcome.shape[1] for i in range(len(servers))]
    return pl.DataFrame(
        {
            **_head(sweep_id, servers, run_ids),
            "started_at": [began] * len(servers),
            "ended_at": [began + timedelta(hours=h) for h in hours],
            "place": [s["place"] for s in servers],
            "isolation": ["vm"] * len(servers),
            "attempt": [1] * len(servers),
            "spot": [False] * len(servers),
            "outcome": ["interrupted" if n else "completed" for n in counts["not_reached"]],
            "reason": ["server_lost" if n else "complete" for n in counts["not_reached"]],
            "price_usd_per_hour": [str(s["price"]) for s in servers],
            "currency": ["USD"] * len(servers),
            "price_source": ["list"] * len(servers),
            "price_read_at": [began - timedelta(days=i % 100) for i in range(len(servers))],
            "billed_s": [h * 3600 for h in hours],
            "cost_usd": [f"{h * s['price']:.6f}" for h, s in zip(hours, servers, strict=True)],
            "max_usd": ["40"] * len(servers),
            "policy": ["dynamic"] * len(servers),
            "methodology_version": [METHODOLOGY_VERSION] * len(servers),
            "n_cells": [outcome.shape[1]] * len(servers),
            "n_resumed": [0] * len(servers),
            **{f"n_{what}": n for what, n in counts.items()},
            "bytes_downloaded": [sum(m[1] for m in MODELS.values())] * len(servers),
        }
    )


def _typed(table: str, frame: pl.DataFrame) -> pl.DataFrame:
    """All columns of the table, in its order and types; those that were not made are null."""
    columns = [
        (pl.col(c.name) if c.name in frame.columns else pl.lit(None)).cast(c.dtype).alias(c.name)
        for c in TABLE[table].columns
    ]
    return frame.select(columns)
