"""What Google sells: machine types of every zone with their prices, from its own two APIs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from decimal import Decimal

from google.cloud import compute_v1

from tasks.clouds.base import ServerType
from tasks.clouds.gcp.attached_gpus import OFFERED
from tasks.clouds.gcp.clients import Clients
from tasks.clouds.gcp.prices import SOURCE, Rates, Shape, read_rates
from tasks.clouds.gcp.resources import VENDOR, last_segment

_NANO_USD = Decimal("1e-9")
_ARCHES = {"X86_64": "x86_64", "ARM64": "aarch64"}

GPU_MEMORY_GIB = {
    "nvidia-tesla-p4": 8,
    "nvidia-tesla-t4": 16,
    "nvidia-tesla-p100": 16,
    "nvidia-tesla-v100": 16,
    "nvidia-l4": 24,
    "nvidia-tesla-a100": 40,
    "nvidia-a100-80gb": 80,
    "nvidia-h100-80gb": 80,
    "nvidia-h100-mega-80gb": 80,
    "nvidia-h200-141gb": 141,
    "nvidia-b200": 180,
    "nvidia-gb200": 186,
    "nvidia-rtx-pro-6000": 96,
}
"""Of one GPU: docs.cloud.google.com/compute/docs/gpus. The API does not say it."""


@dataclass
class _Sold:
    """One machine type, wherever it is sold."""

    shape: Shape
    arch: str
    zones: list[str] = field(default_factory=list)


@dataclass
class _Gpu:
    """model: as Google describes it, "NVIDIA L4"."""

    model: str
    zones: set[str] = field(default_factory=set)


def read_catalog(
    clients: Clients, project: str, regions: Sequence[str], now: Callable[[], float]
) -> tuple[ServerType, ...]:
    """Every machine type of these regions (all when empty), sorted by name. Raises what the SDK raises."""
    with ThreadPoolExecutor(2, thread_name_prefix="gcp-catalog") as pool:
        rates = pool.submit(read_rates, clients)
        gpus = pool.submit(_gpus, clients, project)
        sold = _sold(clients, project, regions)
        read_unix_s = now()
        sold |= _sold_with_attached(sold, gpus.result())
        return tuple(_server_type(sold[name], rates.result(), gpus.result(), read_unix_s) for name in sorted(sold))


def _sold(clients: Clients, project: str, regions: Sequence[str]) -> dict[str, _Sold]:
    found: dict[str, _Sold] = {}
    request = compute_v1.AggregatedListMachineTypesRequest(project=project)
    for scope_name, scope in clients.machine_types.aggregated_list(request=request, **clients.call):
        zone = last_segment(scope_name)
        if regions and region_of(zone) not in regions:
            continue
        for kind in scope.machine_types:
            if not kind.deprecated.state:
                sold = found.setdefault(kind.name, _Sold(_shape(kind), _ARCHES.get(kind.architecture, "x86_64")))
                sold.zones.append(zone)
    return found


def _shape(kind: compute_v1.MachineType) -> Shape:
    gpu = kind.accelerators[0] if kind.accelerators else None
    return Shape(
        name=kind.name,
        vcpus=kind.guest_cpus,
        memory_mib=kind.memory_mb,
        gpus=gpu.guest_accelerator_count if gpu else 0,
        accelerator=gpu.guest_accelerator_type if gpu else "",
        local_ssds=kind.bundled_local_ssds.partition_count,
    )


def _gpus(clients: Clients, project: str) -> dict[str, _Gpu]:
    """What each accelerator type is, and where it is."""
    found: dict[str, _Gpu] = {}
    request = compute_v1.AggregatedListAcceleratorTypesRequest(project=project)
    for scope_name, scope in clients.accelerator_types.aggregated_list(request=request, **clients.call):
        for kind in scope.accelerator_types:
            found.setdefault(kind.name, _Gpu(kind.description)).zones.add(last_segment(scope_name))
    return found


def _sold_with_attached(sold: dict[str, _Sold], gpus: dict[str, _Gpu]) -> dict[str, _Sold]:
    """Machine types with GPUs attached, where a zone has both."""
    found: dict[str, _Sold] = {}
    for offer in OFFERED:
        base, gpu = sold.get(offer.machine_type), gpus.get(offer.accelerator)
        zones = [zone for zone in base.zones if zone in gpu.zones] if base and gpu else []
        if base and zones:
            shape = replace(base.shape, name=offer.name, gpus=offer.count, accelerator=offer.accelerator)
            found[offer.name] = _Sold(shape, base.arch, zones)
    return found


def _server_type(sold: _Sold, rates: Rates, gpus: dict[str, _Gpu], read_unix_s: float) -> ServerType:
    """With the zones that have a price, cheapest first. Without any it has no places, so that nothing is planned with
    it, and `price_source` says what is missing."""
    shape = sold.shape
    by_region = {region: rates.price(shape, region) for region in {region_of(zone) for zone in sold.zones}}
    spot = {region: rates.price(shape, region, spot=True) for region in by_region}
    prices = {zone: usd for zone in sold.zones if isinstance(usd := by_region[region_of(zone)], Decimal)}
    spot_prices = {zone: usd for zone in prices if isinstance(usd := spot[region_of(zone)], Decimal)}
    why_none = next((why for _, why in sorted(by_region.items()) if isinstance(why, str)), "")
    return ServerType(
        vendor=VENDOR,
        name=shape.name,
        vcpus=shape.vcpus,
        memory_bytes=shape.memory_mib * 2**20,
        disk_bytes=0,
        arch=sold.arch,
        places=tuple(sorted(prices, key=lambda zone: (prices[zone], zone))),
        price_per_hour=_rounded(min(prices.values(), default=Decimal(0))),
        currency="USD",
        price_source=f"{SOURCE}, in effect since {rates.effective[:10]}" if prices else f"none: {why_none}",
        price_read_unix_s=read_unix_s,
        gpus=shape.gpus,
        gpu_model=gpus[shape.accelerator].model if shape.accelerator in gpus else shape.accelerator,
        gpu_memory_bytes=GPU_MEMORY_GIB.get(shape.accelerator, 0) * 2**30,
        prices={zone: _rounded(usd) for zone, usd in prices.items()},
        spot_prices={zone: _rounded(usd) for zone, usd in spot_prices.items()},
    )


def region_of(zone: str) -> str:
    return zone.rpartition("-")[0]


def _rounded(usd: Decimal) -> Decimal:
    return usd.quantize(_NANO_USD)
