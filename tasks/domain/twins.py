"""Twin groups: servers on which an LLM should run equally fast.

Same vendor, CPU model, threads, vCPUs, third-level cache and GPU with its memory, and both on bare metal or neither.
Measured on the public runs of Spare Cores, a twin's speed is as near as that of the same server measured twice (median
4 %), whatever family it is of; twins differ in memory, so in how far up the ladder they reach. The same CPU name at
another vendor is another chip or another share of it: 18 % apart in the median, so that is no twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Optional, Sequence


@dataclass(frozen=True)
class Machine:
    """A server type as far as its speed is concerned. memory_bytes limits only which models it reaches.

    cpu_model: as the server itself saw it, since vendors lend one type on several CPUs; "" where it is not known.
    sweep: of machines that are compared after the fact, only those of one sweep are: months change hosts and drivers.
    """

    vendor: str
    server: str
    cpu_model: str
    n_cpus: int
    n_threads: int
    gpu_model: str = ""
    gpu_count: int = 0
    memory_bytes: int = 0
    usd_per_hour: Optional[float] = None
    l3_bytes: int = 0
    vram_bytes: int = 0
    sweep: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        chip = self.vendor, self.cpu_model, self.n_cpus, self.n_threads, self.l3_bytes, self.on_bare_metal
        return (*chip, self.gpu_model, self.gpu_count, self.vram_bytes >> 30, self.sweep)

    @property
    def on_bare_metal(self) -> bool:
        """By its name: vendors that rent bare metal say so there, and no price list tells it."""
        return "metal" in self.server.lower()

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
