"""Twin groups: servers on which an LLM should run equally fast.

Same CPU model, threads, vCPUs and GPU. Measured on the public runs of Spare Cores, a twin's speed is as near as that of
the same server measured twice (median 4 %), whatever family or vendor it is of; twins differ in memory, so in how far
up the ladder they reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Optional, Sequence


@dataclass(frozen=True)
class Machine:
    """A server type as far as its speed is concerned. memory_bytes limits only which models it reaches."""

    vendor: str
    server: str
    cpu_model: str
    n_cpus: int
    n_threads: int
    gpu_model: str = ""
    gpu_count: int = 0
    memory_bytes: int = 0
    usd_per_hour: Optional[float] = None

    @property
    def key(self) -> tuple[str, int, int, str, int]:
        return self.cpu_model, self.n_cpus, self.n_threads, self.gpu_model, self.gpu_count

    @property
    def name(self) -> str:
        return f"{self.vendor}/{self.server}"


@dataclass(frozen=True)
class TwinGroup:
    """Machines of one key, the one to measure first. A machine without a known CPU model has no twin."""

    machines: tuple[Machine, ...]

    @property
    def first(self) -> Machine:
        return self.machines[0]


def twin_groups(machines: Iterable[Machine]) -> list[TwinGroup]:
    """Groups in the order in which their first machine comes.

    Measured first is the cheapest of those with enough memory for what any of the group can hold: a model that only
    the largest twin reaches would otherwise never be measured. Enough is half of the largest memory of the group.
    """
    by_key: dict[object, list[Machine]] = {}
    for number, machine in enumerate(machines):
        by_key.setdefault(machine.key if machine.cpu_model else number, []).append(machine)
    return [TwinGroup(tuple(_ordered(group))) for group in by_key.values()]


def _ordered(group: Sequence[Machine]) -> list[Machine]:
    largest = max(m.memory_bytes for m in group)

    def rank(machine: Machine) -> tuple[bool, bool, float, str]:
        price = machine.usd_per_hour
        return machine.memory_bytes * 2 < largest, price is None, price or 0.0, machine.name

    return sorted(group, key=rank)
