"""A server that does not answer: the vendor is asked whether it still runs, and believed as far as it can be."""

from __future__ import annotations

import pytest

from tasks.clouds.clock import WallClock
from tasks.clouds.lifecycle import create_server
from tasks.domain.errors import ServerGoneError
from tasks.provision import ASK_EVERY_S, VendorWatch
from tests.lifecycle_world import World, make_spec, server_request
from tests.memory_cloud import LOST, Fault


@pytest.fixture
def world(tmp_path: object) -> World:
    return World(tmp_path)  # type: ignore[arg-type]


def watch(world: World) -> VendorWatch:
    live = create_server(
        world.cloud,
        world.ledger,
        make_spec,
        server_request("run", world.clock.now()),
        now=world.clock.now,
        sleep=world.clock.sleep,
    )
    world.clock.sleep(60)
    return VendorWatch(world.cloud, live.resource.ref(), WallClock(world.clock.now, world.clock.sleep))


def test_a_server_that_runs_is_waited_for_and_the_vendor_is_not_asked_all_the_time(world: World) -> None:
    watched = watch(world)
    before = world.cloud.calls["get"]
    for _ in range(10):
        watched.check()
        world.clock.sleep(ASK_EVERY_S / 2)
    assert world.cloud.calls["get"] == before + 5


def test_one_absence_may_be_wrong_and_two_are_not(world: World) -> None:
    watched = watch(world)
    world.cloud.lies = 1
    watched.check()
    world.clock.sleep(ASK_EVERY_S)
    watched.check()  # shown again
    world.cloud.lies = 2
    world.clock.sleep(ASK_EVERY_S)
    watched.check()
    world.clock.sleep(ASK_EVERY_S)
    with pytest.raises(ServerGoneError, match="it is gone"):
        watched.check()


def test_an_ended_server_is_not_waited_for_and_a_silent_vendor_proves_nothing(world: World) -> None:
    watched = watch(world)
    world.cloud.plant("get", Fault(LOST))
    watched.check()
    world.cloud.delete_s = 300
    world.cloud.delete(watched.ref)
    world.clock.sleep(ASK_EVERY_S)
    with pytest.raises(ServerGoneError, match="it is stopping"):
        watched.check()
