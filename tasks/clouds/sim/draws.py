"""Chance that can be repeated: a draw is a function of the seed and of what is drawn for, not of the order of calls."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

_SPAN = float(2**64)


@dataclass(frozen=True)
class Draws:
    """rates: by fault class, how often it happens, 0 to 1."""

    seed: int
    rates: Mapping[str, float] = field(default_factory=dict)

    def uniform(self, *key: object) -> float:
        """In [0, 1), the same for the same key."""
        text = "|".join(map(str, (self.seed, *key)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / _SPAN

    def between(self, low: float, high: float, *key: object) -> float:
        return low + (high - low) * self.uniform(*key)

    def normal(self, *key: object) -> float:
        """Standard normal (Box and Muller), cut at three deviations."""
        u = 1.0 - self.uniform(*key, "u")
        value = math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * self.uniform(*key, "v"))
        return max(-3.0, min(3.0, value))

    def happens(self, fault: str, *key: object) -> bool:
        rate = self.rates.get(fault, 0.0)
        return rate > 0 and self.uniform("fault", fault, *key) < rate
