"""What the emulated Azure sells: sizes, images, prices, quotas. Figures are in the order of real ones of 2026."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

REGIONS = {"westeurope": 3, "eastus": 3, "northcentralus": 0, "brazilsoutheast": 0}  # with how many zones
GROUPLESS_REGIONS = ("brazilsoutheast",)
_PRODUCT = "Virtual Machines Dav5 Series"

IMAGES = {  # (publisher, offer, sku) -> architecture, generation, GiB
    ("Canonical", "ubuntu-24_04-lts", "server"): ("x64", "V2", 30),
    ("Canonical", "ubuntu-24_04-lts", "server-gen1"): ("x64", "V1", 30),
    ("Canonical", "ubuntu-24_04-lts", "server-arm64"): ("Arm64", "V2", 30),
    ("Canonical", "ubuntu-24_04-lts", "cvm"): ("x64", "V2", 30),
    ("microsoft-dsvm", "ubuntu-hpc", "2404"): ("x64", "V2", 64),
}


@dataclass(frozen=True, kw_only=True)
class Sold:
    name: str
    family: str
    vcpus: int
    memory_gib: float
    usd_per_hour: str
    spot_usd_per_hour: str = ""
    arch: str = "x64"
    gpus: int = 0
    generations: str = "V1,V2"
    premium: bool = True
    confidential: str = ""
    regions: tuple[str, ...] = ("westeurope", "eastus", "northcentralus", "brazilsoutheast")
    refused_regions: tuple[str, ...] = ()
    refused_zones: tuple[tuple[str, str], ...] = ()

    def sku(self, region: str) -> dict[str, Any]:
        """As resourceSkus.list tells it."""
        has = {
            "vCPUs": self.vcpus,
            "MemoryGB": f"{self.memory_gib:g}",
            "CpuArchitectureType": self.arch,
            "HyperVGenerations": self.generations,
            "PremiumIO": str(self.premium),
            "AcceleratedNetworkingEnabled": "True",
            "LowPriorityCapable": "True",
        }
        if self.gpus:
            has["GPUs"] = self.gpus
        if self.confidential:
            has["ConfidentialComputingType"] = self.confidential
        restrictions: list[dict[str, Any]] = []
        if region in self.refused_regions:
            restrictions.append(_restriction("Location", region, []))
        zones = [zone for at, zone in self.refused_zones if at == region]
        if zones:
            restrictions.append(_restriction("Zone", region, zones))
        return {
            "resourceType": "virtualMachines",
            "name": self.name,
            "tier": "Standard",
            "size": self.name.removeprefix("Standard_"),
            "family": self.family,
            "locations": [region],
            "locationInfo": [{"location": region, "zones": [str(n + 1) for n in range(REGIONS[region])]}],
            "capabilities": [{"name": name, "value": str(value)} for name, value in has.items()],
            "restrictions": restrictions,
        }


def _restriction(kind: str, region: str, zones: list[str]) -> dict[str, Any]:
    info = {"locations": [region], **({"zones": zones} if zones else {})}
    return {"type": kind, "values": [region], "restrictionInfo": info, "reasonCode": "NotAvailableForSubscription"}


SIZES: dict[str, Sold] = {
    sold.name.lower(): sold
    for sold in (
        Sold(
            name="Standard_B2as_v2",
            family="standardBasv2Family",
            vcpus=2,
            memory_gib=8,
            usd_per_hour="0.0752",
            spot_usd_per_hour="0.0150",
        ),
        Sold(
            name="Standard_D4as_v5",
            family="standardDASv5Family",
            vcpus=4,
            memory_gib=16,
            usd_per_hour="0.208",
            spot_usd_per_hour="0.0416",
            refused_zones=(("eastus", "2"),),
        ),
        Sold(
            name="Standard_D2ps_v6",
            family="StandardDpsv6Family",
            vcpus=2,
            memory_gib=8,
            usd_per_hour="0.0704",
            arch="Arm64",
            generations="V2",
        ),
        Sold(
            name="Standard_A2_v2",
            family="standardAv2Family",
            vcpus=2,
            memory_gib=4,
            usd_per_hour="0.091",
            generations="V1",
            premium=False,
        ),
        Sold(
            name="Standard_DC4as_v5",
            family="standardDCASv5Family",
            vcpus=4,
            memory_gib=16,
            usd_per_hour="0.208",
            generations="V2",
            confidential="SNP",
            regions=("westeurope", "eastus"),
        ),
        Sold(
            name="Standard_NC4as_T4_v3",
            family="Standard NCASv3_T4 Family",
            vcpus=4,
            memory_gib=28,
            usd_per_hour="0.605",
            spot_usd_per_hour="0.121",
            gpus=1,
            regions=("westeurope", "eastus"),
        ),
        Sold(
            name="Standard_NV6ads_A10_v5",
            family="StandardNVADSA10v5Family",
            vcpus=6,
            memory_gib=55,
            usd_per_hour="0.522",
            gpus=1,
            generations="V2",
            regions=("westeurope",),
        ),
        Sold(
            name="Standard_NC128ds_xl_RTXPRO6000BSE_v6",
            family="StandardNCRTXPRO6000BSEv6Family",
            vcpus=128,
            memory_gib=512,
            usd_per_hour="9.15",
            gpus=1,
            generations="V2",
            regions=("westeurope",),
        ),
        Sold(
            name="Standard_M128ms",
            family="standardMSFamily",
            vcpus=128,
            memory_gib=3892,
            usd_per_hour="30.73",
            refused_regions=("westeurope", "eastus", "northcentralus", "brazilsoutheast"),
        ),
    )
}


def usd_per_hour(size: str, spot: bool) -> Decimal:
    sold = SIZES[size.lower()]
    return Decimal(sold.spot_usd_per_hour if spot and sold.spot_usd_per_hour else sold.usd_per_hour)


def meters(region: str) -> list[dict[str, Any]]:
    """The price list's items of a region, with the meters beside the wanted ones that real ones have."""
    found = []
    for sold in SIZES.values():
        if region not in sold.regions:
            continue
        plain = sold.name.removeprefix("Standard_").replace("_", " ")
        found += [
            _meter(sold.name, region, plain, _PRODUCT, sold.usd_per_hour, "2024-02-01T00:00:00Z"),
            _meter(sold.name, region, plain, _PRODUCT, "99.9", "2019-02-01T00:00:00Z"),
            _meter(sold.name, region, plain, "Virtual Machines Dav5 Series Windows", "88.8", "2025-06-01T00:00:00Z"),
            _meter(
                sold.name,
                region,
                f"{plain} Low Priority",
                _PRODUCT,
                "0.0001",
                "2025-06-01T00:00:00Z",
            ),
            _meter(sold.name, region, plain, "Dav5 Series Cloud Services", "77.7", "2025-02-01T00:00:00Z"),
            # So written since 2026, with the price of Windows ("Easv5 Series CloudServices" of Standard_E4as_v5).
            _meter(sold.name, region, plain, "Dav5 Series CloudServices", "66.6", "2026-01-01T00:00:00Z"),
            # The list has the intervals before and after the one in force.
            _meter(sold.name, region, plain, _PRODUCT, "55.5", "2025-03-01T00:00:00Z", "2025-03-31T23:59:59Z"),
            _meter(sold.name, region, plain, _PRODUCT, "44.4", "2999-01-01T00:00:00Z"),
        ]
        if sold.spot_usd_per_hour:
            found.append(
                _meter(
                    sold.name,
                    region,
                    f"{plain} Spot",
                    _PRODUCT,
                    sold.spot_usd_per_hour,
                    "2024-11-01T00:00:00Z",
                )
            )
    return found


def _meter(size: str, region: str, sku: str, product: str, price: str, since: str, until: str = "") -> dict[str, Any]:
    return {
        **({"effectiveEndDate": until} if until else {}),
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": float(price),
        "unitPrice": float(price),
        "armRegionName": region,
        "effectiveStartDate": since,
        "meterName": sku,
        "skuName": sku,
        "productName": product,
        "serviceName": "Virtual Machines",
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        "armSkuName": size,
    }
