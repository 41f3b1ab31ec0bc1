"""What the GPUs did while a cell was measured, from the engine's log and the readings of nvidia-smi."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.domain.offload import backend_used
from tasks.lake.overlap import Interval, mean_share
from tasks.lake.timeline import Process, Reading

SHORTEST_S = 3.0
"""Repeats that lasted less in all are too short for power and clocks: nvidia-smi is read about once a second."""

SLOWED = 0x08 | 0x20 | 0x40 | 0x80
"""NVML's reasons for lower clocks that are a fault of the place: hardware slowdown, heat, and the power brake."""


def gpu_columns(
    process: Process | None, spans: Sequence[Interval], n_tokens: int, readings: Sequence[Reading]
) -> dict[str, Any]:
    """Columns of `cells`; none for what is not known. spans: the repeats."""
    if process is None:
        return {}
    found: dict[str, Any] = {"cpu_fallback": process.cpu_fallback}
    engine = process.engine
    if engine is not None:
        offloaded, total = engine.layers_offloaded, engine.layers_total
        found["backend_used"] = backend_used(engine.buffers_mib, offloaded, total) or None
        found["layers_offloaded"], found["layers_total"] = offloaded, total
    if not spans:
        return found
    whole = (spans[0][0], spans[-1][1])
    found["vram_used_bytes"] = _vram_used_bytes(process.started_s, whole, readings)
    seconds = sum(end - begin for begin, end in spans)
    if seconds >= SHORTEST_S:
        power_w = _mean(spans, readings, "gpu_power_w")
        found["gpu_power_w"] = power_w
        found["gpu_clock_mhz"] = _mean(spans, readings, "gpu_clock_mhz")
        found["gpu_throttled_share"] = _throttled_share(whole, readings)
        found["gpu_j_per_token"] = None if power_w is None else power_w * seconds / (n_tokens * len(spans))
    return found


def _mean(spans: Sequence[Interval], readings: Sequence[Reading], key: str) -> float | None:
    known = [(mean_share(span, readings, key), span[1] - span[0]) for span in spans]
    total_s = sum(seconds for value, seconds in known if value is not None)
    return sum(value * seconds for value, seconds in known if value is not None) / total_s if total_s > 0 else None


def _within(span: Interval, readings: Sequence[Reading], key: str) -> list[Any]:
    return [r.values[key] for r in readings if span[0] <= r.at_s <= span[1] + 1.0 and r.values.get(key) is not None]


def _vram_used_bytes(started_s: float, span: Interval, readings: Sequence[Reading]) -> int | None:
    """None where there is no reading: before the load, or while it ran."""
    key = "gpu_memory_used_bytes"
    before = [r.values[key] for r in readings if r.at_s <= started_s and r.values.get(key) is not None]
    during = _within(span, readings, key)
    return max(0, max(during) - before[-1]) if before and during else None


def _throttled_share(span: Interval, readings: Sequence[Reading]) -> float | None:
    bits = _within(span, readings, "gpu_throttle_reasons")
    return sum(bool(b & SLOWED) for b in bits) / len(bits) if bits else None
