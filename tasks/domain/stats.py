"""Statistics of repeated measurements, from raw samples.

llama-bench prints a mean and a standard deviation as well; its `stddev_ns` overflows, so nothing here uses them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Sequence

CONFIDENCE = 0.95
"""Of every interval computed here."""

# Two-sided 95 % quantiles of Student's t, t(0.975, df), for df = 1 … 30.
_T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
_Z_975 = 1.959963984540054


@dataclass(frozen=True)
class Summary:
    """Repeats of one cell as tokens per second.

    `mean`, `sd` (n - 1 in the denominator) and `cv` are those of the per-repeat rates, as in llama-bench's `avg_ts`.
    `ci95_low` and `ci95_high` bound the mean. With one repeat there is no spread: those four are None.
    """

    n: int
    median: float
    mean: float
    sd: Optional[float]
    cv: Optional[float]
    ci95_low: Optional[float]
    ci95_high: Optional[float]
    min: float
    max: float


def t_975(df: int) -> float:
    """Student's t quantile for a two-sided 95 % interval, within 1e-3.

    Above the table: Cornish-Fisher expansion about the normal quantile (Abramowitz and Stegun, 26.7.5).
    """
    if df < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, not {df}.")
    if df <= len(_T_975):
        return _T_975[df - 1]
    z = _Z_975
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / df + g2 / df**2 + g3 / df**3


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones. Raises ValueError for no values."""
    if not values:
        raise ValueError("The median of no values does not exist.")
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def mean(values: Sequence[float]) -> float:
    """Raises ValueError for no values."""
    if not values:
        raise ValueError("The mean of no values does not exist.")
    return math.fsum(values) / len(values)


def sd(values: Sequence[float]) -> float:
    """Sample standard deviation (n - 1). Raises ValueError for fewer than two values."""
    if len(values) < 2:
        raise ValueError(f"A standard deviation needs two values, not {len(values)}.")
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean, in the unit of the values; infinite for fewer than two."""
    if len(values) < 2:
        return math.inf
    return t_975(len(values) - 1) * sd(values) / math.sqrt(len(values))


def half_width_ratio(values: Sequence[float]) -> float:
    """`half_width` as a share of the mean: 0.02 is ±2 %. Infinite for fewer than two values or a mean of zero."""
    if len(values) < 2:
        return math.inf
    centre = abs(mean(values))
    return half_width(values) / centre if centre > 0 else math.inf


def summarize(samples_s: Sequence[float], n_tokens: int) -> Summary:
    """Speed of one cell from the seconds of each repeat. Raises ValueError unless all are above 0 and there is one."""
    if not samples_s or n_tokens < 1 or not all(s > 0 and math.isfinite(s) for s in samples_s):
        raise ValueError(f"Speed needs samples above 0 s and tokens, not {list(samples_s)} and {n_tokens}.")
    rates = [n_tokens / s for s in samples_s]
    centre = mean(rates)
    spread = sd(rates) if len(rates) > 1 else None
    margin = half_width(rates) if len(rates) > 1 else None
    return Summary(
        n=len(rates),
        median=median(rates),
        mean=centre,
        sd=spread,
        cv=None if spread is None else spread / centre,
        ci95_low=None if margin is None else max(centre - margin, 0.0),
        ci95_high=None if margin is None else centre + margin,
        min=min(rates),
        max=max(rates),
    )
