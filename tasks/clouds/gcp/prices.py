"""Hourly prices from the Cloud Billing Catalog, put together as Google bills them: per vCPU, per GiB, per GPU.

The catalogue has no prices of machine types, and its SKUs no machine readable family: only a description ("N2D AMD
Instance Core running in Americas"). A description is read whole. What has any other word in it (Custom, Sole Tenancy,
Reserved, Commitment) is another product and is passed over; what is not read is not guessed.

How it words things, and which of two prices is billed, others have found by holding the catalogue against Google's
price pages: Cyclenerd/google-cloud-pricing-cost-calculator (build/mapping.csv), vantage-sh/ec2instances.info,
cloudpilot-ai/karpenter-provider-gcp, SpareCores/sc-crawler.
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

# Of CPU and memory it is "Spot Preemptible N2 ... running in", of GPUs and local SSDs "... attached to Spot Preemptible
# VMs running in".
_PREEMPTIBLE = r"(?:(?:Spot )?Preemptible )?"
_ON_PREEMPTIBLE = r"(?: attached to (?:Spot )?Preemptible VMs)?"
_CORE_OR_RAM = re.compile(_PREEMPTIBLE + r"(?P<label>.+?)(?: Instance)? (?P<part>Core|Ram) running in [^()]+")
_GPU = re.compile(
    _PREEMPTIBLE
    + r"(?:Nvidia )?(?:Tesla )?(?:(?P<model>[A-Z][A-Z0-9]*\d(?: \d+GB)?(?: \w+)?) (?:GPU|\(1 gpu slice\))"
    + r"|(?P<bare>RTX 6000 96GB))"
    + _ON_PREEMPTIBLE
    + r" running in [^()]+",
    re.I,
)
_WHOLE = re.compile(_PREEMPTIBLE + r"(?P<label>Micro|Small) Instance with .+ running in [^()]+")
_LOCAL_SSD = re.compile("SSD backed Local Storage" + _ON_PREEMPTIBLE + r"(?:(?: running)? in [^()]+)?")
_LOCAL_SSD_OF_FAMILY = re.compile(_PREEMPTIBLE + r"(?P<label>.+?) Instance Local SSD running in [^()]+")
_QUALIFIERS = re.compile(r" (?:Predefined|AMD|Arm|Intel|Memory-optimized)$")
_FAMILY = re.compile(r"[a-z]\d+[a-z]*\d*")
_NOT_FROM_HERE = re.compile(r"Sole Tenancy|Custom|Reserved|Commitment|Premium|Calendar|DWS|Flex|vGPU|Extended", re.I)

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
    "nvidia-rtx-pro-6000": ("RTX 6000 96GB",),
}
"""What the catalogue calls an accelerator type, by region sometimes one, sometimes another."""

_BILLED_AS = {
    # A3 machines are billed apart by the GPU they have; the plain label is that of the first sort.
    "a3-megagpu-": "a3plus",
    "a3-ultragpu-": "a3ultra",
    # Of M4's the one that costs more by the vCPU and by the GiB than all others.
    "m4-ultramem-224": "m4ultramem224",
    # Old names of M1's.
    "n1-megamem-": "m1",
    "n1-ultramem-": "m1",
}
"""Where a machine type's name begins so, the family that its price is to be found under."""

_VCPUS_OF_A_WHOLE_G4_GPU = 48

_PER_HOUR = {
    "h": Decimal(1),
    "GiBy.h": Decimal(1),
    "GBy.h": Decimal(2**30) / 10**9,  # memory of C4D and of M4Ultramem224 is priced by the decimal GB
    "GiBy.mo": 1 / Decimal(HOURS_PER_MONTH),
}
"""Of a price by that unit, how much it is by the hour, or by the GiB and hour."""

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
        special = next((label for start, label in _BILLED_AS.items() if self.name.startswith(start)), "")
        return special or self.name.partition("-")[0]

    @property
    def local_ssd_gib(self) -> Decimal | None:
        """Of one partition: 375, but for Z3 and bare metal, whose are larger and of several sizes (None):
        cloud.google.com/compute/docs/disks/local-ssd."""
        return None if self.family == "z3" or self.name.endswith("-metal") else Decimal(375)

    @property
    def has_part_of_a_gpu(self) -> bool:
        """G4's small ones have an eighth to a half of a GPU, which the API counts as one: a virtual one, that takes
        another driver than the image's (cloud.google.com/compute/docs/accelerator-optimized-machines#g4-series)."""
        return self.family == "g4" and self.vcpus < _VCPUS_OF_A_WHOLE_G4_GPU * self.gpus


