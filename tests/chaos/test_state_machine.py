"""A small budget of the interleavings; `python -m tests.chaos` runs thousands."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.chaos.interleavings import Interleavings

TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(
    max_examples=30,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestInterleavings = pytest.mark.timeout(300)(TestInterleavings)
