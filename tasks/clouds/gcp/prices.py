"""Hourly prices from the Cloud Billing Catalog, put together as Google bills them: per vCPU, per GiB, per GPU.

The catalogue has no prices of machine types, and its SKUs no machine readable family: only a description ("N2D AMD
Instance Core running in Americas"). A description is read whole. What has any other word in it (Custom, Sole Tenancy,
Reserved, Commitment) is another product and is passed over; what is not read is not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tasks.clouds.gcp.clients import BILLING, Clients

COMPUTE_ENGINE = "services/6F81-5844-456A"  # cloud.google.com/skus
SOURCE = f"Cloud Billing Catalog API, {COMPUTE_ENGINE}"
HOURS_PER_MONTH = 730  # cloud.google.com/compute/disks-image-pricing counts a month so

_PREEMPTIBLE = r"(?P<spot>(?:Spot )?Preemptible )?"
_CORE_OR_RAM = re.compile(_PREEMPTIBLE + r"(?P<label>.+?)(?: Instance)? (?P<part>Core|Ram) running in [^()]+")
_GPU = re.compile(
    _PREEMPTIBLE
    + r"(?:Nvidia )?(?:Tesla )?(?P<model>[A-Z][A-Z0-9]*\d(?: \d+GB)?(?: \w+)?)"
    + r" (?:GPU|\(1 gpu slice\)) running in [^()]+",
    re.I,
)
_WHOLE = re.compile(_PREEMPTIBLE + r"(?P<label>Micro|Small) Instance with .+ running in [^()]+")
_LOCAL_SSD = re.compile(r"SSD backed Local Storage(?P<spot> attached to (?:Spot )?Preemptible VMs)?(?: in [^()]+)?")
_QUALIFIERS = re.compile(r" (?:Predefined|AMD|Arm|Intel|Memory-optimized)$")
_FAMILY = re.compile(r"[a-z]\d+[a-z]*")
_NOT_FROM_HERE = re.compile(r"Sole Tenancy|Custom|Reserved|Commitment|Premium|Calendar|DWS|Extended", re.I)

_GPU_LABELS = {
    "nvidia-l4": ("L4",),
    "nvidia-tesla-t4": ("T4",),
    "nvidia-tesla-p4": ("P4",),
    "nvidia-tesla-p100": ("P100",),
    "nvidia-tesla-v100": ("V100",),
    "nvidia-tesla-a100": ("A100",),
    "nvidia-a100-80gb": ("A100 80GB",),
    "nvidia-h100-80gb": ("H100 80GB",),
    "nvidia-h100-mega-80gb": ("H100 80GB Mega", "H100 80GB Plus", "H100 Mega 80GB"),
    "nvidia-h200-141gb": ("H200 141GB",),
    "nvidia-b200": ("B200",),
}
"""What the catalogue calls an accelerator type, by region sometimes one, sometimes another."""

_A3_LABELS = {"a3-megagpu": "a3plus", "a3-ultragpu": "a3ultra"}
"""A3 machines are billed apart by the GPU they have; the plain label is that of the first sort."""

SHARED_CORES = {"e2-micro": Decimal("0.25"), "e2-small": Decimal("0.5"), "e2-medium": Decimal(1)}
"""vCPUs that are billed of those that are seen: cloud.google.com/compute/vm-instance-pricing#e2_sharedcore."""
_WHOLE_INSTANCES = {"f1-micro": "Micro", "g1-small": "Small"}

Key = tuple[str, str, bool]  # what ("core n2", "ram n2", "gpu L4", "ssd"), region, spot


@dataclass(frozen=True)
class Shape:
    """What of a machine type has a price."""

    name: str
    vcpus: int
    memory_mib: int
    gpus: int = 0
    accelerator: str = ""
    local_ssds: int = 0

    @property
    def family(self) -> str:
        special = next((label for start, label in _A3_LABELS.items() if self.name.startswith(start)), "")
        return special or self.name.partition("-")[0]


