"""What Azure sells: sizes from its compute API, prices from its public price list."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from threading import Lock

from tasks.clouds.azure import prices
from tasks.clouds.azure.clients import Clients, pool
from tasks.clouds.azure.errors import classify
from tasks.clouds.azure.gpus import model_of
from tasks.clouds.azure.identity import VENDOR, Place
from tasks.clouds.azure.prices import Prices
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

        A region whose price list cannot be read is left out and logged; raises the SDK's error when none can.
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
        if self.regions:
            sizes: Mapping[str, dict[str, Size]] = {region: self.skus.region(region) for region in self.regions}
        else:
            sizes = self.skus.every_region()
        listed = self._prices(sorted(region for region, found in sizes.items() if found))
        read_unix_s = self.now()
        by_name: dict[str, list[Size]] = {}
        for region in listed:
            for key, size in sizes[region].items():
                if size.offered and key in listed[region].on_demand:
                    by_name.setdefault(key, []).append(size)
        return {key: _server_type(found, listed, read_unix_s) for key, found in sorted(by_name.items())}

    def _prices(self, regions: Sequence[str]) -> dict[str, Prices]:
        def one(region: str) -> Prices | Exception:
            try:
                return prices.read(self.clients, region)
            except Exception as exc:
                return exc

        _ = self.clients.prices  # made before there are threads
        with pool(_N_THREADS) as threads:
            answers = dict(zip(regions, threads.map(one, regions), strict=True))
        failed = {region: answer for region, answer in answers.items() if isinstance(answer, Exception)}
        if failed and len(failed) == len(regions):
            raise next(iter(failed.values()))
        for region, exc in failed.items():
            logger.warning("azure: %s is left out, its prices could not be read: %s", region, classify(exc).message)
        return {region: answer for region, answer in answers.items() if not isinstance(answer, Exception)}


def _server_type(sizes: Sequence[Size], listed: Mapping[str, Prices], read_unix_s: float) -> ServerType:
    """One size in all its places, cheapest first."""
    any_size = sizes[0]
    key = any_size.name.lower()
    on_demand = {place: listed[size.region].on_demand[key] for size in sizes for place in size.places}
    spot = {p: listed[s.region].spot[key] for s in sizes if key in listed[s.region].spot for p in s.places}
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
