"""What the emulated EC2 sells: few instance types with real descriptions, and prices of its own."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

# Real types, described by moto's data. Their prices are made up and only have to differ.
USD_PER_HOUR = {
    "t3.micro": Decimal("0.0104"),
    "t4g.nano": Decimal("0.0042"),
    "c7g.large": Decimal("0.0725"),
    "c7a.large": Decimal("0.10264"),
    "c7i.large": Decimal("0.08925"),
    "c7i.xlarge": Decimal("0.1785"),
    "g4dn.xlarge": Decimal("0.526"),
    "g5g.xlarge": Decimal("0.42"),
    "g6f.large": Decimal("0.2"),
    "mac1.metal": Decimal("1.083"),
}
# The last zone of each region has none of these.
ONLY_IN_SOME_ZONES = ("g4dn.xlarge", "g5g.xlarge")
SPOT_DISCOUNT = Decimal("0.3")
GP3_USD_PER_GIB_HOUR = Decimal("0.08") / 730
IPV4_USD_PER_HOUR = Decimal("0.005")
PROCESSORS = {"c7i": "Intel Xeon Scalable (Sapphire Rapids)", "c7a": "AMD EPYC 9R14", "c7g": "AWS Graviton3 Processor"}
PUBLISHED = "2026-11-01T00:00:00Z"
QUOTAS = {"L-1216C47A": 32, "L-DB2E81BA": 8, "L-417A185B": 0, "L-34B43A08": 32, "L-3819A6DF": 0}


def regional(name: str, region: str) -> Decimal:
    """Regions other than the first cost a tenth more."""
    return (
        USD_PER_HOUR[name] if region == "us-east-1" else (USD_PER_HOUR[name] * Decimal("1.1")).quantize(Decimal("1e-6"))
    )


def spot(name: str, zone: str) -> Decimal:
    """Each zone its own price."""
    zone_factor = 1 + Decimal(ord(zone[-1]) - ord("a")) / 100
    return (regional(name, zone[:-1]) * SPOT_DISCOUNT * zone_factor).quantize(Decimal("1e-6"))


def price_list(regions: tuple[str, ...]) -> list[dict[str, Any]]:
    """Products as the Price List API shows them: beside each ordinary one, one that only resembles it."""
    products = []
    for region in regions:
        for name in USD_PER_HOUR:
            ordinary = {
                "instanceType": name,
                "regionCode": region,
                "operatingSystem": "Linux",
                "preInstalledSw": "NA",
                "tenancy": "Shared",
                "capacitystatus": "Used",
                "licenseModel": "No License required",
                "marketoption": "OnDemand",
                "physicalProcessor": PROCESSORS.get(name.split(".")[0], "Intel Xeon"),
            }
            products.append(_product(ordinary, regional(name, region)))
            products.append(_product(ordinary | {"operatingSystem": "Windows"}, regional(name, region) * 2))
            products.append(_product(ordinary | {"preInstalledSw": "SQL Std"}, regional(name, region) * 9))
            products.append(_product(ordinary | {"capacitystatus": "UnusedCapacityReservation"}, Decimal(0)))
            products.append(_product(ordinary | {"marketoption": "CapacityBlock"}, Decimal(0)))
    return products


def _product(attributes: dict[str, str], usd_per_hour: Decimal) -> dict[str, Any]:
    sku = str(abs(hash(tuple(sorted(attributes.items())))))
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": str(usd_per_hour)}, "beginRange": "0", "endRange": "Inf"}
    return {
        "product": {"productFamily": "Compute Instance", "attributes": attributes, "sku": sku},
        "serviceCode": "AmazonEC2",
        "terms": {"OnDemand": {f"{sku}.JRTCKXETXF": {"priceDimensions": {f"{sku}.JRTCKXETXF.6YS6EN2CT7": dimension}}}},
        "publicationDate": PUBLISHED,
    }


def get_products(parameters: dict[str, Any], regions: tuple[str, ...]) -> dict[str, Any]:
    """Pages of 100 at most, like the real ones."""
    wanted = {f["Field"]: f["Value"] for f in parameters.get("Filters", ())}
    found = [p for p in price_list(regions) if wanted.items() <= p["product"]["attributes"].items()]
    start = int(parameters.get("NextToken") or 0)
    end = start + min(100, parameters.get("MaxResults", 100))
    answer: dict[str, Any] = {"FormatVersion": "aws_v1", "PriceList": [json.dumps(p) for p in found[start:end]]}
    return answer | ({"NextToken": str(end)} if end < len(found) else {})