@dataclass
class Rates:
    """USD per hour of one unit. effective: since when the newest of them is so."""

    usd: dict[Key, Decimal] = field(default_factory=dict)
    effective: str = ""

    def add(self, sku: dict[str, Any]) -> None:
        """Take a SKU that is the price of a part of a server; pass over any other."""
        what, spot = _part(sku)
        usd, effective = _usd_per_hour(sku)
        if not what or usd is None:
            return
        for region in sku.get("serviceRegions", ()):
            self.usd.setdefault((what, region, spot), usd)
        self.effective = max(self.effective, effective)

    def price(self, shape: Shape, region: str, *, spot: bool = False) -> Decimal | str:
        """Of one hour of the whole server without its disk; or which part has no price."""
        if shape.name in _WHOLE_INSTANCES:
            return self._of(f"whole {_WHOLE_INSTANCES[shape.name]}", region, spot) or f"no price of {shape.name}"
        vcpus = SHARED_CORES.get(shape.name, Decimal(shape.vcpus))
        parts = [
            ("vCPUs", vcpus, self._of(f"core {shape.family}", region, spot)),
            ("memory", Decimal(shape.memory_mib) / 1024, self._of(f"ram {shape.family}", region, spot)),
        ]
        if shape.gpus:
            names = _GPU_LABELS.get(shape.accelerator, ())
            found = (self._of(f"gpu {name.upper()}", region, spot) for name in names)
            parts.append((shape.accelerator, Decimal(shape.gpus), next((usd for usd in found if usd), None)))
        if shape.local_ssds:
            # Partitions of 375 GiB, but for Z3, whose are larger: cloud.google.com/compute/docs/disks/local-ssd.
            size_gib = None if shape.family == "z3" else Decimal(375)
            usd = self._of("ssd", region, spot)
            parts.append(("local SSDs", shape.local_ssds * (size_gib or Decimal(0)), usd if size_gib else None))
        missing = [name for name, _, usd in parts if usd is None]
        if missing:
            return f"no price of {' and '.join(missing)} of family {shape.family} in {region}"
        return sum((units * usd for _, units, usd in parts if usd is not None), Decimal(0))

    def _of(self, what: str, region: str, spot: bool) -> Decimal | None:
        return self.usd.get((what, region, spot))


def read_rates(clients: Clients) -> Rates:
    """Every page of the catalogue, some thirty thousand SKUs. Raises what the session raises."""
    rates = Rates()
    for sku in _skus(clients):
        rates.add(sku)
    return rates


def _skus(clients: Clients) -> Iterator[dict[str, Any]]:
    page: dict[str, str] = {"pageSize": "5000", "currencyCode": "USD"}
    while True:
        answer = clients.request("GET", BILLING, f"/v1/{COMPUTE_ENGINE}/skus", params=page)
        yield from answer.get("skus", ())
        if not answer.get("nextPageToken"):
            return
        page["pageToken"] = answer["nextPageToken"]


def _part(sku: dict[str, Any]) -> tuple[str, bool]:
    """Which part of a server the SKU is the price of ("" for none), and whether of a spot one."""
    text, category = sku.get("description", ""), sku.get("category", {})
    spot = category.get("usageType") == "Preemptible"
    if category.get("usageType") not in ("OnDemand", "Preemptible") or _NOT_FROM_HERE.search(text):
        return "", spot
    group = category.get("resourceGroup", "")
    if group == "GPU":
        found = _GPU.fullmatch(text)
        return (f"gpu {found['model'].upper()}" if found else ""), spot
    if group == "LocalSSD":
        return ("ssd" if _LOCAL_SSD.fullmatch(text) else ""), spot
    if found := _WHOLE.fullmatch(text):
        return f"whole {found['label']}", spot
    found = _CORE_OR_RAM.fullmatch(text)
    family = _family(found["label"]) if found else ""
    return (f"{found['part'].lower()} {family}" if found and family else ""), spot


def _family(label: str) -> str:
    """ "n2d" of "N2D AMD"; "" where it is no one family's, as "Memory-optimized" is both M1's and M2's."""
    if label == "Compute optimized":
        return "c2"
    while (shorter := _QUALIFIERS.sub("", label)) != label:
        label = shorter
    family = label.lower().replace(" ", "")
    return family if _FAMILY.fullmatch(family) else ""


def _usd_per_hour(sku: dict[str, Any]) -> tuple[Decimal | None, str]:
    """The newest price, and since when it holds; None where it is not by the hour or the month, or not in USD."""
    timeline: Iterable[dict[str, Any]] = sku.get("pricingInfo", ())
    newest = max(timeline, key=lambda info: str(info.get("effectiveTime", "")), default={})
    expression = newest.get("pricingExpression", {})
    tiers = expression.get("tieredRates", ())
    hours = {"h": 1, "GiBy.h": 1, "GiBy.mo": HOURS_PER_MONTH}.get(expression.get("usageUnit", ""))
    if not tiers or hours is None:
        return None, ""
    price = max(tiers, key=lambda tier: float(tier.get("startUsageAmount", 0)))["unitPrice"]
    if price.get("currencyCode") != "USD":
        return None, ""
    usd = Decimal(price.get("units") or 0) + Decimal(price.get("nanos") or 0) / 10**9
    return (usd / hours if usd > 0 else None), str(newest.get("effectiveTime", ""))
