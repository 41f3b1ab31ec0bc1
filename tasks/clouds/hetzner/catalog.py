"""What Hetzner sells, where, and for how much, from its API: net prices, in the currency of the account."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from hcloud import Client

from tasks.clouds.base import ServerType
from tasks.clouds.hetzner.inventory import VENDOR, every
from tasks.domain.errors import ConfigError

PRICE_SOURCE = "api.hetzner.cloud/v1/server_types + /pricing (net, with a primary IPv4)"
MAX_AGE_S = 3600.0
_ARCHITECTURES = {"x86": "x86_64", "arm": "aarch64"}
_GIB, _GB = 2**30, 10**9


class Catalog:
    """Read at first use and kept for an hour. locations: the only ones to offer; empty for all."""

    def __init__(self, client: Client, locations: Sequence[str], now: Callable[[], float]) -> None:
        self._client = client
        self._locations = frozenset(locations)
        self._now = now
        self._lock = threading.Lock()
        self._read_unix_s = float("-inf")
        self._models: dict[str, Any] = {}
        self._known: dict[str, ServerType] = {}

    def server_types(self) -> list[ServerType]:
        """What can be had now, somewhere."""
        self._refresh()
        return [kind for kind in self._known.values() if kind.places]

    def server_type(self, name: str) -> ServerType:
        """Without places when it is sold out or withdrawn, so that what ran on it can still be told its price."""
        self._refresh()
        if name not in self._known:
            raise ConfigError(
                f"hetzner has no server type {name!r}.",
                next_step=f"It sells: {', '.join(sorted(o.name for o in self.server_types())) or 'none there'}.",
            )
        return self._known[name]

    def default_names(self) -> tuple[str, ...]:
        """The cheapest of each architecture and kind of CPU."""
        cheapest: dict[tuple[str, str], ServerType] = {}
        for offer in sorted(self.server_types(), key=lambda o: (o.price_per_hour, o.name)):
            cheapest.setdefault((offer.arch, str(self._models[offer.name].cpu_type)), offer)
        return tuple(offer.name for offer in cheapest.values())

    def disk_bytes(self, name: str) -> int | None:
        """What is known of the type's disk without asking; None for nothing."""
        model = self._models.get(name)
        return None if model is None else int(model.disk) * _GB

    def _refresh(self) -> None:
        with self._lock:
            now_unix_s = self._now()
            if 0 <= now_unix_s - self._read_unix_s < MAX_AGE_S:
                return
            currency, ipv4_prices = self._pricing()
            models = every(self._client.server_types.get_list)
            self._models = {str(model.name): model for model in models if model.prices}
            self._known = {
                name: self._kind(model, currency, ipv4_prices, now_unix_s) for name, model in self._models.items()
            }
            self._read_unix_s = now_unix_s

    def _pricing(self) -> tuple[str, dict[str, Decimal]]:
        """The currency, and what a primary IPv4 costs per hour, by location. (The SDK has no client for prices.)"""
        pricing = self._client.request("GET", "/pricing")["pricing"]
        ipv4 = next((kind["prices"] for kind in pricing.get("primary_ips", ()) if kind["type"] == "ipv4"), ())
        return str(pricing["currency"]), {price["location"]: _net(price) for price in ipv4}

    def _kind(self, model: Any, currency: str, ipv4_prices: dict[str, Decimal], now_unix_s: float) -> ServerType:
        """Prices everywhere, places where it can be had now."""
        prices = {
            str(price["location"]): _net(price) + ipv4_prices.get(price["location"], Decimal(0))
            for price in model.prices
        }
        open_places = [place for place in _open_places(model, now_unix_s) if self._offers_in(place) and place in prices]
        places = tuple(sorted(open_places, key=lambda place: (prices[place], place)))
        return ServerType(
            vendor=VENDOR,
            name=str(model.name),
            vcpus=int(model.cores),
            memory_bytes=int(Decimal(str(model.memory)) * _GIB),
            disk_bytes=int(model.disk) * _GB,
            arch=_ARCHITECTURES.get(str(model.architecture), str(model.architecture)),
            places=places,
            price_per_hour=prices[places[0]] if places else min(prices.values()),
            currency=currency,
            price_source=PRICE_SOURCE,
            price_read_unix_s=now_unix_s,
            prices={place: prices[place] for place in places} or prices,
        )

    def _offers_in(self, place: str) -> bool:
        return not self._locations or place in self._locations


def _open_places(model: Any, now_unix_s: float) -> set[str]:
    """Where it is sold now: not withdrawn, and not sold out as far as Hetzner says."""
    places = set()
    for at in model.locations or ():
        withdrawn = at.deprecation is not None and at.deprecation.unavailable_after.timestamp() <= now_unix_s
        if not withdrawn and at.available is not False:
            places.add(str(at.location.name))
    if model.locations:
        return places
    with warnings.catch_warnings():  # an API that does not say it by location yet
        warnings.simplefilter("ignore", DeprecationWarning)
        old = model.deprecation
    if old is not None and old.unavailable_after.timestamp() <= now_unix_s:
        return set()
    return {price["location"] for price in model.prices or ()}


def _net(price: dict[str, Any]) -> Decimal:
    return Decimal(str(price["price_hourly"]["net"]))
