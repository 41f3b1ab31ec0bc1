"""What the emulated Google sells: zones, machine types, GPUs, images, prices as the Cloud Billing Catalog has them.

Shapes and prices are those of public price lists in 2026 or near them; nothing depends on their being exact. What the
SKUs are called is exact, and so are their units: github.com/Cyclenerd/google-cloud-pricing-cost-calculator
(build/mapping.csv), and the catalogue as vantage-sh/ec2instances.info and SpareCores/sc-crawler read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from zlib import crc32

Json = dict[str, Any]
GIB_PER_PARTITION = 375

ZONES = ("us-central1-a", "us-central1-b", "europe-west4-a")
REGIONS = ("europe-west4", "us-central1")


def region_of(zone: str) -> str:
    return zone.rpartition("-")[0]


@dataclass(frozen=True)
class MachineType:
    name: str
    vcpus: int
    memory_mib: int
    arch: str = "X86_64"
    gpu: str = ""
    gpus: int = 0
    ssd_partitions: int = 0
    zones: tuple[str, ...] = ZONES

    @property
    def family(self) -> str:
        return self.name.partition("-")[0]


MACHINE_TYPES = {
    kind.name: kind
    for kind in (
        MachineType("e2-micro", 2, 1024),
        MachineType("e2-standard-2", 2, 8192),
        MachineType("n1-standard-1", 1, 3840),
        MachineType("n1-standard-8", 8, 30_720),
        MachineType("n1-standard-16", 16, 61_440, zones=ZONES[:2]),
        MachineType("n2-standard-4", 4, 16_384),
        MachineType("n4-standard-2", 2, 8192),
        MachineType("n4d-standard-2", 2, 8192, zones=ZONES[:2]),
        MachineType("c2-standard-4", 4, 16_384, zones=ZONES[:1]),
        MachineType("c4a-standard-2", 2, 8192, arch="ARM64"),
        MachineType("c4a-standard-4-lssd", 4, 16_384, arch="ARM64", ssd_partitions=1, zones=ZONES[:1]),
        MachineType("c4d-standard-2", 2, 7168, zones=ZONES[:1]),
        MachineType("m4-ultramem-112", 112, 3_047_424, zones=ZONES[:1]),
        MachineType("m4-ultramem-224", 224, 6_094_848, zones=ZONES[:1]),
        MachineType("t2a-standard-1", 1, 4096, arch="ARM64", zones=ZONES[:2]),
        MachineType("g2-standard-4", 4, 16_384, gpu="nvidia-l4", gpus=1, zones=(ZONES[0], ZONES[2])),
        MachineType("g4-standard-48", 48, 184_320, gpu="nvidia-rtx-pro-6000", gpus=1, zones=ZONES[:1]),
        MachineType("a3-highgpu-1g", 26, 239_616, gpu="nvidia-h100-80gb", gpus=1, ssd_partitions=2, zones=ZONES[:1]),
        MachineType("x9-metal", 8, 65_536, zones=ZONES[:1]),  # so new that it has no price yet
    )
}

ACCELERATOR_TYPES = {  # what the API says they are, and where
    "nvidia-l4": ("NVIDIA L4", (ZONES[0], ZONES[2])),
    "nvidia-h100-80gb": ("NVIDIA H100 80GB", ZONES[:1]),
    "nvidia-rtx-pro-6000": ("NVIDIA RTX PRO 6000", ZONES[:1]),
    "nvidia-tesla-t4": ("NVIDIA T4", (ZONES[0], ZONES[2])),
}
ATTACHABLE = {"nvidia-tesla-t4": (1, 2, 4)}

HYPERDISK_ONLY = ("n4", "n4d", "c4a", "c4d", "m4", "g4", "x9")
ANY_DISK = ("a3",)


@dataclass(frozen=True)
class Image:
    project: str
    family: str
    arch: str
    size_gb: int


IMAGES = {
    (image.project, image.family): image
    for image in (
        Image("ubuntu-os-cloud", "ubuntu-2404-lts-amd64", "X86_64", 10),
        Image("ubuntu-os-cloud", "ubuntu-2404-lts-arm64", "ARM64", 10),
        Image("ubuntu-os-accelerator-images", "ubuntu-accelerator-2404-amd64-with-nvidia-580", "X86_64", 30),
        Image("ubuntu-os-accelerator-images", "ubuntu-accelerator-2404-arm64-with-nvidia-580", "ARM64", 30),
    )
}

_CORE_RAM = {  # what the SKU calls the family: per vCPU and hour, per GiB and hour
    "E2 Instance": ("E2", "0.02181159", "0.00292353"),
    "N1 Predefined Instance": ("N1", "0.031611", "0.004237"),
    "N2 Instance": ("N2", "0.031611", "0.004237"),
    "N4 Instance": ("N4", "0.02950", "0.00335"),
    "N4D Instance": ("N4D", "0.02500", "0.00284"),
    "Compute optimized": ("C2", "0.03398", "0.00455"),
    "C4A Arm Instance": ("C4A", "0.02894", "0.00329"),
    "C4D Instance": ("C4D", "0.02980", "0.00338"),
    "M4 Instance": ("M4", "0.0348", "0.00510"),
    "M4Ultramem224 Instance": ("M4Ultramem224", "0.0487", "0.00714"),
    "G4 Instance": ("G4", "0.0274", "0.00312"),
    "T2A Arm Instance": ("T2A", "0.0308", "0.0042"),
    "G2 Instance": ("G2", "0.024988", "0.002927"),
    "A3 Instance": ("A3", "0.029917", "0.002605"),
}
_BY_DECIMAL_GB = ("C4D", "M4Ultramem224")
"""Whose memory has the unit GBy.h; all others' has GiBy.h."""
_GPUS = {
    "Nvidia L4 GPU": "0.560040",
    "Nvidia H100 80GB GPU": "9.796550",
    "Nvidia Tesla T4 GPU": "0.35",
    "RTX 6000 96GB": "2.25",
}
_GPU_OF = {
    "nvidia-l4": "Nvidia L4 GPU",
    "nvidia-h100-80gb": "Nvidia H100 80GB GPU",
    "nvidia-rtx-pro-6000": "RTX 6000 96GB",
}
_SSD, _SSD_OF = Decimal("0.08"), {"C4A": Decimal("0.16")}
"""By the GiB and month: of most families, and of those with a price of their own."""
_SPOT = Decimal("0.4")
_EUROPE = Decimal("1.1")


