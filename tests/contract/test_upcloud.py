"""The adapter of UpCloud over its emulator: every call goes through the vendor's SDK and HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from tasks.clouds.base import INTENT_TAG, ErrorKind, Ref, Resource, Scope
from tasks.clouds.guest import user_data
from tasks.clouds.upcloud.labels import CREATED_LABEL
from tests.emulators.base import Fault
from tests.emulators.emulated import spec_of
from tests.emulators.upcloud_world import UpCloudWorld, open_world


@pytest.fixture
def world() -> Iterator[UpCloudWorld]:
    with open_world() as opened:
        yield opened


def ours(world: UpCloudWorld) -> list[tuple[str, str]]:
    return sorted((thing.kind, thing.cloud_id) for thing in world.existing() if thing.ours)


def by_kind(world: UpCloudWorld) -> dict[str, list[Resource]]:
    found: dict[str, list[Resource]] = {}
    for resource in world.cloud.list_owned().resources:
        found.setdefault(resource.kind, []).append(resource)
    return found


# -- create, get, list, delete --


def test_a_server_is_created_shown_listed_and_deleted(world: UpCloudWorld) -> None:
    spec = spec_of(world)
    made = world.cloud.create(spec)
    assert (made.kind, made.name, made.place, made.tags) == ("server", spec.name, "de-fra1", spec.tags)

    shown = world.cloud.get(made.ref())
    assert shown is not None
    assert (shown.cloud_id, shown.state, shown.username) == (made.cloud_id, "running", "tokensweep")
    assert shown.address.startswith("192.0.2.")

    listing = world.cloud.list_owned()
    assert listing.complete
    assert sorted(r.kind for r in listing.resources) == ["disk", "ip", "server"]
    assert all(r.tags == spec.tags for r in listing.resources)
    assert all(r.created_unix_s == pytest.approx(world.now(), abs=1) for r in listing.resources)

    world.cloud.delete(made.ref())
    assert world.cloud.get(made.ref()) is None
    assert world.cloud.list_owned().resources == ()
    assert ours(world) == []
    world.cloud.delete(made.ref())


def test_a_server_that_takes_time_to_stop_is_deleted_in_steps() -> None:
    with open_world(stop_s=20.0) as world:
        made = world.cloud.create(spec_of(world))
        world.cloud.delete(made.ref())
        assert ours(world) != []
        with pytest.raises(Exception) as refused:
            world.cloud.delete(made.ref())
        assert world.cloud.classify(refused.value).kind is ErrorKind.DELETE_BLOCKED
        world.sleep(21)
        stopped = world.cloud.get(made.ref())
        assert stopped is not None
        assert stopped.state == "stopped"
        world.cloud.delete(made.ref())
        assert ours(world) == []


def test_the_machine_boots_with_the_user_data_behind_a_firewall(world: UpCloudWorld) -> None:
    spec = spec_of(world)
    world.cloud.create(spec)
    (server,) = world.emulator.account.alive("server")
    told = yaml.safe_load(server.data["user_data"])
    plain = yaml.safe_load(user_data(spec))
    firewall, *rest = told["bootcmd"]
    assert rest == plain["bootcmd"]
    assert {key: told[key] for key in plain if key != "bootcmd"} == {k: v for k, v in plain.items() if k != "bootcmd"}
    assert "policy drop" in firewall[2]
    assert "ip saddr { 198.51.100.7/32 } tcp dport 22 accept" in firewall[2]


def test_everything_made_bears_our_labels_and_brings_no_backups(world: UpCloudWorld) -> None:
    spec = spec_of(world, disk_bytes=60 * 2**30)
    world.cloud.create(spec)
    (server,), (disk,) = world.emulator.account.alive("server"), world.emulator.account.alive("storage")
    for thing in (server, disk):
        assert {key: value for key, value in thing.labels.items() if key != CREATED_LABEL} == spec.tags
    assert (disk.data["size"], disk.data["tier"]) == (60, "maxiops")
    assert server.data["body"]["simple_backup"] == "no"
    assert server.data["body"]["metadata"] == "yes"


def test_a_lost_response_is_never_sent_again_and_is_found_by_name(world: UpCloudWorld) -> None:
    world.plant(Fault("POST /server", after=True))
    spec = spec_of(world)
    with pytest.raises(Exception) as lost:
        world.cloud.create(spec)
    found = world.cloud.classify(lost.value)
    assert (found.kind, found.may_exist) == (ErrorKind.UNKNOWN, True)
    assert world.calls().count("POST /server") == 1
    shown = world.cloud.get(Ref(vendor="upcloud", place=spec.place, name=spec.name))
    assert shown is not None
    assert shown.tags[INTENT_TAG] == spec.intent_id


def test_foreign_things_are_neither_listed_nor_deleted(world: UpCloudWorld) -> None:
    world.add_foreign()
    before = world.existing()
    made = world.cloud.create(spec_of(world))
    assert {r.tags.get(INTENT_TAG) for r in world.cloud.list_owned().resources} == {"intent-1"}
    world.cloud.delete(made.ref())
    assert world.existing() == before
    world.cloud.delete(Ref(vendor="upcloud", place="fi-hel1", name="theirs.example.com"))
    assert world.existing() == before


def test_capacity_is_told_from_quota(world: UpCloudWorld) -> None:
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
