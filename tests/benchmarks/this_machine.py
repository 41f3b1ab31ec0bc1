"""Which machine this is, and whether it is quiet enough for what is measured on it to mean anything."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

LOUD_LOAD_PER_CPU = 0.5
LOUD_BUSY_SHARE = 0.05
LOUD_STEAL_SHARE = 0.01
LOOK_S = 1.0


def cpus() -> list[int]:
    """The CPUs that this process may run on when nothing is pinned."""
    return list(_ALLOWED)


_ALLOWED = tuple(sorted(os.sched_getaffinity(0)))


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model", "CPU implementer")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _ticks() -> tuple[int, int, int]:
    """Total, busy and stolen time of all CPUs, in clock ticks."""
    user, nice, system, idle, iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    busy = user + nice + system + irq + softirq
    return busy + idle + iowait + steal, busy, steal


class Watch:
    """The machine before a benchmark, and what its host took from it meanwhile."""

    def __init__(self) -> None:
        self.load1_at_start = os.getloadavg()[0]
        before = _ticks()
        time.sleep(LOOK_S)
        self._start = _ticks()
        total = max(1, self._start[0] - before[0])
        self.busy_at_start = (self._start[1] - before[1]) / total

    def facts(self) -> dict[str, Any]:
        """JSON-ready; call it at the end."""
        total, _, steal = (now - then for now, then in zip(_ticks(), self._start, strict=True))
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {
            "cpu_model": cpu_model(),
            "n_cpus": len(_ALLOWED),
            "memory_gib": round(memory_bytes / 2**30, 1),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "load1_at_start": round(self.load1_at_start, 2),
            "busy_share_at_start": round(self.busy_at_start, 3),
            "steal_share": round(steal / max(1, total), 4),
        }


def warnings(facts: dict[str, Any], *, first: bool) -> list[str]:
    """Why the figures may be wrong; empty on a quiet machine.

    first: nothing of ours ran just before, so that the load average is somebody else's.
    """
    found = []
    if first and facts["load1_at_start"] > LOUD_LOAD_PER_CPU * facts["n_cpus"]:
        found.append(f"load average {facts['load1_at_start']} on {facts['n_cpus']} CPUs at the start")
    if facts["busy_share_at_start"] > LOUD_BUSY_SHARE:
        found.append(f"the CPUs were {facts['busy_share_at_start']:.0%} busy with other work at the start")
    if facts["steal_share"] > LOUD_STEAL_SHARE:
        found.append(f"the host took {facts['steal_share']:.1%} of the CPU time meanwhile (steal)")
    return [f"{text}: the figures are not to be trusted" for text in found]