def skus() -> list[Json]:
    """As services/6F81-5844-456A/skus lists them, with the kinds that must not be taken for a price of a server."""
    found: list[Json] = []
    for region, where, factor in (("us-central1", "Americas", Decimal(1)), ("europe-west4", "Netherlands", _EUROPE)):
        for label, (name, core, ram) in _CORE_RAM.items():
            gib_h = "GBy.h" if name in _BY_DECIMAL_GB else "GiBy.h"
            for part, price, group, unit in (("Core", core, "CPU", "h"), ("Ram", ram, "RAM", gib_h)):
                text = f"{label} {part} running in {where}"
                group = "N1Standard" if label.startswith("N1") else group
                usd = Decimal(price) * factor
                found.append(_sku(text, group, unit, usd, region))
                found.append(_sku(f"Spot Preemptible {text}", group, unit, usd * _SPOT, region, "Preemptible"))
                custom = f"{label.replace(' Instance', '')} Custom Instance {part} running in {where}"
                found.append(_sku(custom, group, unit, Decimal(9), region))
                found.append(_sku(f"{label} {part} running in {where} Sole Tenancy", group, unit, Decimal(8), region))
                found.append(_sku(f"Commitment v1: {text}", group, unit, Decimal(1), region, "Commit1Yr"))
                found.append(_sku(f"Reserved {text}", group, unit, Decimal(7), region))
        for label, price in _GPUS.items():
            usd, on_spot = Decimal(price) * factor, "attached to Spot Preemptible VMs"
            found.append(_sku(f"{label} running in {where}", "GPU", "h", usd, region))
            found.append(_sku(f"{label} {on_spot} running in {where}", "GPU", "h", usd * _SPOT, region, "Preemptible"))
        found += _local_ssds(region, where, factor)
    found.append(_sku("Network Internet Egress", "PremiumInternetEgress", "GiBy", Decimal("0.12"), "global"))
    return [_of_many_regions(s) for s in found if s["description"] == "E2 Instance Core running in Americas"] + found


