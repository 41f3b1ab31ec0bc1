"""Server types of this machine, parsed from their names: `cpu2-mem4g-800mbit`, `cpu1-mem512m-80mbit-disk64m`.

A name says all there is to say: whole CPUs, a memory limit, the speed of the link in both directions and, where
tests need one that can be filled, the size of the disk.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from tasks.clouds.base import ServerType
from tasks.domain.errors import ConfigError, UnsupportedError

VENDOR = "local"
PLACE = "localhost"
USD_PER_CPU_HOUR = Decimal("0.05")
"""Nominal: it lets every money rule run for real, and is about what vendors ask for a small CPU server."""

MIB = 2**20
GIB = 2**30
MIN_MEMORY_BYTES = 64 * MIB
"""Below this, sshd and a Python agent do not fit."""

GRAMMAR = "cpu<N>-mem<M>g-<R>mbit, with mem<M>m for MiB and -disk<D>m for a disk of D MiB"
_NAME = re.compile(
    r"cpu(?P<cpus>[1-9]\d{0,3})-mem(?P<memory>[1-9]\d{0,6})(?P<unit>[gm])-(?P<mbit>[1-9]\d{0,5})mbit"
    r"(?:-disk(?P<disk>[1-9]\d{0,6})m)?"
)


@dataclass(frozen=True)
class Shape:
    """What a server type's name says. disk_bytes 0: the disk is the state folder's, without a limit of its own."""

    name: str
    n_cpus: int
    memory_bytes: int
    link_bytes_per_s: float
    disk_bytes: int = 0

    @property
    def usd_per_hour(self) -> Decimal:
        return self.n_cpus * USD_PER_CPU_HOUR


@dataclass(frozen=True)
class Machine:
    """What this machine can lend: the CPUs that this process may run on, and all of its memory."""

    cpus: tuple[int, ...]
    memory_bytes: int
    arch: str

    @classmethod
    def this(cls) -> Machine:
        return cls(
            cpus=tuple(sorted(os.sched_getaffinity(0))),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            arch=platform.machine(),
        )


def parse(name: str) -> Shape:
    """Raises ConfigError when the name is malformed, whether or not this machine is large enough."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"local server type {name!r} is not a name of the form {GRAMMAR}.",
            reason="unknown_server_type",
            next_step="An example is cpu1-mem1g-80mbit.",
        )
    memory_bytes = int(match["memory"]) * (GIB if match["unit"] == "g" else MIB)
    if memory_bytes < MIN_MEMORY_BYTES:
        raise ConfigError(
            f"local server type {name!r}: {match['memory']}{match['unit']} of memory do not hold sshd and the agent.",
            reason="unknown_server_type",
            next_step=f"Ask for at least mem{MIN_MEMORY_BYTES // MIB}m.",
        )
    return Shape(
        name=name,
        n_cpus=int(match["cpus"]),
        memory_bytes=memory_bytes,
        link_bytes_per_s=int(match["mbit"]) * 1e6 / 8,
        disk_bytes=int(match["disk"] or 0) * MIB,
    )


def check_fits(shape: Shape, machine: Machine) -> None:
    """Raises UnsupportedError when the machine could never lend this much, even when idle."""
    if shape.n_cpus > len(machine.cpus) or shape.memory_bytes > machine.memory_bytes:
        raise UnsupportedError(
            f"local server type {shape.name!r} is larger than this machine, which has {len(machine.cpus)} CPUs and "
            f"{machine.memory_bytes // MIB} MiB of memory.",
            reason="larger_than_machine",
            next_step=f"The largest that fits is cpu{len(machine.cpus)}-mem{machine.memory_bytes // MIB}m-<R>mbit.",
        )


def default_names(machine: Machine) -> tuple[str, str, str]:
    """Three types that differ in CPUs, memory and link; on small machines they differ in what is left to differ."""
    big = min(16, 1 << (len(machine.cpus).bit_length() - 1))
    mid = max(1, big // 2)
    unit_mib = 1024
    while unit_mib > 128 and 8 * unit_mib * MIB > machine.memory_bytes:
        unit_mib //= 2  # the largest takes 4 units: at most half of the machine
    return (
        f"cpu{mid}-{_memory(2 * unit_mib)}-400mbit",
        f"cpu1-{_memory(unit_mib)}-100mbit",
        f"cpu{big}-{_memory(4 * unit_mib)}-800mbit",
    )


def catalog_names(machine: Machine) -> tuple[str, ...]:
    """The defaults, then one type per power of two of CPUs with 2 GiB each, and the whole machine."""
    sizes = {1 << i for i in range(len(machine.cpus).bit_length())} | {len(machine.cpus)}
    names = list(default_names(machine))
    for n_cpus in sorted(n for n in sizes if n <= len(machine.cpus)):
        memory_mib = min(2048 * n_cpus, machine.memory_bytes // MIB * 3 // 4)
        names.append(f"cpu{n_cpus}-{_memory(memory_mib)}-1000mbit")
    return tuple(dict.fromkeys(names))


def _memory(mib: int) -> str:
    return f"mem{mib // 1024}g" if mib % 1024 == 0 else f"mem{mib}m"


def server_type(shape: Shape, machine: Machine, state_dir: Path, read_unix_s: float) -> ServerType:
    """The catalog's row of one shape. `exclusive` has one "cpu" per CPU: the machine has as many as it has CPUs."""
    return ServerType(
        vendor=VENDOR,
        name=shape.name,
        vcpus=shape.n_cpus,
        memory_bytes=shape.memory_bytes,
        disk_bytes=shape.disk_bytes or _free_bytes(state_dir),
        arch=machine.arch,
        places=(PLACE,),
        price_per_hour=shape.usd_per_hour,
        currency="USD",
        price_source="nominal",
        price_read_unix_s=read_unix_s,
        link_bytes_per_s=shape.link_bytes_per_s,
        exclusive=("cpu",) * shape.n_cpus,
    )


def _free_bytes(directory: Path) -> int:
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free
