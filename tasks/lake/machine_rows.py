"""Rows of `hardware` and `telemetry`, from the agent's nested records to flat columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any

from tasks.domain.gpu_faults import GpuFault, presence_fault
from tasks.lake.foreign import as_column, as_json, as_time, at
from tasks.lake.run_log import FALL_BACK, RunLog
from tasks.lake.schema import HARDWARE, TELEMETRY

_HARDWARE_PATHS: dict[str, tuple[str, ...]] = {
    "arch": ("system", "arch"),
    "cpu_model": ("cpu", "model_name"),
    "cpu_vendor": ("cpu", "vendor"),
    "microcode": ("cpu", "microcode"),
    "n_hardware_threads": ("cpu", "n_threads"),
    "n_cores": ("cpu", "n_cores"),
    "n_sockets": ("cpu", "n_sockets"),
    "n_numa_nodes": ("cpu", "n_numa_nodes"),
    "l3_bytes": ("cpu", "l3_bytes"),
    "cpu_max_mhz": ("cpu", "max_mhz"),
    "governor": ("cpu", "governor"),
    "memory_limited_by": ("memory", "limited_by"),
    "machine_memory_bytes": ("memory", "total_bytes"),
    "swap_total_bytes": ("memory", "swap_bytes"),
    "transparent_hugepages": ("memory", "transparent_hugepages"),
    "disk_total_bytes": ("disk", "total_bytes"),
    "is_virtual": ("virtualization", "hypervisor"),
    "machine_vendor": ("virtualization", "dmi", "sys_vendor"),
    "machine_product": ("virtualization", "dmi", "product_name"),
    "kernel": ("system", "kernel"),
    "os": ("system", "os"),
    "libc": ("system", "libc"),
}
# Left out of the fingerprint: what changes, and what older agents did not tell.
_UNSTEADY = {"memory_available_bytes", "memory_read_bytes_per_s", "disk_free_bytes", "vram_free_bytes",
             "n_gpus_on_bus", "gpu_fault"}  # fmt: skip

# Column of `telemetry` -> the agent's key, where they differ. Shares are of the CPUs that the server may use.
_TELEMETRY_KEYS = {
    "cpu_busy_share": "allowed_cpu_busy",
    "steal_share": "allowed_cpu_steal",
    "iowait_share": "allowed_cpu_iowait",
    "machine_busy_share": "machine_cpu_busy",
    "cpu_pressure_share": "pressure_cpu",
    "memory_pressure_share": "pressure_memory",
    "io_pressure_share": "pressure_io",
    "load_1m": "load1",
}
_GPUS = "gpus"
_SAMPLED = tuple(c for c in TELEMETRY.own_columns if c.name not in ("k", "t_s", "observed_at", "other"))


def hardware_rows(log: RunLog) -> Iterator[dict[str, Any]]:
    """One row when the server was probed, none otherwise."""
    if log.probed is None:
        return
    probed = log.probed[1]
    record = probed.hardware if isinstance(probed.hardware, Mapping) else {}
    found: dict[str, Any] = {name: at(record, path) for name, path in _HARDWARE_PATHS.items()}
    flags = at(record, ("cpu", "flags"))
    found["cpu_flags"] = " ".join(str(f) for f in flags) if isinstance(flags, list) else flags
    found["n_cpus"] = probed.n_cpus
    found["memory_total_bytes"] = probed.memory_total_bytes
    found["memory_available_bytes"] = probed.memory_available_bytes
    found["disk_free_bytes"] = probed.disk_free_bytes
    found["vram_free_bytes"] = sum(probed.vram_free_bytes) if probed.vram_free_bytes else None
    found.update(_gpu(record.get("gpus")))
    found["n_gpus_on_bus"] = record.get("gpus_on_bus")
    found["gpu_fault"] = _gpu_fault(log, record)
    row = {c.name: as_column(c, None if found.get(c.name) == "" else found.get(c.name)) for c in HARDWARE.own_columns}
    steady = {name: value for name, value in row.items() if name not in _UNSTEADY}
    row["fingerprint_sha256"] = hashlib.sha256(as_json(steady).encode()).hexdigest()
    row["hardware_json"] = as_json(record)
    yield row


def _gpu_fault(log: RunLog, record: Mapping[str, Any]) -> str | None:
    """What nvidia-smi says, else what the first build for a GPU met there."""
    gpus, on_bus = record.get("gpus"), record.get("gpus_on_bus")
    listed = [g for g in gpus if isinstance(g, Mapping)] if isinstance(gpus, list) else []
    fault = presence_fault(listed, on_bus if isinstance(on_bus, int) else None)
    if fault is not None:
        return fault.value
    met = (str(d.raw["reason"]) for d in log.decisions if d.raw["action"] in (FALL_BACK, "give_up"))
    return next((reason for reason in met if reason in set(GpuFault)), None)


def _gpu(raw: Any) -> dict[str, Any]:
    gpus = [g for g in raw if isinstance(g, Mapping) and "name" in g] if isinstance(raw, list) else []
    sizes = [g["memory_total_bytes"] for g in gpus if isinstance(g.get("memory_total_bytes"), int)]
    first = gpus[0] if gpus else {}
    return {
        "n_gpus": len(gpus),
        "gpu_model": first.get("name"),
        "gpu_driver": first.get("driver_version"),
        "gpu_power_limit_w": first.get("power_limit_w"),
        "vram_total_bytes": sum(sizes) if sizes else None,
    }


def with_columns(log: RunLog) -> RunLog:
    """The log with every reading under the names of the lake's columns; what has no column goes to `other`."""
    log.telemetry = [replace(reading, values=_reading(reading.values)) for reading in log.telemetry]
    return log


def _reading(raw: Mapping[str, Any]) -> dict[str, Any]:
    flat = {**raw, **_gpu_use(raw.get(_GPUS))}
    values: dict[str, Any] = {}
    used: set[str] = set()
    for column in _SAMPLED:
        key = _TELEMETRY_KEYS.get(column.name, column.name)
        key = key if key in flat else column.name
        values[column.name] = as_column(column, flat.get(key))
        used.add(key)
    other = {key: value for key, value in raw.items() if key not in used}
    values["other"] = as_json(other) if other else None
    return values


def _gpu_use(raw: Any) -> dict[str, Any]:
    gpus = [g for g in raw if isinstance(g, Mapping)] if isinstance(raw, list) else []

    def numbers(key: str) -> list[float]:
        return [g[key] for g in gpus if isinstance(g.get(key), (int, float))]

    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    def total(key: str) -> float | None:
        """None where a GPU does not tell: the others' sum would pass for all of them."""
        values = numbers(key)
        return sum(values) if values and len(values) == len(gpus) else None

    busy = mean(numbers("utilization_pct"))
    reasons = [int(bits) for bits in numbers("throttle_reasons")]
    found = {
        "gpu_busy_share": None if busy is None else busy / 100,
        "gpu_memory_used_bytes": total("memory_used_bytes"),
        "gpu_power_w": total("power_w"),
        "gpu_temperature_c": max(numbers("temperature_c"), default=None),
        "gpu_clock_mhz": mean(numbers("sm_clock_mhz")),
        "gpu_throttle_reasons": reduce(or_, reasons) if reasons else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def telemetry_rows(log: RunLog) -> Iterator[dict[str, Any]]:
    """One row per reading."""
    for k, reading in enumerate(log.telemetry, 1):
        yield {"k": k, "t_s": reading.t_s, "observed_at": as_time(reading.at_s), **reading.values}
