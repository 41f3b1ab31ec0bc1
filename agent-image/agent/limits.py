"""What a process may really use here: the smallest of machine, cgroup, rlimit and the limits file."""

from __future__ import annotations

import json
import os
import resource
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

LIMITS_VARIABLE = "TOKENSWEEP_LIMITS"
LIMITS_FILE = "/etc/tokensweep/limits.json"
NO_LIMIT_BYTES = 1 << 60  # cgroup v1 writes "none" as a number near 2**63


def read_text(path: str) -> str:
    """A small file without its last newline; "" where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n\0")
    except OSError:
        return ""


def read_int(path: str) -> int | None:
    """A file that holds one whole number; None for anything else ("max" included)."""
    text = read_text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    values = {}
    for line in read_text("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        fields = rest.split()
        if fields and fields[0].isdigit():
            values[name] = int(fields[0]) * (1024 if fields[-1] == "kB" else 1)
    return values


@lru_cache(maxsize=None)
def cgroup_folders(controller: str) -> tuple[str, ...]:
    """This process's cgroup of a controller and its parents, innermost first, as folders that exist.

    Falls back to the root of the hierarchy, which inside a container is the container's own cgroup.
    """
    found: list[str] = []
    for line in read_text("/proc/self/cgroup").splitlines():
        number, names, path = line.split(":", 2)
        if number == "0" and not names:
            roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        elif controller in names.split(","):
            roots = [f"/sys/fs/cgroup/{names}", f"/sys/fs/cgroup/{controller}"]
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for root in roots:
            for depth in range(len(parts), -1, -1):
                folder = "/".join([root, *parts[:depth]])
                if os.path.isdir(folder) and folder not in found:
                    found.append(folder)
    return tuple(found)


def cgroup_memory_limit_bytes() -> int | None:
    """The smallest memory limit of this process's cgroups, v1 or v2."""
    limits = [
        value
        for folder in cgroup_folders("memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        for value in [read_int(f"{folder}/{name}")]
        if value is not None and 0 < value < NO_LIMIT_BYTES
    ]
    return min(limits, default=None)


def cgroup_memory_used_bytes() -> int | None:
    """Memory that the innermost limited cgroup holds, without page cache that can be dropped; None when unlimited."""
    for folder in cgroup_folders("memory"):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit_bytes = read_int(f"{folder}/{limit}")
            used_bytes = read_int(f"{folder}/{used}")
            if limit_bytes is None or used_bytes is None or limit_bytes >= NO_LIMIT_BYTES:
                continue
            for line in read_text(f"{folder}/memory.stat").splitlines():
                if line.startswith(cache + " "):
                    used_bytes -= int(line.split()[1])
            return max(0, used_bytes)
    return None


def cgroup_cpus() -> float | None:
    """CPUs' worth of time that the cgroup's quota allows; None when there is no quota."""
    quotas = []
    for folder in cgroup_folders("cpu"):
        fields = read_text(f"{folder}/cpu.max").split()
        if len(fields) == 2 and fields[0].isdigit():
            quotas.append(int(fields[0]) / int(fields[1]))
        quota, period = read_int(f"{folder}/cpu.cfs_quota_us"), read_int(f"{folder}/cpu.cfs_period_us")
        if quota is not None and period and quota > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def oom_kills() -> int | None:
    """How many processes the kernel killed for memory, of this cgroup where it tells, else of the machine."""
    for folder in cgroup_folders("memory"):
        for name in ("memory.events", "memory.oom_control"):
            for line in read_text(f"{folder}/{name}").splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    for line in read_text("/proc/vmstat").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return None


def limits_file() -> dict[str, Any]:
    """What the vendor `local` says that this server has: {"memory_bytes", "cpus"}; empty elsewhere."""
    path = Path(os.environ.get(LIMITS_VARIABLE, LIMITS_FILE))
    if not path.exists():
        return {}
    values = json.loads(path.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else {}


def _rlimit_bytes(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


@dataclass(frozen=True)
class Usable:
    """memory_limited_by: machine, cgroup, rlimit or limits_file."""

    memory_total_bytes: int
    memory_available_bytes: int
    memory_limited_by: str
    cpu_ids: tuple[int, ...]
    n_cpus: int


def usable() -> Usable:
    """What a new process may use now."""
    memory = meminfo()
    declared = limits_file()
    bounds = {
        "machine": memory.get("MemTotal", 0),
        "cgroup": cgroup_memory_limit_bytes(),
        "rlimit": min(
            (b for b in (_rlimit_bytes(resource.RLIMIT_DATA), _rlimit_bytes(resource.RLIMIT_AS)) if b is not None),
            default=None,
        ),
        "limits_file": declared.get("memory_bytes"),
    }
    known = {name: int(value) for name, value in bounds.items() if value}
    limited_by = min(known, key=lambda name: known[name], default="machine")
    total = known.get(limited_by, 0)
    available = min(memory.get("MemAvailable", total), total)
    cgroup_used = cgroup_memory_used_bytes()
    if "cgroup" in known and cgroup_used is not None:
        available = min(available, max(0, known["cgroup"] - cgroup_used))
    cpu_ids = tuple(sorted(os.sched_getaffinity(0)))
    cpu_bounds = [float(len(cpu_ids))]
    quota = cgroup_cpus()
    if quota is not None:
        cpu_bounds.append(quota)
    if isinstance(declared.get("cpus"), (int, float)):
        cpu_bounds.append(float(declared["cpus"]))
    n_cpus = max(1, int(min(cpu_bounds) + 0.01))
    return Usable(total, available, limited_by, cpu_ids, n_cpus)
