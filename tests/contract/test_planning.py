"""Planning over vendors' catalogues: what they sell, in USD, and what is said when they refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tasks.domain.errors import AuthError, ConfigError, TokensweepError
from tasks.planning import known_type, server_types
from tests.contract.world import VendorWorld
from tests.emulators import hetzner_world, upcloud_world
from tests.emulators.base import Fault, How


@pytest.fixture(params=[hetzner_world.open_world, upcloud_world.open_world], ids=["hetzner", "upcloud"])
def world(request: pytest.FixtureRequest) -> Iterator[VendorWorld]:
    open_world: Callable[[], AbstractContextManager[Any]] = request.param
    with open_world() as opened:
        yield opened


def test_names_and_patterns_give_types_that_are_asked_for_once(world: VendorWorld) -> None:
    named = server_types(world.cloud, [world.server_type])
    assert named[world.server_type].name == world.server_type
    before = len(world.calls())
    every = server_types(world.cloud, ["*"])
    assert every[world.server_type] == named[world.server_type] and len(every) > 1
    assert len(world.calls()) - before < len(every) + 10, "not one call for each type"
    some = server_types(world.cloud, ["*:2"])
    assert len(some) == 2 and set(some) <= set(every)


def test_what_a_vendor_does_not_sell_is_named(world: VendorWorld) -> None:
    with pytest.raises(ConfigError, match="no-such-type"):
        server_types(world.cloud, ["no-such-type"])
    with pytest.raises(ConfigError, match=r"no server type is named like 'zz\*'"):
        server_types(world.cloud, ["zz*"])


def test_a_vendor_that_refuses_is_named_with_its_reason(world: VendorWorld) -> None:
    fault = world.auth_fault()
    fault.times = 50
    world.plant(fault)
    with pytest.raises(AuthError, match=f"{world.cloud.vendor}: its server types cannot be read"):
        server_types(world.cloud, ["*"])


@pytest.mark.parametrize("how", ["drop", "html_502", "truncated"])
def test_a_look_up_that_fails_is_an_error_of_ours_which_ends_one_server_and_no_other(
    world: VendorWorld, how: How
) -> None:
    """What is no TokensweepError would be taken for Prefect's API being gone."""
    world.plant(Fault("", how=how, times=50))
    with pytest.raises(TokensweepError, match=f"{world.cloud.vendor}: its server types cannot be read"):
        known_type(world.cloud, world.server_type)
