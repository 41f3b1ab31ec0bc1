"""What EC2 sells: instance types, the zones that offer them, and what they cost there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tasks.clouds.aws import prices
from tasks.clouds.aws.clients import Clients, is_zone, pages, region_of
from tasks.clouds.aws.errors import classify
from tasks.clouds.aws.images import ARCHITECTURES
from tasks.clouds.base import ServerType

logger = logging.getLogger(__name__)

_MIB = 2**20
_BYTES_PER_GBIT = 10**9 / 8
_PRICE_SOURCE = "AWS Price List API, AmazonEC2, on demand, Linux, shared"
_OURS = {theirs: ours for ours, theirs in ARCHITECTURES.items()}
# EC2 lets no more than this many types be asked for at once.
_TYPES_PER_PAGE = 100


@dataclass
class _Offer:
    """One instance type as all regions together describe it."""

    description: Any
    prices: dict[str, Decimal] = field(default_factory=dict)
    spot_prices: dict[str, Decimal] = field(default_factory=dict)
    cpu_model: str = ""
    published: str = ""


@dataclass(frozen=True, kw_only=True)
class _Region:
    descriptions: dict[str, Any]
    zones: dict[str, list[str]]
    on_demand: dict[tuple[str, str], prices.OnDemand]
    spot: dict[tuple[str, str], Decimal]


def read_catalog(clients: Clients, now: Callable[[], float], name: str = "") -> tuple[ServerType, ...]:
    """Every server type that has a price and a zone, or only the one of that name, by name.

    A region that cannot be read is left out with a warning; when none can be read, raises what the first one raised.
    """
    read_unix_s = now()
    regions = clients.regions()
    by_name = prices.on_demand(clients, name=name) if name else {}
    questions = [(clients, region, name, by_name, read_unix_s) for region in regions]
    offers: dict[str, _Offer] = {}
    failures: list[Exception] = []
    for region, answer in zip(regions, clients.in_parallel(_read_region, questions), strict=True):
        if isinstance(answer, Exception):
            failures.append(answer)
            logger.warning("aws: %s is left out of the catalogue: %s", region, classify(answer).message)
        else:
            _merge(offers, region, answer)
    if failures and len(failures) == len(regions):
        raise failures[0]
    found = (_server_type(name, offer, read_unix_s) for name, offer in sorted(offers.items()) if offer.prices)
    return tuple(server_type for server_type in found if server_type is not None)


def _read_region(
    clients: Clients,
    region: str,
    name: str,
    by_name: dict[tuple[str, str], prices.OnDemand],
    now_unix_s: float,
) -> _Region:
    client = clients.ec2(region)
    # A filter, because naming a type that the region does not have is an error.
    only = {"Filters": [{"Name": "instance-type", "Values": [name]}]} if name else {}
    descriptions = {
        entry["InstanceType"]: entry
        for page in pages(client, "describe_instance_types", _TYPES_PER_PAGE, **only)
        for entry in page["InstanceTypes"]
    }
    if not descriptions:
        return _Region(descriptions={}, zones={}, on_demand={}, spot={})
    zones: dict[str, list[str]] = {}
    where = only | {"LocationType": "availability-zone"}
    for page in pages(client, "describe_instance_type_offerings", clients.options.page_size, **where):
        for entry in page["InstanceTypeOfferings"]:
            if is_zone(entry["Location"]):
                zones.setdefault(entry["InstanceType"], []).append(entry["Location"])
    return _Region(
        descriptions=descriptions,
        zones=zones,
        on_demand=by_name if name else prices.on_demand(clients, region=region),
        spot=prices.spot(clients, region, [name] if name else [], now_unix_s),
    )


def _merge(offers: dict[str, _Offer], region: str, read: _Region) -> None:
    for name, description in read.descriptions.items():
        price = read.on_demand.get((name, region))
        if price is None:
            continue
        offer = offers.setdefault(name, _Offer(description))
        offer.cpu_model = offer.cpu_model or price.cpu_model
        offer.published = max(offer.published, price.published)
        for zone in read.zones.get(name, ()):
            offer.prices[zone] = price.usd_per_hour
            if (name, zone) in read.spot:
                offer.spot_prices[zone] = read.spot[name, zone]


def _server_type(name: str, offer: _Offer, read_unix_s: float) -> ServerType | None:
    """None for machines that boot no Linux image of ours (Macs)."""
    entry = offer.description
    arch = next((_OURS[a] for a in entry["ProcessorInfo"]["SupportedArchitectures"] if a in _OURS), None)
    if arch is None:
        return None
    gpu: Any = next(iter(entry.get("GpuInfo", {}).get("Gpus", ())), {})
    places = sorted(offer.prices, key=lambda zone: (offer.prices[zone], region_of(zone), zone))
    return ServerType(
        vendor="aws",
        name=name,
        vcpus=int(entry["VCpuInfo"]["DefaultVCpus"]),
        memory_bytes=int(entry["MemoryInfo"]["SizeInMiB"]) * _MIB,
        disk_bytes=0,
        arch=arch,
        places=tuple(places),
        price_per_hour=offer.prices[places[0]],
        currency="USD",
        price_source=f"{_PRICE_SOURCE}, published {offer.published}" if offer.published else _PRICE_SOURCE,
        price_read_unix_s=read_unix_s,
        # Parts of a GPU are no GPU by Count, and servers that have one must not pass for servers without.
        gpus=int(gpu.get("Count") or gpu.get("LogicalGpuCount") or 0),
        gpu_model=" ".join(filter(None, (gpu.get("Manufacturer"), gpu.get("Name")))),
        gpu_memory_bytes=int(gpu.get("MemoryInfo", {}).get("SizeInMiB") or 0) * _MIB,
        cpu_model=offer.cpu_model or entry["ProcessorInfo"].get("Manufacturer", ""),
        prices=dict(offer.prices),
        spot_prices=dict(offer.spot_prices),
        link_bytes_per_s=_link_bytes_per_s(entry.get("NetworkInfo", {})),
    )


def _link_bytes_per_s(network: Any) -> float:
    """What the network can do all the time, all cards together; not the peak that "up to" promises. 0: not told."""
    cards = network.get("NetworkCards") or ()
    return sum(float(card.get("BaselineBandwidthInGbps") or 0) for card in cards) * _BYTES_PER_GBIT
