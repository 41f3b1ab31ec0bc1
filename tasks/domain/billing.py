"""What more seconds of a server cost where the vendor bills in increments: an hour already paid is used."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Billing:
    """A vendor's billing of one server. Lifetimes are seconds since the create was sent."""

    usd_per_hour: float
    minimum_s: float = 0.0
    increment_s: float = 1.0

    @property
    def least_s(self) -> float:
        """What is billed for the shortest life."""
        return self._rounded_up(max(self.minimum_s, self._step_s))

    @property
    def by_the_second(self) -> bool:
        return self._step_s <= 1.0

    @property
    def _step_s(self) -> float:
        return max(1.0, self.increment_s)

    def _rounded_up(self, seconds: float) -> float:
        return math.ceil(seconds / self._step_s - 1e-9) * self._step_s

    def paid_until_s(self, lifetime_s: float) -> float:
        """Until when a server of that age may live for what it has cost by now."""
        return max(self.least_s, self._rounded_up(lifetime_s))

    def lifetime_for_s(self, usd: float) -> float:
        """How long a server may live for that much money. The first increment is owed as soon as there is a server:
        leaving it unused would save nothing."""
        if self.usd_per_hour <= 0:
            return math.inf
        seconds = usd / self.usd_per_hour * 3600.0
        if self.by_the_second:
            return max(seconds, self.minimum_s)
        return max(math.floor(seconds / self._step_s + 1e-9) * self._step_s, self.least_s)

    def expected_usd(self, lifetime_s: float, extra_s: float, rest_s: float) -> float:
        """Price of extra_s more now, when the rest of the work takes between nothing and rest_s, each as likely.

        With a rest of many increments that is the list price; with none it is nothing, or whole increments.
        """
        per_s = self.usd_per_hour / 3600.0
        if self.by_the_second and lifetime_s >= self.minimum_s:
            return extra_s * per_s
        if rest_s < 1.0:
            return (self.paid_until_s(lifetime_s + extra_s) - self.paid_until_s(lifetime_s)) * per_s
        ends = lifetime_s + rest_s
        with_extra = self._area_s2(ends + extra_s) - self._area_s2(lifetime_s + extra_s)
        without = self._area_s2(ends) - self._area_s2(lifetime_s)
        return max(0.0, with_extra - without) / rest_s * per_s

    def _area_s2(self, seconds: float) -> float:
        """Billed seconds summed over every lifetime up to this one."""
        least = self.least_s
        if seconds <= least:
            return least * seconds
        return least * least + self._steps_area_s2(seconds) - self._steps_area_s2(least)

    def _steps_area_s2(self, seconds: float) -> float:
        n = math.floor(seconds / self._step_s)
        over_s = seconds - n * self._step_s
        return self._step_s**2 * n * (n + 1) / 2 + over_s * (n + 1) * self._step_s
