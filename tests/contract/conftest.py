"""The conformance suite's fixtures: every vendor in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.stage import Stage
from tests.contract.bench import Bench
from tests.contract.worlds import names, open_world


@pytest.fixture(params=names())
def vendor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bench(vendor: str) -> Iterator[Bench]:
    with open_world(vendor) as world:
        yield Bench(world, Stage(world))