def _local_ssds(region: str, where: str, factor: Decimal) -> list[Json]:
    """Those of spot servers come as OnDemand here and there: only the description tells them."""
    found = []
    for text, usd, spot, kind in (
        ("SSD backed Local Storage", _SSD, "SSD backed Local Storage attached to Spot Preemptible VMs", "Storage"),
        *((f"{f} Instance Local SSD running", p, f"Spot Preemptible {f} Instance Local SSD running", "Compute")
          for f, p in _SSD_OF.items()),
    ):  # fmt: skip
        found.append(_sku(f"{spot} in {where}", "LocalSSD", "GiBy.mo", usd * factor * _SPOT, region, family=kind))
        found.append(_sku(f"{text} in {where}", "LocalSSD", "GiBy.mo", usd * factor, region, family=kind))
    return found


def _of_many_regions(sku: Json) -> Json:
    """The older SKU that a newer one of fewer regions has taken the place of, still in the list."""
    price = sku["pricingInfo"][-1]["pricingExpression"]["tieredRates"][0]["unitPrice"]
    cheaper = _expression("h", price | {"nanos": price["nanos"] // 2})
    timeline = [{"effectiveTime": "2026-11-01T00:00:00Z", "pricingExpression": cheaper}]
    return sku | {"serviceRegions": ["us-central1", "us-east1"], "pricingInfo": timeline}


def _sku(
    text: str,
    group: str,
    unit: str,
    price: Decimal,
    region: str,
    usage: str = "OnDemand",
    family: str = "Compute",
) -> Json:
    nanos = int((price * 10**9).to_integral_value())
    money = {"currencyCode": "USD", "units": str(nanos // 10**9), "nanos": nanos % 10**9}
    old = {"currencyCode": "USD", "units": "99", "nanos": 0}
    return {
        "name": f"services/6F81-5844-456A/skus/{crc32(f'{text}|{region}'.encode()):08X}",
        "skuId": f"{crc32(f'{text}|{region}'.encode()):08X}",
        "description": text,
        "category": {
            "serviceDisplayName": "Compute Engine",
            "resourceFamily": family,
            "resourceGroup": group,
            "usageType": usage,
        },
        "serviceRegions": [region],
        "pricingInfo": [
            {"effectiveTime": f"2026-{month:02d}-01T00:00:00Z", "pricingExpression": _expression(unit, unit_price)}
            for month, unit_price in ((6, old), (11, money))
        ],
        "serviceProviderName": "Google",
    }


def _expression(unit: str, price: Json) -> Json:
    return {"usageUnit": unit, "displayQuantity": 1, "tieredRates": [{"startUsageAmount": 0, "unitPrice": price}]}


def usd_per_hour(kind: MachineType, zone: str, *, spot: bool, t4s: int = 0) -> Decimal:
    """What the emulated account is billed while such a server exists."""
    billed_as = {"m4-ultramem-224": "m4ultramem224"}.get(kind.name, kind.family)
    family = {label: prices for label, prices in _CORE_RAM.items() if prices[0].lower() == billed_as}
    if not family:
        return Decimal("1.00")
    ((_, (name, core, ram)),) = family.items()
    vcpus = Decimal("0.25") if kind.name == "e2-micro" else Decimal(kind.vcpus)
    memory_gib = Decimal(kind.memory_mib) / 1024
    price = vcpus * Decimal(core) + memory_gib * Decimal(ram) * (_GIB_IN_GB if name in _BY_DECIMAL_GB else 1)
    price += kind.gpus * Decimal(_GPUS[_GPU_OF[kind.gpu]] if kind.gpu else "0")
    price += t4s * Decimal(_GPUS["Nvidia Tesla T4 GPU"])
    price += kind.ssd_partitions * GIB_PER_PARTITION * _SSD_OF.get(name, _SSD) / 730
    return price * (_SPOT if spot else 1) * (_EUROPE if zone.startswith("europe") else 1)


_GIB_IN_GB = Decimal(2**30) / 10**9
DISK_USD_PER_GIB_HOUR = Decimal("0.10") / 730
ADDRESS_USD_PER_HOUR = Decimal("0.005")
SNAPSHOT_USD_PER_GIB_HOUR = Decimal("0.05") / 730
