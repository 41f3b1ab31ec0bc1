"""The server types that the simulated vendor sells: thousands, all made up, each the same on every machine.

A name tells everything: `g3a-16dn` is the general family, generation 3, processors of maker a, 16 vCPUs, with a local
disk and a faster network; `a100x4-48` has four GPUs and 48 vCPUs. Prices and speeds are of the size that public
clouds had in 2025, and are nobody's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import cache

from tasks.clouds.base import ServerType
from tasks.clouds.sim.draws import Draws
from tasks.domain.errors import ConfigError

VENDOR = "sim"
GIB = 2**30
PRICE_SOURCE = "simulated"
SPOT_SHARE = Decimal("0.35")

REGIONS = ("north-1", "east-1", "south-1", "west-1", "north-2", "east-2")
ZONES = ("a", "b", "c")
VCPUS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
GENERATIONS = (1, 2, 3, 4, 5)
VARIANTS = ("", "d", "n", "dn")

_NATURE = Draws(20_260_101)
"""Fixes what exists; the seed of a sweep only decides what happens."""


@dataclass(frozen=True)
class _Family:
    memory_gib_per_vcpu: float
    usd_per_vcpu_hour: float
    speed: float


@dataclass(frozen=True)
class _Maker:
    """bandwidth and gflops: of one vCPU in generation 3, as far as llama.cpp gets it."""

    title: str
    arch: str
    price: float
    bandwidth_bytes_per_s: float
    gflops: float
    socket_bytes_per_s: float


@dataclass(frozen=True)
class _Gpu:
    title: str
    memory_gib: int
    bandwidth_bytes_per_s: float
    tflops: float
    usd_per_hour: float


FAMILIES = {
    "b": _Family(2.0, 0.018, 0.7),  # burstable
    "c": _Family(2.0, 0.034, 1.0),
    "g": _Family(4.0, 0.042, 1.0),
    "m": _Family(8.0, 0.055, 1.0),
    "x": _Family(16.0, 0.084, 1.0),
    "z": _Family(8.0, 0.093, 1.35),  # high clock
}
MAKERS = {
    "i": _Maker("Simulated Intel Xeon", "x86_64", 1.0, 4.5e9, 42.0, 210e9),
    "a": _Maker("Simulated AMD EPYC", "x86_64", 0.9, 5.0e9, 48.0, 300e9),
    "r": _Maker("Simulated Neoverse", "aarch64", 0.8, 5.5e9, 38.0, 260e9),
}
GPUS = {
    "t4": _Gpu("Simulated T4", 15, 300e9, 25.0, 0.38),
    "l4": _Gpu("Simulated L4", 23, 290e9, 55.0, 0.62),
    "a10": _Gpu("Simulated A10", 23, 580e9, 60.0, 0.82),
    "l40s": _Gpu("Simulated L40S", 45, 840e9, 160.0, 1.55),
    "a100": _Gpu("Simulated A100", 80, 1900e9, 200.0, 3.3),
    "h100": _Gpu("Simulated H100", 80, 3200e9, 450.0, 7.8),
    "h200": _Gpu("Simulated H200", 141, 4600e9, 450.0, 9.6),
}
GPU_COUNTS = (1, 2, 4, 8)
GPU_VCPUS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128)

_CPU_NAME = re.compile(r"([bcgmxz])([1-5])([iar])-(\d+)(d?n?)")
_GPU_NAME = re.compile(r"(t4|l4|a10|l40s|a100|h100|h200)x([1248])-(\d+)")


@dataclass(frozen=True)
class Silicon:
    """What decides the speed: bytes/s from memory and GFLOP/s of the whole server; gpu: as of all GPUs together."""

    bandwidth_bytes_per_s: float
    gflops: float
    gpu_bandwidth_bytes_per_s: float = 0.0
    gpu_gflops: float = 0.0


def default_names() -> tuple[str, ...]:
    """A handful that shows the range."""
    return ("b2a-2", "c3a-8", "c4r-16", "g3i-4", "m5i-32", "z4i-8", "t4x1-4", "a100x1-12")


@cache
def all_names() -> tuple[str, ...]:
    cpu = [
        f"{family}{generation}{maker}-{vcpus}{variant}"
        for family in FAMILIES
        for generation in GENERATIONS
        for maker in MAKERS
        for vcpus in VCPUS
        for variant in VARIANTS
    ]
    gpu = [f"{gpu}x{n}-{vcpus}" for gpu in GPUS for n in GPU_COUNTS for vcpus in GPU_VCPUS if vcpus >= 4 * n]
    return (*cpu, *gpu)


@cache
def server_type(name: str) -> ServerType:
    """Raises ConfigError for a name that is not sold."""
    if match := _CPU_NAME.fullmatch(name):
        family, generation, maker, vcpus, variant = match.groups()
        if int(vcpus) in VCPUS:
            return _cpu_type(name, family, int(generation), maker, int(vcpus), variant)
    if match := _GPU_NAME.fullmatch(name):
        gpu, n, vcpus = match.groups()
        if int(vcpus) in GPU_VCPUS and int(vcpus) >= 4 * int(n):
            return _gpu_type(name, gpu, int(n), int(vcpus))
    raise _not_sold(name)


def _not_sold(name: str) -> ConfigError:
    return ConfigError(
        f"The simulated cloud sells no {name!r}.",
        next_step="Names are like c3a-8 or a100x1-12; `servers: ['c3*:20']` takes 20 that match.",
    )


def silicon(name: str) -> Silicon:
    if match := _CPU_NAME.fullmatch(name):
        family, generation, maker_key, vcpus = match.group(1), int(match.group(2)), match.group(3), int(match.group(4))
        maker, speed = MAKERS[maker_key], FAMILIES[family].speed * _progress(generation)
        chip = _NATURE.between(0.92, 1.08, name)
        bandwidth = min(vcpus * maker.bandwidth_bytes_per_s, maker.socket_bytes_per_s * (2 if vcpus > 96 else 1))
        return Silicon(bandwidth * _progress(generation) * chip, vcpus * maker.gflops * speed * chip)
    match = _GPU_NAME.fullmatch(name)
    if match is None:
        raise _not_sold(name)
    gpu, n, vcpus = GPUS[match.group(1)], int(match.group(2)), int(match.group(3))
    # llama.cpp splits a model by layers: more GPUs hold more, and are hardly faster for one stream.
    return Silicon(
        bandwidth_bytes_per_s=min(vcpus * 4.5e9, 200e9),
        gflops=vcpus * 40.0,
        gpu_bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s * (0.7 + 0.02 * n),
        gpu_gflops=gpu.tflops * 1000.0 * 0.35,
    )


def _progress(generation: int) -> float:
    return 0.7 + 0.1 * generation


def _cpu_type(name: str, family_key: str, generation: int, maker_key: str, vcpus: int, variant: str) -> ServerType:
    family, maker = FAMILIES[family_key], MAKERS[maker_key]
    usd = family.usd_per_vcpu_hour * maker.price * vcpus * (1.12 - 0.04 * generation)
    usd *= (1.12 if "d" in variant else 1.0) * (1.18 if "n" in variant else 1.0)
    link = min(62.5e6 + 25e6 * vcpus, 3.125e9) * (2 if "n" in variant else 1)
    return _sold(
        name,
        vcpus=vcpus,
        memory_bytes=int(vcpus * family.memory_gib_per_vcpu * GIB),
        disk_bytes=(200 + (vcpus * 60 if "d" in variant else 0)) * GIB,
        arch=maker.arch,
        cpu_model=f"{maker.title}, generation {generation}",
        link_bytes_per_s=link,
        usd=usd,
    )


def _gpu_type(name: str, gpu_key: str, n: int, vcpus: int) -> ServerType:
    gpu = GPUS[gpu_key]
    return _sold(
        name,
        vcpus=vcpus,
        memory_bytes=vcpus * 4 * GIB,
        disk_bytes=400 * GIB,
        arch="x86_64",
        cpu_model="Simulated Intel Xeon, generation 4",
        link_bytes_per_s=min(500e6 + 60e6 * n, 3.125e9),
        usd=gpu.usd_per_hour * n + 0.03 * vcpus,
        gpus=n,
        gpu_model=gpu.title,
        gpu_memory_bytes=gpu.memory_gib * GIB,
    )


def _sold(
    name: str,
    *,
    vcpus: int,
    memory_bytes: int,
    disk_bytes: int,
    arch: str,
    cpu_model: str,
    link_bytes_per_s: float,
    usd: float,
    gpus: int = 0,
    gpu_model: str = "",
    gpu_memory_bytes: int = 0,
) -> ServerType:
    """In two to four regions, in two or three zones of each; dearer in some."""
    n_regions = 2 + int(_NATURE.uniform("regions", name) * 3)
    regions = sorted(REGIONS, key=lambda region: _NATURE.uniform("sold", name, region))[:n_regions]
    prices: dict[str, Decimal] = {}
    for region in regions:
        factor = 1.0 + 0.06 * REGIONS.index(region)
        zones = ZONES if _NATURE.uniform("zones", name, region) < 0.6 else ZONES[:2]
        for zone in zones:
            prices[f"{region}{zone}"] = Decimal(f"{max(usd * factor, 0.001):.5f}")
    places = tuple(sorted(prices, key=lambda place: (prices[place], place)))
    return ServerType(
        vendor=VENDOR,
        name=name,
        vcpus=vcpus,
        memory_bytes=memory_bytes,
        disk_bytes=disk_bytes,
        arch=arch,
        places=places,
        price_per_hour=prices[places[0]],
        currency="USD",
        price_source=PRICE_SOURCE,
        price_read_unix_s=0.0,
        gpus=gpus,
        gpu_model=gpu_model,
        gpu_memory_bytes=gpu_memory_bytes,
        cpu_model=cpu_model,
        prices=prices,
        spot_prices={place: (price * SPOT_SHARE).quantize(Decimal("0.00001")) for place, price in prices.items()},
        link_bytes_per_s=link_bytes_per_s,
    )
