"""Statistics against the standard library, and Student's t against its own density."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain import stats

SECONDS = st.lists(st.floats(min_value=1e-4, max_value=1e4), min_size=2, max_size=40)


def t_density_integral(t: float, df: int) -> float:
    """P(-t < T < t), by Simpson's rule over the density."""
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    steps = 4000
    width = t / steps

    def density(x: float) -> float:
        return scale * math.pow(1 + x * x / df, -(df + 1) / 2)

    odd = sum(density((2 * i + 1) * width) for i in range(steps // 2))
    even = sum(density(2 * i * width) for i in range(1, steps // 2))
    return 2 * width / 3 * (density(0) + density(t) + 4 * odd + 2 * even)


@pytest.mark.parametrize("df", [*range(1, 36), 60, 120, 1000])
def test_t_quantile_is_exact_to_a_thousandth(df: int) -> None:
    t = stats.t_975(df)
    assert t_density_integral(t - 1e-3, df) < stats.CONFIDENCE < t_density_integral(t + 1e-3, df)


def test_t_quantile_needs_a_degree_of_freedom() -> None:
    with pytest.raises(ValueError, match="degree of freedom"):
        stats.t_975(0)


@given(SECONDS, st.integers(min_value=1, max_value=16384))
def test_summary_agrees_with_the_standard_library(samples_s: list[float], n_tokens: int) -> None:
    rates = [n_tokens / s for s in samples_s]
    found = stats.summarize(samples_s, n_tokens)
    assert found.n == len(samples_s)
    assert found.median == pytest.approx(statistics.median(rates), rel=1e-9)
    assert found.mean == pytest.approx(statistics.fmean(rates), rel=1e-9)
    assert found.sd == pytest.approx(statistics.stdev(rates), rel=1e-6, abs=1e-9 * found.mean)
    assert found.ci95_low is not None and found.ci95_high is not None
    slack = 1e-9 * found.mean
    assert 0 <= found.ci95_low <= found.mean + slack and found.mean - slack <= found.ci95_high
    assert found.min <= found.median <= found.max


def test_summary_of_a_known_case() -> None:
    """Rates 10, 12, 14: mean 12, sd 2, half width 4.3027 · 2 / √3."""
    found = stats.summarize([120 / 10, 120 / 12, 120 / 14], 120)
    assert [found.mean, found.sd, found.cv] == pytest.approx([12, 2, 1 / 6])
    assert found.ci95_high == pytest.approx(12 + 4.3027 * 2 / math.sqrt(3), abs=1e-3)
    assert found.ci95_low == pytest.approx(12 - 4.3027 * 2 / math.sqrt(3), abs=1e-3)


def test_one_sample_has_a_speed_and_no_spread() -> None:
    found = stats.summarize([2.0], 64)
    assert (found.median, found.mean, found.min, found.max) == (32, 32, 32, 32)
    assert (found.sd, found.cv, found.ci95_low, found.ci95_high) == (None, None, None, None)
    assert stats.half_width_ratio([2.0]) == math.inf


@pytest.mark.parametrize("samples_s", [[], [0.0], [-1.0], [math.nan], [math.inf]])
def test_no_speed_from_what_is_no_time(samples_s: list[float]) -> None:
    with pytest.raises(ValueError, match="samples above 0 s"):
        stats.summarize(samples_s, 16)


@given(SECONDS)
def test_more_of_the_same_never_widens_the_interval(samples_s: list[float]) -> None:
    """Sequential stopping leans on this: repeats that agree with what is there narrow the interval."""
    once, twice = stats.half_width_ratio(samples_s), stats.half_width_ratio(samples_s * 2)
    assert twice <= once + 1e-12


def test_medians_and_their_limits() -> None:
    assert stats.median([3, 1, 2]) == 2
    assert stats.median([4, 1, 2, 3]) == 2.5
    with pytest.raises(ValueError, match="no values"):
        stats.median([])
