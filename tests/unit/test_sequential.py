"""When repeats may stop: the cell's own spread, and the server's."""

from __future__ import annotations

import math

import pytest

from tasks.domain.sequential import pooled_half_width_ratio
from tasks.domain.stats import half_width_ratio

QUIET = [(4, 0.001**2)] * 6
NOISY = [(4, 0.2**2)] * 6
SAMPLES = (1.0, 1.03, 0.98)


def test_without_other_cells_it_is_the_plain_interval():
    assert pooled_half_width_ratio(SAMPLES, [], 8.0) == pytest.approx(half_width_ratio(SAMPLES))
    assert pooled_half_width_ratio(SAMPLES, QUIET, 0.0) == pytest.approx(half_width_ratio(SAMPLES))


def test_a_quiet_server_vouches_for_a_cell_and_a_noisy_one_warns():
    plain = half_width_ratio(SAMPLES)
    assert pooled_half_width_ratio(SAMPLES, QUIET, 8.0) < plain / 2
    assert pooled_half_width_ratio(SAMPLES, NOISY, 8.0) > plain


def test_one_wild_cell_does_not_make_the_server_noisy():
    mixed = [*QUIET, (4, 4.0)]
    assert pooled_half_width_ratio(SAMPLES, mixed, 8.0) == pytest.approx(pooled_half_width_ratio(SAMPLES, QUIET, 8.0))


@pytest.mark.parametrize("samples", [(), (1.0,)])
def test_fewer_than_two_samples_say_nothing(samples):
    assert pooled_half_width_ratio(samples, QUIET, 8.0) == math.inf
