"""What Azure sells: sizes from its compute API, prices from its public price list."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from threading import Lock

from tasks.clouds.azure import prices
from tasks.clouds.azure.clients import Clients, pool
from tasks.clouds.azure.errors import classify
from tasks.clouds.azure.gpus import model_of
from tasks.clouds.azure.identity import VENDOR, Place
from tasks.clouds.azure.skus import Size, Skus
from tasks.clouds.base import ServerType
from tasks.domain.errors import ConfigError

logger = logging.getLogger(__name__)

_N_THREADS = 8


@dataclass
class Catalog:
    """Read at first use and then kept: reading every region takes a minute or two."""

    clients: Clients
    skus: Skus
    regions: Sequence[str]
    now: Callable[[], float]
    _types: dict[str, ServerType] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def read(self) -> Sequence[ServerType]:
        """Every size with a price in a place that does not refuse it.

        A region that cannot be read is left out and logged; raises the SDK's error when none can.
        """
        with self._lock:
            if not self._types:
                self._types = self._read()
            return tuple(self._types.values())

    def server_type(self, name: str) -> ServerType:
        """Raises ConfigError for a size that is sold nowhere."""
        self.read()
        found = self._types.get(name.lower())
        if found is None:
            where = ", ".join(self.regions) or "any region"
            raise ConfigError(
                f"Azure sells no {name!r} to this subscription in {where}.",
                reason="unknown_server_type",
                next_step="Names are like Standard_D4as_v5; list them with `az vm list-skus --location REGION`.",
            )
        return found

    def known_price(self, size: str, place: Place, *, spot: bool) -> Decimal:
        """Without asking anybody; 0 where the catalog has not been read or has none."""
        known = self._types.get(size.lower())
        if known is None:
            return Decimal(0)
        by_place = known.spot_prices if spot else known.prices
        same_region = (price for at, price in by_place.items() if Place.parse(at).region == place.region)
        return by_place.get(str(place)) or next(same_region, Decimal(0))

    def _read(self) -> dict[str, ServerType]:
        regions = self.regions or self._all_regions()
        _ = self.clients.prices, self.clients.compute  # made before there are threads
        with pool(_N_THREADS) as threads:
            answers = dict(zip(regions, threads.map(self._region, regions), strict=True))
        failed = {region: answer for region, answer in answers.items() if isinstance(answer, Exception)}
        if failed and len(failed) == len(answers):
            raise next(iter(failed.values()))
        for region, exc in failed.items():
            logger.warning("azure: %s is left out, it could not be read: %s", region, classify(exc).message)
        read_unix_s = self.now()
        by_name: dict[str, list[_Offer]] = {}
        for answer in answers.values():
            for offer in answer if not isinstance(answer, Exception) else ():
                by_name.setdefault(offer.size.name.lower(), []).append(offer)
        return {key: _server_type(found, read_unix_s) for key, found in sorted(by_name.items())}

    def _all_regions(self) -> list[str]:
        """Those that have machines: others only group them ("europe")."""
        found = self.clients.get_json("/locations", "2022-12-01")["value"]
        return sorted(at["name"] for at in found if (at.get("metadata") or {}).get("regionType") == "Physical")

    def _region(self, region: str) -> list[_Offer] | Exception:
        """What is sold there; region by region, because all sizes of all regions at once fill gigabytes."""
        try:
            sizes = [size for size in self.skus.region(region).values() if size.offered]
            now_unix_s = self.now()
            listed = prices.read(self.clients, region, now_unix_s) if sizes else prices.digest((), now_unix_s)
        except Exception as exc:
            return exc
        return [
            _Offer(size, listed.on_demand[key], listed.spot.get(key))
            for size in sizes
            if (key := size.name.lower()) in listed.on_demand
        ]


@dataclass(frozen=True)
class _Offer:
    """One size in one region, with its prices per hour."""

    size: Size
    on_demand: Decimal
    spot: Decimal | None


def _server_type(offers: Sequence[_Offer], read_unix_s: float) -> ServerType:
    """One size in all its places, cheapest first."""
    any_size = offers[0].size
    on_demand = {place: offer.on_demand for offer in offers for place in offer.size.places}
    spot = {place: offer.spot for offer in offers if offer.spot is not None for place in offer.size.places}
    places = tuple(sorted(on_demand, key=lambda place: (on_demand[place], place)))
    gpu_model, gpu_memory_bytes = model_of(any_size.name) if any_size.gpus else ("", 0)
    return ServerType(
        vendor=VENDOR,
        name=any_size.name,
        vcpus=any_size.vcpus,
        memory_bytes=any_size.memory_bytes,
        disk_bytes=0,
        arch=any_size.arch,
        places=places,
        price_per_hour=on_demand[places[0]],
        currency=prices.CURRENCY,
        price_source=prices.SOURCE,
        price_read_unix_s=read_unix_s,
        gpus=any_size.gpus,
        gpu_model=gpu_model,
        gpu_memory_bytes=gpu_memory_bytes,
        prices=on_demand,
        spot_prices=spot,
    )
