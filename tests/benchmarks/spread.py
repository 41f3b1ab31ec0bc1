"""Medians with their uncertainty, and ratios of things measured in turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.domain.stats import median

MOST_MISS = 0.05


@dataclass(frozen=True)
class Spread:
    """`low` to `high` holds the median with 95 % confidence where `n` is at least 6; below, it is the whole range."""

    median: float
    low: float
    high: float
    n: int

    def ratio(self) -> str:
        """As a ratio for a table."""
        return f"{self.median:.3f} [{self.low:.3f} to {self.high:.3f}]"

    def seconds(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f} to {self.high:.2f}]"


def spread(values: Sequence[float]) -> Spread:
    """The median and its distribution-free interval: order statistics, by the binomial distribution."""
    ordered = sorted(values)
    n = len(ordered)
    cut, below = 0, 0.5**n
    while 2 * below <= MOST_MISS and cut < (n - 1) // 2:
        cut += 1
        below += math.comb(n, cut) * 0.5**n
    if 2 * below > MOST_MISS and cut > 0:
        cut -= 1
    return Spread(median(ordered), ordered[cut], ordered[n - 1 - cut], n)


def speed_ratios(of_s: Sequence[float], to_s: Sequence[float]) -> list[float]:
    """Speed of the first to the second, pair by pair; both in seconds for the same work."""
    return [b / a for a, b in zip(of_s, to_s, strict=True)]
