"""Sizes of virtual machines as `resourceSkus` tells them: what they are, where they are, and where they are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from tasks.clouds.azure.clients import Clients
from tasks.clouds.azure.errors import AzureCloudError, refusal
from tasks.clouds.azure.identity import Place
from tasks.clouds.base import ErrorKind, Scope

GIB = 2**30
_ARCHES = {"x64": "x86_64", "Arm64": "aarch64"}


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size in one region. zones: those that have it and do not refuse it; `offered` is False where all do."""

    name: str
    region: str
    vcpus: int
    memory_bytes: int
    arch: str
    gpus: int
    zones: tuple[str, ...]
    offered: bool
    family: str
    generation_2: bool
    premium_disks: bool
    accelerated_networking: bool
    confidential: bool

    @property
    def needs_grid_driver(self) -> bool:
        """NV sizes share a GPU out among machines, and for NCv6 there is no other driver:
        https://learn.microsoft.com/azure/virtual-machines/linux/n-series-driver-setup."""
        return re.match(r"Standard_N(?:[VG]|C.*_RTXPRO6000BSE_v6)", self.name, re.IGNORECASE) is not None

    @property
    def places(self) -> tuple[str, ...]:
        """Its zones, or the region where it has none."""
        if not self.offered:
            return ()
        return tuple(str(Place(self.region, zone)) for zone in self.zones) or (self.region,)


@dataclass
class Skus:
    """Sizes by region, read once per region and process: the answer has thousands and changes rarely."""

    clients: Clients
    _by_region: dict[str, dict[str, Size]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def region(self, region: str) -> dict[str, Size]:
        """By lower-case name. Raises what the SDK raises."""
        with self._lock:
            known = self._by_region.get(region)
        if known is None:
            known = self._read(region)
            with self._lock:
                self._by_region[region] = known
        return known

    def for_create(self, name: str, place: Place, arch: str) -> Size:
        """The size, or AzureCloudError where Azure would refuse it: cheaper to know before a group is made."""
        size = self.region(place.region).get(name.lower())
        if size is None:
            raise refusal(
                ErrorKind.UNSUPPORTED, Scope.REGION, "SizeNotInRegion", f"{place.region} has no size {name} for us"
            )
        if size.arch != {"arm64": "aarch64"}.get(arch, arch):
            raise refusal(
                ErrorKind.UNSUPPORTED,
                Scope.SERVER_TYPE,
                "WrongArch",
                f"{name} is {size.arch}, and {arch} was asked for",
            )
        if not size.offered:
            raise self._restricted(name, place.region, Scope.REGION)
        if place.zone and place.zone not in size.zones:
            raise self._restricted(name, str(place), Scope.ZONE)
        return size

    def _restricted(self, name: str, place: str, scope: Scope) -> AzureCloudError:
        return refusal(
            ErrorKind.CAPACITY, scope, "SkuNotAvailable", f"{name} is restricted for this subscription in {place}"
        )

    def _read(self, region: str) -> dict[str, Size]:
        found: dict[str, Size] = {}
        for sku in self.clients.compute.resource_skus.list(filter=f"location eq '{region}'"):
            if sku.resource_type == "virtualMachines" and (sku.name or "").startswith("Standard_"):
                found |= {size.name.lower(): size for size in _sizes(sku) if size.region == region}
        return found


def _sizes(sku: Any) -> Iterable[Size]:
    """One entry per region that a SKU names: usually one, but the API does not promise that."""
    has = {c.name: c.value or "" for c in sku.capabilities or () if c.name}
    arch = _ARCHES.get(has.get("CpuArchitectureType", "x64"))
    if arch is None or "vCPUs" not in has or "MemoryGB" not in has:
        return
    for info in sku.location_info or ():
        region = Place.of(info.location, None).region
        refused = [r for r in sku.restrictions or () if _concerns(r, region)]
        refused_zones = {z for r in refused if r.type == "Zone" for z in (r.restriction_info.zones or ())}
        zones = tuple(sorted(set(info.zones or ()) - refused_zones))
        yield Size(
            name=sku.name,
            region=region,
            vcpus=int(has.get("vCPUsAvailable") or has["vCPUs"]),  # fewer, where a size is sold with some disabled
            memory_bytes=int(float(has["MemoryGB"]) * GIB),
            arch=arch,
            gpus=int(has.get("GPUs", "0")),
            zones=zones,
            offered=not any(r.type == "Location" for r in refused) and bool(zones or not info.zones),
            family=sku.family or "",
            generation_2="V2" in has.get("HyperVGenerations", "V1,V2"),
            premium_disks=has.get("PremiumIO") == "True",
            accelerated_networking=has.get("AcceleratedNetworkingEnabled") == "True",
            # SGX sizes are ordinary machines with an extra instruction set.
            confidential=has.get("ConfidentialComputingType", "") in ("SNP", "TDX"),
        )


def _concerns(restriction: Any, region: str) -> bool:
    info = restriction.restriction_info
    return any(Place.of(location, None).region == region for location in (info.locations if info else None) or ())
