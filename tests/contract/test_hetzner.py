"""The adapter of Hetzner over its emulator: every call goes through the vendor's SDK and HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks.clouds.base import INTENT_TAG, ErrorKind, Ref, Resource, Scope
from tasks.clouds.guest import user_data
from tasks.domain.errors import UnsupportedError
from tests.emulators.base import Fault
from tests.emulators.emulated import spec_of
from tests.emulators.hetzner_world import HetznerWorld, open_world


@pytest.fixture
def world() -> Iterator[HetznerWorld]:
    with open_world() as opened:
        yield opened


def ours(world: HetznerWorld) -> list[tuple[str, str]]:
    return sorted((thing.kind, thing.cloud_id) for thing in world.existing() if thing.ours)


def by_kind(world: HetznerWorld) -> dict[str, list[Resource]]:
    found: dict[str, list[Resource]] = {}
    for resource in world.cloud.list_owned().resources:
        found.setdefault(resource.kind, []).append(resource)
    return found


# -- create, get, list, delete --


def test_a_server_is_created_shown_listed_and_deleted(world: HetznerWorld) -> None:
    spec = spec_of(world)
    made = world.cloud.create(spec)
    assert (made.kind, made.name, made.place, made.tags) == ("server", spec.name, "fsn1", spec.tags)

    shown = world.cloud.get(made.ref())
    assert shown is not None
    assert (shown.cloud_id, shown.state, shown.username) == (made.cloud_id, "running", "tokensweep")
    assert shown.address.startswith("192.0.2.")
    assert shown.created_unix_s == pytest.approx(world.now(), abs=1)

    listing = world.cloud.list_owned()
    assert listing.complete
    assert {r.kind for r in listing.resources} == {"server", "ip"}
    assert all(r.tags == spec.tags for r in listing.resources)

    world.cloud.delete(made.ref())
    assert world.cloud.get(made.ref()) is None
    assert world.cloud.list_owned().resources == ()
    assert ours(world) == []
    world.cloud.delete(made.ref())


def test_the_machine_boots_with_the_user_data_and_only_ssh_open(world: HetznerWorld) -> None:
    spec = spec_of(world)
    world.cloud.create(spec)
    (server,) = world.emulator.project.alive("servers")
    (firewall,) = world.emulator.project.alive("firewalls")
    assert server.data["user_data"] == user_data(spec)
    assert server.data["firewalls"] == [firewall.id]
    rule = {
        "direction": "in",
        "protocol": "tcp",
        "port": "22",
        "source_ips": ["198.51.100.7/32"],
        "description": "SSH",
    }
    assert firewall.data["rules"] == [rule]


def test_servers_with_the_same_sources_share_one_firewall(world: HetznerWorld) -> None:
    for number in (1, 2):
        world.cloud.create(spec_of(world, number))
    world.cloud.create(spec_of(world, 3, ssh_sources=()))
    rules = [firewall.data["rules"] for firewall in world.emulator.project.alive("firewalls")]
    assert [rule[0]["source_ips"] for rule in rules] == [["198.51.100.7/32"], ["0.0.0.0/0", "::/0"]]


def test_the_address_made_along_goes_along(world: HetznerWorld) -> None:
    """What Hetzner does with it by itself is not documented; the emulator keeps it."""
    made = world.cloud.create(spec_of(world))
    (ip,) = by_kind(world)["ip"]
    assert ip.tags == made.tags
    assert world.emulator.project.alive("primary_ips")[0].data["auto_delete"] is True
    world.cloud.delete(made.ref())
    assert ours(world) == []


def test_a_lost_response_is_sent_once_and_the_second_create_adopts(world: HetznerWorld) -> None:
    world.plant(Fault("POST /servers", after=True))
    spec = spec_of(world)
    with pytest.raises(Exception) as lost:
        world.cloud.create(spec)
    found = world.cloud.classify(lost.value)
    assert (found.kind, found.may_exist) == (ErrorKind.UNKNOWN, True)
    assert world.calls().count("POST /servers") == 1
    adopted = world.cloud.create(spec)
    assert [thing for thing in ours(world) if thing[0] == "server"] == [("server", adopted.cloud_id)]
    assert {r.tags[INTENT_TAG] for r in world.cloud.list_owned().resources} == {spec.intent_id}


def test_what_hetzner_does_not_sell_is_refused_before_anything_is_sent(world: HetznerWorld) -> None:
    world.cloud.catalog()
    for changes in ({"spot": True}, {"gpus": 1}, {"disk_bytes": 10**12}):
        with pytest.raises(UnsupportedError):
            world.cloud.create(spec_of(world, **changes))
    assert "POST /servers" not in world.calls()


def test_foreign_things_are_neither_listed_nor_deleted(world: HetznerWorld) -> None:
    world.add_foreign()
    before = world.existing()
    made = world.cloud.create(spec_of(world))
    assert {r.tags.get(INTENT_TAG) for r in world.cloud.list_owned().resources} == {"intent-1"}
    world.cloud.delete(made.ref())
    assert world.existing() == before
    world.cloud.delete(Ref(vendor="hetzner", place="fsn1", name=before[0].name))
    assert world.existing() == before


def test_capacity_is_told_from_quota(world: HetznerWorld) -> None:
    for fault, kind, scope in (
        (world.capacity_fault(), ErrorKind.CAPACITY, Scope.ZONE),
        (world.quota_fault(), ErrorKind.QUOTA, Scope.VENDOR),
        (world.throttle_fault(), ErrorKind.RATE_LIMITED, Scope.VENDOR),
        (world.auth_fault(), ErrorKind.AUTH, Scope.VENDOR),
    ):
        world.plant(fault)
        with pytest.raises(Exception) as refused:
            world.cloud.create(spec_of(world))
        found = world.cloud.classify(refused.value)
        assert (found.kind, found.scope, found.may_exist) == (kind, scope, False)
        world.emulator.faults.clear()
    assert ours(world) == []


def test_a_create_that_fails_in_its_action_is_told_at_once_or_shown_as_stopped() -> None:
    with open_world(fails_later={"fsn1"}) as world:
        with pytest.raises(Exception) as failed:
            world.cloud.create(spec_of(world))
        found = world.cloud.classify(failed.value)
        assert (found.kind, found.may_exist, found.code) == (ErrorKind.CAPACITY, True, "resource_unavailable")
        assert [kind for kind, _ in ours(world)] == ["ip", "server"]
    with open_world(fails_later={"fsn1"}, create_s=10.0) as world:
        made = world.cloud.create(spec_of(world))
        assert made.state == "pending"
        world.sleep(11)
        shown = world.cloud.get(made.ref())
        assert shown is not None
        assert shown.state == "stopped"


def test_a_server_that_is_still_being_made_is_pending_however_it_is_shown() -> None:
    """Between its create and its start a server is off for a moment."""
    with open_world(create_s=10.0) as world:
        made = world.cloud.create(spec_of(world))
        (server,) = world.emulator.project.alive("servers")
        server.created_unix_s -= 20
        server.data["off"] = True
        shown = world.cloud.get(made.ref())
        assert shown is not None
        assert shown.state == "pending"
        world.sleep(11)
        shown = world.cloud.get(made.ref())
        assert shown is not None
        assert shown.state == "stopped"
