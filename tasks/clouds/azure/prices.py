"""Azure's public price list, which asks for no credentials.

https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from tasks.clouds.azure.clients import Clients

SOURCE = "https://prices.azure.com/api/retail/prices"
CURRENCY = "USD"
_MAX_PAGES = 500
_TIMESTAMPS = "%Y-%m-%dT%H:%M:%SZ"  # of the list, which sort as text


@dataclass(frozen=True)
class Prices:
    """Of one region, per hour by lower-case size name."""

    on_demand: Mapping[str, Decimal]
    spot: Mapping[str, Decimal]


def read(clients: Clients, region: str, now_unix_s: float) -> Prices:
    """Raises what the SDK raises; a page that is missing fails the whole."""
    return digest(_items(clients, region), now_unix_s)


def digest(items: Iterable[Mapping[str, Any]], now_unix_s: float) -> Prices:
    """The Linux prices in force among the meters: of several of one size, the one that came into force last.

    The list has prices of last month and of next month beside those of today.
    """
    now = datetime.fromtimestamp(now_unix_s, UTC).strftime(_TIMESTAMPS)
    best: dict[tuple[str, bool], tuple[str, Decimal]] = {}
    for item in items:
        size, meter, product = (str(item.get(key) or "") for key in ("armSkuName", "skuName", "productName"))
        if not size or item.get("unitOfMeasure") != "1 Hour" or item.get("type") != "Consumption":
            continue
        # "Low Priority" is of scale sets that are no longer sold. Cloud Services are another product, of the same sizes
        # at the prices of Windows; written "CloudServices", too, since 2026.
        other = "Windows" in product or "CloudServices" in product.replace(" ", "")
        if other or "Low Priority" in meter or "Expired" in meter:
            continue
        since, until = (str(item.get(key) or "") for key in ("effectiveStartDate", "effectiveEndDate"))
        price = _decimal(item.get("retailPrice"))
        if price is None or since > now or (until and until <= now):
            continue
        key = size.lower(), meter.endswith("Spot")
        if key not in best or since > best[key][0]:
            best[key] = (since, price)
    return Prices(
        on_demand={size: price for (size, spot), (_, price) in best.items() if not spot},
        spot={size: price for (size, spot), (_, price) in best.items() if spot},
    )


def _items(clients: Clients, region: str) -> Iterator[Mapping[str, Any]]:
    wanted = f"serviceName eq 'Virtual Machines' and priceType eq 'Consumption' and armRegionName eq '{region}'"
    base = clients.connection.prices_endpoint
    query = urlencode({"$filter": wanted, "currencyCode": f"'{CURRENCY}'"})
    url = f"{base}/api/retail/prices?{query}"
    for _ in range(_MAX_PAGES):
        page = clients.get_prices(url)
        yield from page["Items"]
        following = page.get("NextPageLink")
        if not following:
            return
        url = _same_host(base, following)  # the links name the port, and no proxy or other host that was set
    raise ValueError(f"The price list of {region} has more than {_MAX_PAGES} pages.")


def _same_host(base: str, link: str) -> str:
    ours, theirs = urlsplit(base), urlsplit(link)
    return urlunsplit((ours.scheme, ours.netloc, theirs.path, theirs.query, ""))


def _decimal(value: object) -> Decimal | None:
    try:
        price = Decimal(str(value))
    except InvalidOperation:
        return None
    return price if price > 0 else None
