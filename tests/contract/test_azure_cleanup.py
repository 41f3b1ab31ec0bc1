"""The adapter of Azure when deletions and listings do not go well."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks.clouds.base import ErrorKind
from tests.emulators.azure_state import NIC
from tests.emulators.azure_world import AzureWorld, open_world, ours
from tests.emulators.base import Fault, How
from tests.emulators.emulated import spec_of

EVERYTHING = ["disk", "firewall", "group", "ip", "network", "nic", "server"]


@pytest.fixture
def world() -> Iterator[AzureWorld]:
    with open_world() as opened:
        yield opened


# -- deletions that do not go well --


def test_a_locked_group_blocks_its_deletion_until_the_lock_is_gone(world: AzureWorld) -> None:
    made = world.cloud.create(spec_of(world))
    world.emulator.account.locked.add(made.name)
    with pytest.raises(Exception) as caught:
        world.cloud.delete(made.ref())
    found = world.cloud.classify(caught.value)
    assert (found.kind, found.code, found.may_exist) == (ErrorKind.DELETE_BLOCKED, "ScopeLocked", True)
    assert "remove the lock" in found.message
    world.emulator.account.locked.clear()
    world.cloud.delete(made.ref())
    world.sleep(30)
    assert ours(world) == []


def test_a_deletion_that_is_accepted_and_never_ends_stays_visible(world: AzureWorld) -> None:
    made = world.cloud.create(spec_of(world))
    world.emulator.account.stuck.add(made.name)
    world.cloud.delete(made.ref())
    world.sleep(3600)
    shown = world.cloud.get(made.ref())
    assert shown is not None and shown.state == "stopping"
    assert {r.state for r in world.cloud.list_owned().resources} == {"stopping"}
    world.emulator.account.stuck.clear()
    world.cloud.delete(made.ref())
    assert ours(world) == []


def test_a_deletion_does_not_wait_for_a_guest_to_shut_down(world: AzureWorld) -> None:
    made = world.cloud.create(spec_of(world))
    world.cloud.delete(made.ref())
    world.sleep(world.emulator.account.delete_s)
    assert ours(world) == []


@pytest.mark.parametrize("how", ["drop", "html_502"])
@pytest.mark.parametrize("after", [False, True])
def test_a_deletion_whose_answer_is_lost_is_sent_again(world: AzureWorld, how: How, after: bool) -> None:
    made = world.cloud.create(spec_of(world))
    world.plant(Fault("resourceGroups.delete", how=how, after=after))
    with pytest.raises(Exception) as caught:
        world.cloud.delete(made.ref())
    assert world.cloud.classify(caught.value).kind is ErrorKind.UNKNOWN
    world.cloud.delete(made.ref())
    world.sleep(30)
    assert ours(world) == []


def test_a_404_for_another_reason_is_no_proof_that_something_is_gone(world: AzureWorld) -> None:
    made = world.cloud.create(spec_of(world))
    stranger = world.cloud_with(subscription_id="00000000-0000-4000-8000-000000000000")
    for call in (stranger.get, stranger.delete):
        with pytest.raises(Exception) as caught:
            call(made.ref())
        found = stranger.classify(caught.value)
        assert (found.kind, found.code) == (ErrorKind.AUTH, "SubscriptionNotFound")


def test_a_card_that_is_still_reserved_blocks_its_own_deletion(world: AzureWorld) -> None:
    made = world.cloud.create(spec_of(world))
    account = world.emulator.account
    card = next(t for t in account.things.values() if t.type == NIC)
    account.groups[made.name].tags = {}
    account.things.pop(world.emulator.vm(made.name).key)
    card.reserved_until_unix_s = world.now() + 180
    stray = next(r for r in world.cloud.list_owned().resources if r.kind == "nic")
    with pytest.raises(Exception) as caught:
        world.cloud.delete(stray.ref())
    found = world.cloud.classify(caught.value)
    assert (found.kind, found.code) == (ErrorKind.DELETE_BLOCKED, "NicReservedForAnotherVm")
    world.sleep(180)
    world.cloud.delete(stray.ref())


# -- listings --


@pytest.mark.parametrize(
    "operation",
    [
        "resourceGroups.list",
        "virtualMachines.list",
        "disks.list",
        "publicIPAddresses.list",
        "networkInterfaces.list",
        "networkSecurityGroups.list",
        "virtualNetworks.list",
    ],
)
@pytest.mark.parametrize("how", ["drop", "html_502", "truncated"])
def test_a_listing_that_misses_one_answer_says_so_and_keeps_the_rest(
    world: AzureWorld, operation: str, how: How
) -> None:
    made = world.cloud.create(spec_of(world))
    world.plant(Fault(operation, how=how, after=how == "truncated"))
    listing = world.cloud.list_owned()
    assert not listing.complete and len(listing.problems) == 1
    assert made.cloud_id in {r.cloud_id for r in listing.resources} or operation == "virtualMachines.list"
    assert len(listing.resources) >= len(EVERYTHING) - 1
    assert world.cloud.list_owned().complete


def test_a_listing_that_loses_its_second_page_says_so(world: AzureWorld) -> None:
    world.emulator.page_size = 2
    for n in range(3):
        world.cloud.create(spec_of(world, n))
    world.emulator.faults.calls.clear()
    assert world.cloud.list_owned().complete
    assert world.calls().count("disks.list") == 2
    world.plant(Fault("disks.list", how="html_502", times=0), Fault("disks.list", how="html_502"))
    listing = world.cloud.list_owned()
    assert not listing.complete


def test_a_call_that_hangs_ends_in_time() -> None:
    with open_world() as world:
        made = world.cloud.create(spec_of(world))
        hasty = world.cloud_with(read_timeout_s=0.5)
        world.plant(Fault("virtualMachines.list", how="hang", seconds=1.5, times=2))
        listing = hasty.list_owned()
        assert not listing.complete
        assert any(problem.startswith("machines") for problem in listing.problems)
        world.plant(Fault("virtualMachines.get", how="hang", seconds=1.5))
        with pytest.raises(Exception) as caught:
            hasty.get(made.ref())
        assert hasty.classify(caught.value).kind is ErrorKind.UNKNOWN
