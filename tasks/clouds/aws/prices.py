"""Dated prices: on demand from the Price List API, spot from the spot price history."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from tasks.clouds.aws.clients import Clients, pages

# The Price List API has few endpoints, and each knows every region:
# https://docs.aws.amazon.com/awsaccountbilling/latest/aboutv2/using-the-aws-price-list-query-api.html
_PRICING_REGION = "us-east-1"
_PAGE_SIZE = 100
# What an ordinary Linux server without a reservation, a dedicated host or bought software is called there.
_ORDINARY = {
    "operatingSystem": "Linux",
    "preInstalledSw": "NA",
    "tenancy": "Shared",
    "capacitystatus": "Used",
    "licenseModel": "No License required",
    "marketoption": "OnDemand",
}
_SPOT_PRODUCT = "Linux/UNIX"


@dataclass(frozen=True, kw_only=True)
class OnDemand:
    usd_per_hour: Decimal
    cpu_model: str
    published: str


def on_demand(clients: Clients, *, region: str = "", name: str = "") -> dict[tuple[str, str], OnDemand]:
    """By (server type, region), for one region or for one server type. Zero is no price: capacity that is sold
    otherwise is listed at 0."""
    wanted = _ORDINARY | ({"regionCode": region} if region else {}) | ({"instanceType": name} if name else {})
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
    client = clients.of("pricing", _PRICING_REGION)
    found: dict[tuple[str, str], OnDemand] = {}
    for page in pages(client, "get_products", _PAGE_SIZE, ServiceCode="AmazonEC2", Filters=filters):
        for text in page["PriceList"]:
            offer = json.loads(text)
            attributes = offer["product"]["attributes"]
            usd_per_hour = max(_hourly_usd(offer), default=Decimal(0))
            if usd_per_hour > 0 and attributes.get("instanceType") and attributes.get("regionCode"):
                found[attributes["instanceType"], attributes["regionCode"]] = OnDemand(
                    usd_per_hour=usd_per_hour,
                    cpu_model=attributes.get("physicalProcessor", ""),
                    published=offer.get("publicationDate", ""),
                )
    return found


def _hourly_usd(offer: Any) -> Iterator[Decimal]:
    for term in offer.get("terms", {}).get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            if dimension["unit"] == "Hrs" and "USD" in dimension["pricePerUnit"]:
                try:
                    yield Decimal(dimension["pricePerUnit"]["USD"])
                except InvalidOperation:
                    continue


def spot(clients: Clients, region: str, names: Sequence[str], now_unix_s: float) -> dict[tuple[str, str], Decimal]:
    """The newest spot price by (server type, zone)."""
    arguments: dict[str, Any] = {
        "ProductDescriptions": [_SPOT_PRODUCT],
        # A history from now on holds exactly the prices that are in force.
        "StartTime": datetime.fromtimestamp(now_unix_s, UTC),
    }
    if names:
        arguments["InstanceTypes"] = list(names)
    newest: dict[tuple[str, str], tuple[datetime, Decimal]] = {}
    for page in pages(clients.ec2(region), "describe_spot_price_history", clients.options.page_size, **arguments):
        for entry in page["SpotPriceHistory"]:
            key = (entry["InstanceType"], entry["AvailabilityZone"])
            price = (entry["Timestamp"], Decimal(entry["SpotPrice"]))
            newest[key] = max(newest.get(key, price), price)
    return {key: usd_per_hour for key, (_, usd_per_hour) in newest.items()}
