"""A server that does not answer: the vendor is asked whether it still runs, and believed as far as it can be."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.clouds.clock import WallClock
from tasks.clouds.lifecycle import create_server
from tasks.clouds.request import LiveServer
from tasks.domain.errors import ServerGoneError
from tasks.provision import ASK_EVERY_S, ServerKeys, VendorWatch, reach
from tasks.settings import Settings
from tasks.wiring import Services
from tests.lifecycle_world import World, make_spec, server_request
from tests.memory_cloud import LOST, Fault

LAG_S = 60.0


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def created(world: World, run: str = "run") -> LiveServer:
    return create_server(
        world.cloud,
        world.ledger,
        make_spec,
        server_request(run, world.clock.now()),
        now=world.clock.now,
        sleep=world.clock.sleep,
    )


def watch(world: World) -> VendorWatch:
    live = created(world)
    world.clock.sleep(60)
    return watch_over(world, live)


def watch_over(world: World, live: LiveServer) -> VendorWatch:
    return VendorWatch(world.cloud, live.resource.ref(), WallClock(world.clock.now, world.clock.sleep))


def slow_to_show(world: World, lag_s: float = LAG_S) -> None:
    """From here on the vendor says of itself that it may be that far behind, and `get` may be."""
    world.cloud.traits = replace(world.cloud.traits, visibility_lag_s=lag_s)


def seconds_until_believed_gone(world: World, watched: VendorWatch, within_s: float = 600.0) -> float:
    """Looks as often as it may until it gives up."""
    began_unix_s = world.clock.now()
    while world.clock.now() - began_unix_s <= within_s:
        try:
            watched.check()
        except ServerGoneError as exc:
            assert "it is gone" in str(exc)
            return world.clock.now() - began_unix_s
        world.clock.sleep(ASK_EVERY_S)
    raise AssertionError(f"still waited for after {within_s} s of absence")


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


def test_just_after_its_create_a_server_that_does_not_show_yet_is_waited_for(world: World) -> None:
    """As on AWS: the create is answered, and for up to the visibility lag every look says that there is none."""
    live = created(world)
    slow_to_show(world)
    watched = watch_over(world, live)
    world.cloud.lag_s = LAG_S
    created_unix_s = world.clock.now()
    n_looks = 0
    while world.clock.now() < created_unix_s + LAG_S:
        watched.check()
        n_looks += 1
        world.clock.sleep(ASK_EVERY_S)
    assert n_looks == LAG_S / ASK_EVERY_S
    watched.check()  # it shows now, to the second when the vendor promised it
    world.cloud.lies = 1
    world.clock.sleep(ASK_EVERY_S)
    watched.check()  # and what was absent before it showed does not count any more


def test_an_absence_must_last_as_long_as_the_vendor_may_be_behind(world: World) -> None:
    watched = watch(world)
    slow_to_show(world)
    world.cloud.lies = 10**6
    assert seconds_until_believed_gone(world, watched) == LAG_S


def test_a_vendor_that_is_never_behind_is_believed_at_the_second_look(world: World) -> None:
    watched = watch(world)
    world.cloud.lies = 10**6
    assert seconds_until_believed_gone(world, watched) == ASK_EVERY_S


def test_an_absence_that_was_interrupted_begins_anew(world: World) -> None:
    watched = watch(world)
    slow_to_show(world)
    world.cloud.lies = int(LAG_S / ASK_EVERY_S)  # absent until just before the lag is over
    for _ in range(int(LAG_S / ASK_EVERY_S) + 1):
        watched.check()
        world.clock.sleep(ASK_EVERY_S)
    world.cloud.lies = 10**6
    assert seconds_until_believed_gone(world, watched) == LAG_S


def test_a_look_that_fails_neither_adds_to_an_absence_nor_ends_it(world: World) -> None:
    watched = watch(world)
    world.cloud.lies = 1
    watched.check()
    world.cloud.plant("get", Fault(LOST))
    world.clock.sleep(ASK_EVERY_S)
    watched.check()
    world.cloud.lies = 1
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


@pytest.mark.parametrize(
    ("server_type", "gpus", "patience_s"),
    [
        ("c7i.4xlarge", 0, 120.0),
        ("p5.48xlarge", 8, 300.0),
        ("c7i.metal-24xl", 0, 1500.0),
        ("c3-standard-192-metal", 0, 1500.0),
    ],
)
def test_bare_metal_and_gpus_are_waited_for_as_long_as_it_takes(
    world: World, tmp_path: Path, server_type: str, gpus: int, patience_s: float
) -> None:
    live = created(world)
    live = replace(live, row=replace(live.row, vendor="sim"))
    live = replace(live, spec=replace(live.spec, server_type=server_type, gpus=gpus))
    services = Services(Settings(home=tmp_path / "home", cache=tmp_path / "cache"))
    assert reach(live, ServerKeys(), services, threading.Event()).timeout_s == patience_s