@dataclass
class Rates:
    """USD per hour of one unit. effective: since when the newest of them is so."""

    usd: dict[Key, Decimal] = field(default_factory=dict)
    effective: str = ""
    _n_regions: dict[Key, int] = field(default_factory=dict)

    def add(self, sku: dict[str, Any]) -> None:
        """Take a SKU that is the price of a part of a server; pass over any other. Where several are of the same part
        and region, the one of fewer regions is what is billed ("in Columbus" before "in Americas"); of two as narrow
        the dearer one, because it mostly is, and a cap must hold."""
        what, spot = _part(sku)
        usd, effective = _usd_per_hour(sku)
        if not what or usd is None:
            return
        regions = sku.get("serviceRegions", ())
        for region in regions:
            key = (what, region, spot)
            known = self._n_regions.get(key, len(regions) + 1), -self.usd.get(key, usd)
            if (len(regions), -usd) < known:
                self.usd[key], self._n_regions[key] = usd, len(regions)
        self.effective = max(self.effective, effective)

    def price(self, shape: Shape, region: str, *, spot: bool = False) -> Decimal | str:
        """Of one hour of the whole server without its disk; or which part has no price."""
        if shape.name in _WHOLE_INSTANCES:
            return self._of(f"whole {_WHOLE_INSTANCES[shape.name]}", region, spot) or f"no price of {shape.name}"
        if shape.has_part_of_a_gpu:
            return f"{shape.name} has a part of a GPU, for which its image has no driver"
        vcpus = SHARED_CORES.get(shape.name, Decimal(shape.vcpus))
        parts = [
            ("vCPUs", vcpus, self._of(f"core {shape.family}", region, spot)),
            ("memory", Decimal(shape.memory_mib) / 1024, self._of(f"ram {shape.family}", region, spot)),
        ]
        if shape.gpus:
            names = _GPU_LABELS.get(shape.accelerator, ())
            found = (self._of(f"gpu {name.upper()}", region, spot) for name in names)
            parts.append((shape.accelerator, Decimal(shape.gpus), next((usd for usd in found if usd), None)))
        if shape.local_ssds or shape.family == "z3":
            # C4, C4A, C4D and H4D have a price of their own; the others' is the general one.
            size_gib = shape.local_ssd_gib
            usd = self._of(f"ssd {shape.family}", region, spot) or self._of("ssd", region, spot)
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
    # Some spot SKUs, of local SSDs and of B200, have the usage type OnDemand: then only the description says it.
    spot = category.get("usageType") == "Preemptible" or "Preemptible" in text
    if category.get("usageType") not in ("OnDemand", "Preemptible") or _NOT_FROM_HERE.search(text):
        return "", spot
    group = category.get("resourceGroup", "")
    if group == "GPU":
        found = _GPU.fullmatch(text)
        return (f"gpu {(found['model'] or found['bare']).upper()}" if found else ""), spot
    if group == "LocalSSD":
        found = _LOCAL_SSD_OF_FAMILY.fullmatch(text)
        family = _family(found["label"]) if found else ""
        return (f"ssd {family}" if family else "ssd" if _LOCAL_SSD.fullmatch(text) else ""), spot
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
    per_hour = _PER_HOUR.get(expression.get("usageUnit", ""))
    if not tiers or per_hour is None:
        return None, ""
    price = max(tiers, key=lambda tier: float(tier.get("startUsageAmount", 0)))["unitPrice"]
    if price.get("currencyCode") != "USD":
        return None, ""
    usd = Decimal(price.get("units") or 0) + Decimal(price.get("nanos") or 0) / 10**9
    return (usd * per_hour if usd > 0 else None), str(newest.get("effectiveTime", ""))
