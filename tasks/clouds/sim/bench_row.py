"""The JSON line that llama-bench prints for a cell, with `simulated` wherever it names itself."""

from __future__ import annotations

from typing import Any

from tasks.clouds.sim.machine import Machine, n_params_of
from tasks.domain.cells import PP, Cell
from tasks.domain.run_plan import ModelSpec
from tasks.domain.stats import summarize


def bench_row(
    machine: Machine, model: ModelSpec, cell: Cell, samples_s: tuple[float, ...], n_threads: int
) -> dict[str, Any]:
    found = summarize(samples_s, cell.n_tokens)
    on_gpu = machine.on_gpu
    return {
        "build_commit": "simulated",
        "build_number": 0,
        "cpu_info": machine.kind.cpu_model,
        "gpu_info": machine.kind.gpu_model if on_gpu else "",
        "backends": "CUDA" if on_gpu else "CPU",
        "model_filename": model.file,
        "model_type": f"{model.name} simulated",
        "model_size": model.planned_bytes,
        "model_n_params": int(n_params_of(model)),
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_threads": n_threads,
        "type_k": "f16",
        "type_v": "f16",
        "n_gpu_layers": 99 if machine.kind.gpus else 0,
        "flash_attn": 1,
        "load_mode": "none",
        "n_prompt": cell.n_tokens if cell.task == PP else 0,
        "n_gen": 0 if cell.task == PP else cell.n_tokens,
        "n_depth": 0,
        "avg_ts": found.mean,
        "stddev_ts": found.sd,
        "samples_ns": [round(s * 1e9) for s in samples_s],
        "samples_ts": [cell.n_tokens / s for s in samples_s],
    }
