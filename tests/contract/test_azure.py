"""The adapter of Azure over its emulator: every call goes through the vendor's SDK, over TLS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tasks.clouds.base import ErrorKind, Ref
from tasks.clouds.guest import user_data
from tests.emulators.azure_state import NSG, Group
from tests.emulators.azure_world import AzureWorld, open_world, ours, usd_per_hour
from tests.emulators.base import Fault, Guest, NoMachines
from tests.emulators.emulated import spec_of


@pytest.fixture
def world() -> Iterator[AzureWorld]:
    with open_world() as opened:
        yield opened


EVERYTHING = ["disk", "firewall", "group", "ip", "network", "nic", "server"]


# -- create, get, list, delete --


def test_a_server_is_created_shown_listed_and_deleted_with_all_that_it_brought(world: AzureWorld) -> None:
    spec = spec_of(world)
    made = world.cloud.create(spec)
    assert (made.kind, made.name, made.place, made.state) == ("server", spec.name, "westeurope-1", "pending")
    assert (made.tags, made.username) == (spec.tags, "tokensweep")
    pending = world.cloud.get(made.ref())
    assert pending is not None and (pending.state, pending.cloud_id) == ("pending", made.cloud_id)

    world.sleep(20)
    shown = world.cloud.get(made.ref())
    assert shown is not None
    assert (shown.cloud_id, shown.state, shown.address) == (made.cloud_id, "running", "192.0.2.1")
    assert shown.created_unix_s == pytest.approx(world.now(), abs=60)
    by_name = world.cloud.get(Ref(vendor="azure", place=spec.place, name=spec.name))
    assert by_name is not None and by_name.cloud_id == made.cloud_id

    listing = world.cloud.list_owned()
    assert listing.complete, listing.problems
    assert sorted(r.kind for r in listing.resources) == EVERYTHING == ours(world)
    assert {r.cloud_id for r in listing.resources} == {t.cloud_id for t in world.existing()}
    assert all(r.tags == spec.tags and r.state == "running" for r in listing.resources)

    world.cloud.delete(made.ref())
    going = world.cloud.get(made.ref())
    assert going is not None and going.state == "stopping"
    assert {r.state for r in world.cloud.list_owned().resources} == {"stopping"}
    world.cloud.delete(made.ref())  # a second one is harmless
    world.sleep(30)
    assert world.cloud.get(made.ref()) is None
    assert world.cloud.list_owned().resources == ()
    assert world.existing() == []
    world.cloud.delete(made.ref())
    assert world.calls().count("virtualMachines.createOrUpdate") == 1


def test_the_same_create_again_finds_the_first_server(world: AzureWorld) -> None:
    spec = spec_of(world)
    first, second = world.cloud.create(spec), world.cloud.create(spec)
    assert first.cloud_id == second.cloud_id
    assert ours(world) == EVERYTHING


def test_user_data_ports_image_disk_and_zone_are_those_of_the_spec(world: AzureWorld) -> None:
    started: list[Guest] = []

    class Noting(NoMachines):
        def start(self, guest: Guest) -> None:
            started.append(guest)
            super().start(guest)

    world.emulator.account.machines = Noting()
    sources = ("198.51.100.7/32", "2001:db8::/64", "203.0.113.0/24")
    spec = spec_of(world, disk_bytes=100 * 2**30 + 1, ssh_sources=sources)
    world.cloud.create(spec)
    assert [(guest.user_data, guest.vcpus) for guest in started] == [(user_data(spec), 4)]
    vm = world.emulator.vm(spec.name)
    disk = vm.properties["storageProfile"]["osDisk"]
    assert (vm.zones, disk["diskSizeGB"], disk["deleteOption"]) == (["1"], 101, "Delete")
    assert disk["managedDisk"]["storageAccountType"] == "Premium_LRS"
    assert vm.properties["storageProfile"]["imageReference"]["sku"] == "server"
    firewall = next(t for t in world.emulator.account.things.values() if t.type == NSG)
    rules = [rule["properties"] for rule in firewall.properties["securityRules"]]
    assert [rule["destinationPortRange"] for rule in rules] == ["22", "22"]
    assert [rule["sourceAddressPrefixes"] for rule in rules] == [[sources[0], sources[2]], [sources[1]]]
    assert {rule["access"] for rule in rules} == {"Allow"}


@pytest.mark.parametrize(
    ("changes", "sku", "disk"),
    [
        ({"server_type": "Standard_D2ps_v6", "arch": "aarch64"}, "server-arm64", "Premium_LRS"),
        ({"server_type": "Standard_A2_v2"}, "server-gen1", "StandardSSD_LRS"),
        ({"server_type": "Standard_DC4as_v5"}, "cvm", "Premium_LRS"),
        ({"server_type": "Standard_NC4as_T4_v3", "gpus": 1}, "2404", "Premium_LRS"),
    ],
)
def test_every_kind_of_size_gets_an_image_that_boots_on_it(
    world: AzureWorld, changes: dict[str, Any], sku: str, disk: str
) -> None:
    spec = spec_of(world, **changes)
    world.cloud.create(spec)
    storage = world.emulator.vm(spec.name).properties["storageProfile"]
    assert storage["imageReference"]["sku"] == sku
    assert storage["osDisk"]["managedDisk"]["storageAccountType"] == disk


def test_tags_come_back_as_they_were_given(world: AzureWorld) -> None:
    odd = {"Team": "A", "team": "b", "azure-cost/center": "x&y", "100%": "<ä>", "tokensweep-run": "r1"}
    spec = spec_of(world)
    spec = replace(spec, tags=spec.tags | odd)
    made = world.cloud.create(spec)
    world.sleep(20)
    shown = world.cloud.get(made.ref())
    assert made.tags == spec.tags and shown is not None and shown.tags == spec.tags
    assert all(r.tags == spec.tags for r in world.cloud.list_owned().resources)


# -- what goes on beside the plain course of things --


def test_a_machine_that_its_guest_stopped_is_billed_and_shown_as_stopped(world: AzureWorld) -> None:
    made = world.cloud.create(spec_of(world))
    world.sleep(20)
    running = usd_per_hour(world)
    world.emulator.power_off(made.name)
    shown = world.cloud.get(made.ref())
    assert shown is not None and shown.state == "stopped"
    assert "stopped" in {r.state for r in world.cloud.list_owned().resources if r.kind == "server"}
    assert usd_per_hour(world) == running > 0
    assert world.cloud.traits.stopped_bills


def test_at_its_deadline_azure_itself_deallocates_a_forgotten_machine(world: AzureWorld) -> None:
    spec = spec_of(world, deadline_unix_s=world.now() + 2 * 3600)
    made = world.cloud.create(spec)
    world.sleep(7200)
    shown = world.cloud.get(made.ref())
    assert shown is not None and shown.state == "running"
    world.sleep(180)
    shown = world.cloud.get(made.ref())
    assert shown is not None and shown.state == "stopped"
    assert usd_per_hour(world) == pytest.approx(0.0267 + 0.005)  # disk and address stay, until the group is deleted
    assert not world.cloud.traits.native_ttl


@pytest.mark.parametrize("left_s", [1200, 90_000])
def test_no_timed_shutdown_where_its_first_time_would_not_be_the_deadline(world: AzureWorld, left_s: int) -> None:
    world.cloud.create(spec_of(world, deadline_unix_s=world.now() + left_s))
    assert "schedules.createOrUpdate" not in world.calls()


def test_a_failed_timed_shutdown_does_not_fail_the_create(world: AzureWorld, caplog: pytest.LogCaptureFixture) -> None:
    world.plant(Fault("schedules.createOrUpdate", how="code", code="AuthorizationFailed"))
    made = world.cloud.create(spec_of(world))
    assert made.state == "pending"
    assert "has no timed shutdown" in caplog.text


def test_an_evicted_spot_machine_takes_disk_and_address_along_and_the_rest_is_found_and_deleted(
    world: AzureWorld,
) -> None:
    spec = spec_of(world, spot=True)
    made = world.cloud.create(spec)
    vm = world.emulator.vm(spec.name)
    assert (vm.properties["priority"], vm.properties["evictionPolicy"]) == ("Spot", "Delete")
    assert vm.properties["billingProfile"]["maxPrice"] == -1
    world.sleep(20)
    world.emulator.evict(spec.name)
    assert world.cloud.get(made.ref()) is None
    assert usd_per_hour(world) == 0
    left = {r.kind: r for r in world.cloud.list_owned().resources}
    assert sorted(left) == ["firewall", "group", "network"]
    assert left["group"].tags == spec.tags
    world.cloud.delete(made.ref())  # although the machine itself is gone
    world.sleep(30)
    assert ours(world) == []


def test_two_servers_do_not_touch_each_other(world: AzureWorld) -> None:
    first, second = world.cloud.create(spec_of(world, 1)), world.cloud.create(spec_of(world, 2))
    world.cloud.delete(first.ref())
    world.sleep(40)
    assert world.cloud.get(first.ref()) is None
    kept = world.cloud.get(second.ref())
    assert kept is not None and kept.state == "running"
    assert ours(world) == EVERYTHING


def test_what_is_not_ours_is_never_shown_nor_deleted(world: AzureWorld) -> None:
    world.add_foreign()
    before = world.existing()
    assert world.cloud.list_owned().resources == ()
    for thing in before:
        world.cloud.delete(Ref(vendor="azure", place=thing.place, name=thing.name, cloud_id=thing.cloud_id))
        world.cloud.delete(Ref(vendor="azure", place=thing.place, name=thing.name))
    world.sleep(100)
    assert world.existing() == before
    assert not [call for call in world.calls() if "delete" in call]


def test_a_group_of_somebody_else_under_our_name_is_neither_taken_over_nor_deleted(world: AzureWorld) -> None:
    spec = spec_of(world)
    account = world.emulator.account
    account.groups[spec.name] = Group(spec.name, "westeurope", {"team": "another"}, world.now())
    with pytest.raises(Exception) as caught:
        world.cloud.create(spec)
    found = world.cloud.classify(caught.value)
    assert (found.kind, found.code, found.may_exist) == (ErrorKind.UNSUPPORTED, "GroupNameTaken", False)
    assert account.groups[spec.name].tags == {"team": "another"}
    assert [thing.kind for thing in world.existing()] == ["group"]


def test_an_old_id_does_not_reach_a_server_that_was_made_again_under_its_name(world: AzureWorld) -> None:
    spec = spec_of(world)
    old = world.cloud.create(spec)
    old_refs = [r.ref() for r in world.cloud.list_owned().resources]
    world.cloud.delete(old.ref())
    world.sleep(40)
    new = world.cloud.create(spec)
    assert new.cloud_id != old.cloud_id
    assert world.cloud.get(old.ref()) is None
    for ref in old_refs:
        world.cloud.delete(ref)
    world.sleep(100)
    assert ours(world) == EVERYTHING
    shown = world.cloud.get(new.ref())
    assert shown is not None and shown.state == "running"


def test_strays_in_a_group_of_somebody_else_are_shown_and_deleted_one_by_one(world: AzureWorld) -> None:
    """What somebody has moved there, or what a machine has left behind whose group lost its tags."""
    spec = spec_of(world)
    made = world.cloud.create(spec)
    world.sleep(20)
    world.emulator.account.groups[spec.name].tags = {"team": "another"}
    shown = {r.kind: r for r in world.cloud.list_owned().resources}
    assert sorted(shown) == [kind for kind in EVERYTHING if kind != "group"]
    world.cloud.delete(made.ref())
    world.sleep(40)
    assert sorted(t.kind for t in world.existing()) == ["firewall", "group", "network"]
    for kind in ("firewall", "network"):
        world.cloud.delete(shown[kind].ref())
    world.sleep(40)
    assert [t.kind for t in world.existing()] == ["group"]


def test_a_listing_goes_through_every_page() -> None:
    with open_world(page_size=2) as world:
        names = {world.cloud.create(spec_of(world, n)).name for n in range(5)}
        listing = world.cloud.list_owned()
        assert listing.complete
        assert {r.name for r in listing.resources if r.kind == "server"} == names
        assert len(listing.resources) == 5 * len(EVERYTHING)


def test_a_listing_that_is_behind_shows_late_and_long_and_get_does_not() -> None:
    with open_world(lag_s=30.0) as world:
        made = world.cloud.create(spec_of(world))
        assert world.cloud.get(made.ref()) is not None
        assert "server" not in {r.kind for r in world.cloud.list_owned().resources}
        world.sleep(40)
        assert sorted(r.kind for r in world.cloud.list_owned().resources) == EVERYTHING
        world.cloud.delete(made.ref())
        world.sleep(31)
        assert world.existing() == []
        assert world.cloud.get(made.ref()) is None
        assert world.cloud.list_owned().resources
        assert world.cloud.traits.visibility_lag_s >= 30
        world.sleep(31)
        assert world.cloud.list_owned().resources == ()
