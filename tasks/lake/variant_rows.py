"""Rows of `variants`: what was measured beside the ladder, each line of the engine once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tasks.domain.cells import PP, TG
from tasks.domain.run_plan import RunPlan
from tasks.domain.stats import summarize
from tasks.domain.variants import BATCHED, KINDS
from tasks.lake.foreign import as_column, as_json, as_time
from tasks.lake.overlap import mean_share
from tasks.lake.run_log import RunLog
from tasks.lake.schema import VARIANTS
from tasks.lake.timeline import EndedVariant

_ROW_KEYS = {
    "n_prompt": "n_prompt",
    "n_gen": "n_gen",
    "n_depth": "n_depth",
    "n_threads": "n_threads",
    "ngl": "n_gpu_layers",
    "backend": "backends",
    "cache_type_k": "type_k",
    "cache_type_v": "type_v",
    "instance": "instance",
}
_BATCHED_KEYS = {
    "n_prompt": "pp",
    "n_gen": "tg",
    "n_sequences": "pl",
    "n_threads": "n_threads",
    "ngl": "n_gpu_layers",
    "tok_per_s_median": "speed",
    "pp_tok_per_s": "speed_pp",
    "tg_tok_per_s": "speed_tg",
    "instance": "instance",
}


def variant_rows(plan: RunPlan, log: RunLog) -> Iterator[dict[str, Any]]:
    """A measurement that gave nothing has one row all the same, with how it ended."""
    weights = {m.name: m.weights for m in plan.models}
    k = 0
    for number, ended in enumerate((v for v in log.variants if v.event.variant in KINDS), 1):
        event = ended.event
        common = {
            "variant": number,
            "kind": event.variant,
            "label": event.label,
            "outcome": event.outcome,
            "detail": event.detail or None,
            "model": event.model,
            "weights": weights.get(event.model),
            "build": event.build or None,
            "n_instances": len(event.settings.get("devices") or ()) or 1,
            "numa": event.settings.get("numa") or None,
            **_meanwhile(ended, log),
        }
        for row in event.rows or [{}]:
            k += 1
            measured = _batched(row) if event.variant == BATCHED else _repeats(row)
            values = {**common, "k": k, **measured}
            yield {name: as_column(VARIANTS.column(name), value) for name, value in values.items()}


def _meanwhile(ended: EndedVariant, log: RunLog) -> dict[str, Any]:
    span = (ended.started_s, ended.ended_s)
    return {
        "started_at": as_time(span[0]),
        "seconds": span[1] - span[0],
        "steal_share": mean_share(span, log.telemetry, "steal_share"),
        "gpu_power_w": mean_share(span, log.telemetry, "gpu_power_w"),
    }


def _device_set(row: Mapping[str, Any]) -> dict[str, Any]:
    devices = str(row.get("device_set") or "")
    return {"device_set": devices or None, "n_devices": len(devices.split("/")) if devices else None}


def _repeats(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of llama-bench."""
    if not row:
        return {"n_samples": 0}
    found = {name: row.get(key) for name, key in _ROW_KEYS.items()}
    samples = row.get("samples_ns")
    seconds = [s / 1e9 for s in samples if isinstance(s, (int, float)) and s > 0] if isinstance(samples, list) else []
    n_prompt, n_gen = int(row.get("n_prompt") or 0), int(row.get("n_gen") or 0)
    values = {**found, **_device_set(row), "n_samples": len(seconds), "bench_row_json": as_json(dict(row))}
    values["task"] = "pg" if n_prompt and n_gen else PP if n_prompt else TG
    if seconds and n_prompt + n_gen > 0:
        speed = summarize(seconds, n_prompt + n_gen)
        values.update(tok_per_s_median=speed.median, tok_per_s_min=speed.min, tok_per_s_max=speed.max)
    return values


def _batched(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of llama-batched-bench, which measures each number of sequences once."""
    if "speed_tg" not in row:
        return {"n_samples": 0}
    found = {name: row.get(key) for name, key in _BATCHED_KEYS.items()}
    values = {**found, **_device_set(row), "task": BATCHED, "n_samples": 1, "bench_row_json": as_json(dict(row))}
    return {**values, "tok_per_s_min": found["tok_per_s_median"], "tok_per_s_max": found["tok_per_s_median"]}
