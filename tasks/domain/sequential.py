"""When is a mean known well enough? Sequential stopping with the server's own noise as a second witness.

Three repeats say little about their spread: Student's t asks for a spread of 2 % before it grants ±5 %. The other cells
of the same server, measured minutes before, say how noisy it is. Both are pooled like samples of one variance: the
cell's own with its degrees of freedom, the others' median with `noise_df`.
"""

from __future__ import annotations

import math
from typing import Sequence

from tasks.domain.stats import mean, median, sd, t_975

FEWEST_CELLS = 3
"""Below this many other cells only the cell's own repeats count."""


def pooled_half_width_ratio(samples_s: Sequence[float], noise: Sequence[tuple[int, float]], noise_df: float) -> float:
    """Half-width of the 95 % interval of the mean as a share of it; infinite for fewer than two samples.

    noise: degrees of freedom and squared coefficient of variation of each other cell.
    """
    if len(samples_s) < 2:
        return math.inf
    centre = mean(samples_s)
    if centre <= 0:
        return math.inf
    own_df = len(samples_s) - 1
    own = (sd(samples_s) / centre) ** 2
    if noise_df > 0 and len(noise) >= FEWEST_CELLS:
        others = median([cv2 for _, cv2 in noise])
        variance = (own_df * own + noise_df * others) / (own_df + noise_df)
        df = own_df + noise_df
    else:
        variance, df = own, float(own_df)
    return t_975(int(df)) * math.sqrt(variance / len(samples_s))
