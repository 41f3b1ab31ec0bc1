"""The adapter of Azure over its emulator: every call goes through the vendor's SDK, over TLS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tasks.clouds.base import (
    DEADLINE_TAG,
    INTENT_TAG,
    OWNER,
    OWNER_TAG,
    CreateSpec,
    Ref,
)
from tasks.clouds.guest import user_data
from tests.emulators.azure_state import NSG
from tests.emulators.azure_world import AzureWorld, open_world
from tests.emulators.base import Guest, NoMachines


@pytest.fixture
def world() -> Iterator[AzureWorld]:
    with open_world() as opened:
        yield opened


def spec_of(world: Any, number: int = 1, **changes: Any) -> CreateSpec:
    intent = f"intent-{number}"
    deadline_unix_s = world.now() + 3600
    spec = CreateSpec(
        intent_id=intent,
        name=f"tokensweep-{number:020d}",
        token=f"{number:064x}",
        server_type=world.server_type,
        place=world.places[0],
        deadline_unix_s=deadline_unix_s,
        sweep_id="sweep-1",
        server_run_id="run-1",
        client_public_key="ssh-ed25519 AAAAclient",
        host_private_key="-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n-----END OPENSSH PRIVATE KEY-----\n",
        host_public_key="ssh-ed25519 AAAAhost",
        ssh_sources=("198.51.100.7/32",),
        tags={OWNER_TAG: OWNER, INTENT_TAG: intent, DEADLINE_TAG: str(int(deadline_unix_s))},
    )
    return replace(spec, **changes)


def ours(world: AzureWorld) -> list[str]:
    return sorted(thing.kind for thing in world.existing() if thing.ours)


def usd_per_hour(world: AzureWorld) -> float:
    return float(sum(thing.usd_per_hour for thing in world.existing() if thing.ours))


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
