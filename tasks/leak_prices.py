"""What something that was left behind costs, from whoever knows: the ledger, the listing, the vendor's price list."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal

from tasks.clouds.base import Cloud, Resource
from tasks.domain.lifecycle import LedgerRow
from tasks.domain.money import Rate, to_usd
from tasks.domain.reaping import SERVER

logger = logging.getLogger(__name__)

FREE_KINDS = frozenset({"nic", "key", "group", "firewall", "network", "spot_request", "process", "cgroup"})
"""What no vendor charges for. It is deleted all the same: most have a limit of how many there may be."""


@dataclass
class Prices:
    """What a vendor's resources cost an hour in USD. A price list is asked once for a type, and only where neither
    ledger nor listing tells."""

    cloud: Cloud
    rates: Mapping[str, Rate]
    today: date
    _of_type: dict[tuple[str, str], Decimal | None] = field(default_factory=dict)

    def of(self, resource: Resource, row: LedgerRow | None) -> Decimal | None:
        """The ledger's price of a server, which has its disk and address in it; else what the listing says."""
        if row is not None and resource.kind == SERVER and row.usd_per_hour:
            return row.usd_per_hour
        if resource.usd_per_hour or resource.kind in FREE_KINDS:
            return resource.usd_per_hour
        return self._listed(resource.server_type, resource.place) if resource.server_type else None

    def _listed(self, server_type: str, place: str) -> Decimal | None:
        key = server_type, place
        if key not in self._of_type:
            try:
                kind = self.cloud.server_type(server_type)
                price = to_usd(kind.price_in(place), kind.currency, self.rates, today=self.today)
                self._of_type[key] = price.usd or None
            except Exception as exc:  # the reaper's credentials may not read prices: no reason to hide a leak
                logger.info("The price of %s %s in %s cannot be told: %s", self.cloud.vendor, *key, exc)
                self._of_type[key] = None
        return self._of_type[key]
