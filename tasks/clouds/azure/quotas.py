"""Limits of cores, so that what a subscription can never have is not asked for, region after region.

New subscriptions have few cores in a region, and none of many families. A refusal by Azure itself takes five of the ten
writes that a subscription has a second, and most sizes would collect one in every region.
https://learn.microsoft.com/azure/virtual-machines/quotas
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock

from tasks.clouds.azure.clients import Clients
from tasks.clouds.azure.errors import classify, refusal
from tasks.clouds.azure.skus import Size
from tasks.clouds.base import ErrorKind, Scope

logger = logging.getLogger(__name__)

_KEPT_S = 900.0  # a limit that has been raised is noticed after so long
_OF_REGION, _OF_SPOT = "cores", "lowprioritycores"


@dataclass
class Quotas:
    """By region. Of limits alone, which change when somebody asks for more: how much of them is used changes by the
    second, and what is told of it is late."""

    clients: Clients
    now: Callable[[], float]
    _by_region: dict[str, tuple[float, Mapping[str, int]]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def check(self, size: Size, *, spot: bool) -> None:
        """Raises AzureCloudError where the limit is below what one machine of this size takes. What cannot be read
        limits nothing."""
        limits = self._limits(size.region)
        for name in (_OF_SPOT,) if spot else (_OF_REGION, size.family.lower()):
            limit = limits.get(name)
            if limit is not None and limit < size.vcpus:
                raise refusal(
                    ErrorKind.QUOTA,
                    Scope.REGION,
                    "QuotaBelowSize",
                    f"{size.name} takes {size.vcpus} cores, and the quota {name} of {size.region} is {limit}",
                )

    def _limits(self, region: str) -> Mapping[str, int]:
        now_unix_s = self.now()
        with self._lock:
            read_unix_s, known = self._by_region.get(region, (0.0, {}))
        if read_unix_s and now_unix_s - read_unix_s < _KEPT_S:
            return known
        try:
            read = {(u.name.value or "").lower(): u.limit for u in self.clients.compute.usage.list(region)}
        except Exception as exc:
            logger.info("azure: the quotas of %s cannot be read: %s", region, classify(exc).message)
            read = {}
        with self._lock:
            self._by_region[region] = now_unix_s, read
        return read
