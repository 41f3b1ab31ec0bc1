"""What UpCloud sells, where, and for how much, from its API: `/plan` says what, `/price` says where and for how much.

GPU plans have a price in every zone and stand in a few: those `/device/availability` tells, and how many are left.

Prices are hundredths of the account's currency per hour (developers.upcloud.com/1.3/4-pricing; 2.2321 for the plan
that is sold for 15 per 28 days).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from upcloud_api import CloudManager, UpCloudAPIError

from tasks.clouds.base import ServerType
from tasks.clouds.upcloud.inventory import VENDOR
from tasks.domain.errors import ConfigError

PRICE_SOURCE = "api.upcloud.com/1.3/price"
MAX_AGE_S = 3600.0
_PLAN_PRICE = "server_plan_"
_MIB, _GIB = 2**20, 2**30
_DEFAULT_STORAGE_GIB = 25
"""What a plan without storage is priced with; what a boot disk has beyond is billed apart (domain/money.py)."""


class Catalog:
    """Read at first use and kept for an hour. zones: the only ones to offer; empty for all. currency: of the prices,
    where neither they nor the account tell it; empty to ask."""

    def __init__(self, manager: CloudManager, zones: Sequence[str], currency: str, now: Callable[[], float]) -> None:
        self._manager = manager
        self._zones = frozenset(zones)
        self._currency = currency
        self._now = now
        self._lock = threading.Lock()
        self._read_unix_s = float("-inf")
        self._plans: dict[str, dict[str, Any]] = {}
        self._known: dict[str, ServerType] = {}

    def server_types(self) -> list[ServerType]:
        self._refresh()
        return [kind for kind in self._known.values() if kind.places]

    def server_type(self, name: str) -> ServerType:
        """Without places where none of the wanted zones sells it."""
        self._refresh()
        if name not in self._known:
            raise ConfigError(
                f"upcloud has no plan {name!r}.",
                next_step=f"It sells: {', '.join(sorted(o.name for o in self.server_types())) or 'none there'}.",
            )
        return self._known[name]

    def default_names(self) -> tuple[str, ...]:
        """The cheapest plan of each family (general purpose, HICPU, HIMEM, DEV, ...) without a GPU, of those that
        UpCloud still offers: old ones keep their prices, for the servers that have them."""
        cheapest: dict[str, ServerType] = {}
        for offer in sorted(self.server_types(), key=lambda o: (o.price_per_hour, o.name)):
            if not offer.gpus and self._plans[offer.name].get("current_offering") != "no":
                cheapest.setdefault(_family(offer.name), offer)
        return tuple(offer.name for offer in cheapest.values())

    def plan(self, name: str) -> dict[str, Any]:
        """The plan as `/plan` shows it. Raises ConfigError for one that is not sold."""
        self.server_type(name)
        return self._plans[name]

    def _refresh(self) -> None:
        with self._lock:
            now_unix_s = self._now()
            if 0 <= now_unix_s - self._read_unix_s < MAX_AGE_S:
                return
            prices = self._manager.get_prices()["prices"]
            currency = self._currency or price_currency(self._manager, prices)
            plans = self._manager.get_server_plans()["plans"]["plan"]
            stock = _gpu_stock(self._manager) if any(plan.get("gpu_amount") for plan in plans) else None
            self._plans = {str(plan["name"]): plan for plan in plans}
            kinds = [self._kind(plan, prices["zone"], stock, currency, now_unix_s) for plan in plans]
            self._known = {kind.name: kind for kind in kinds if kind is not None}
            self._read_unix_s = now_unix_s

    def _kind(
        self,
        plan: dict[str, Any],
        zones: list[dict[str, Any]],
        stock: dict[str, set[str]] | None,
        currency: str,
        now_unix_s: float,
    ) -> ServerType | None:
        name = str(plan["name"])
        prices = {
            str(zone["name"]): _price(zone, f"{_PLAN_PRICE}{name}") + _extras(plan, zone)
            for zone in zones
            if f"{_PLAN_PRICE}{name}" in zone
        }
        if not prices:
            return None
        wanted = [place for place in prices if not self._zones or place in self._zones]
        if plan.get("gpu_amount") and stock is not None:
            wanted = [place for place in wanted if name in stock.get(place, ())]
        places = tuple(sorted(wanted, key=lambda place: (prices[place], place)))
        return ServerType(
            vendor=VENDOR,
            name=name,
            vcpus=int(plan["core_number"]),
            memory_bytes=int(plan["memory_amount"]) * _MIB,
            disk_bytes=int(plan.get("storage_size") or 0) * _GIB,
            arch="x86_64",
            places=places,
            price_per_hour=prices[places[0]] if places else min(prices.values()),
            currency=currency,
            price_source=PRICE_SOURCE,
            price_read_unix_s=now_unix_s,
            gpus=int(plan.get("gpu_amount") or 0),
            gpu_model=str(plan.get("gpu_model") or ""),
            prices={place: prices[place] for place in places} or prices,
        )


def _gpu_stock(manager: CloudManager) -> dict[str, set[str]] | None:
    """The GPU plans that each zone has left; None where the API does not tell, and then a create finds it out. (The SDK
    has no call for it.)"""
    try:
        zones = manager.api.get_request("/device/availability")
    except UpCloudAPIError:
        return None
    return {
        str(zone): {str(name) for name, left in (devices.get("gpu_plans") or {}).items() if left.get("amount")}
        for zone, devices in zones.items()
    }


def price_currency(manager: CloudManager, prices: dict[str, Any]) -> str:
    """As the price list says it, or else the account. Raises ConfigError where the credentials may read neither."""
    if prices.get("currency"):
        return str(prices["currency"])
    username = manager.get_account()["account"]["username"]
    details = manager.api.get_request(f"/account/details/{username}")["account"]
    currency = str(details.get("currency") or "")
    if not currency:
        raise ConfigError(
            "upcloud: the API does not tell the currency of its prices.",
            next_step="Set TOKENSWEEP_UPCLOUD_CURRENCY to the account's, EUR for example.",
        )
    return currency


def _family(name: str) -> str:
    prefix, dash, _ = name.partition("-")
    return prefix if dash and "x" not in prefix else "general purpose"


def _extras(plan: dict[str, Any], zone: dict[str, Any]) -> Decimal:
    """A plan without storage brings no address either; both are billed beside it."""
    if int(plan.get("storage_size") or 0):
        return Decimal(0)
    tier = str(plan.get("storage_tier") or "maxiops")
    return _price(zone, f"storage_{tier}") * _DEFAULT_STORAGE_GIB + _price(zone, "ipv4_address")


def _price(zone: dict[str, Any], item: str) -> Decimal:
    """Of one unit, in the currency itself."""
    entry = zone.get(item)
    return Decimal(0) if entry is None else Decimal(str(entry["price"])) / Decimal(str(entry["amount"])) / 100
