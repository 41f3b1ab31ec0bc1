"""The adapter of Azure when the network, the vendor, or its answers fail."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator

import pytest

from tasks.clouds.base import Classified, ErrorKind, Scope
from tests.emulators.azure_state import NIC
from tests.emulators.azure_world import TOKEN, AzureWorld, StaticCredential, open_world, ours, spec_of, usd_per_hour
from tests.emulators.base import Fault, How

CHAIN = (
    "resourceGroups.createOrUpdate",
    "networkSecurityGroups.createOrUpdate",
    "virtualNetworks.createOrUpdate",
    "virtualMachines.createOrUpdate",
)
EVERYTHING = ["disk", "firewall", "group", "ip", "network", "nic", "server"]


@pytest.fixture
def world() -> Iterator[AzureWorld]:
    with open_world() as opened:
        yield opened


def refused(world: AzureWorld, number: int = 1, **changes: object) -> Classified:
    """What a create that fails is classified as."""
    with pytest.raises(Exception) as caught:
        world.cloud.create(spec_of(world, number, **changes))
    return world.cloud.classify(caught.value)


# -- creates whose answer is lost --


@pytest.mark.parametrize("operation", CHAIN)
@pytest.mark.parametrize(
    ("how", "after"), [("drop", False), ("drop", True), ("html_502", False), ("html_502", True), ("truncated", True)]
)
def test_wherever_an_answer_is_lost_the_same_create_again_ends_with_one_server(
    world: AzureWorld, operation: str, how: How, after: bool
) -> None:
    world.plant(Fault(operation, how=how, after=after))
    found = refused(world)
    assert (found.kind, found.may_exist) == (ErrorKind.UNKNOWN, True)
    made = world.cloud.create(spec_of(world))
    assert ours(world) == EVERYTHING
    listed = [r for r in world.cloud.list_owned().resources if r.kind == "server"]
    assert [r.cloud_id for r in listed] == [made.cloud_id]


def test_of_two_equal_creates_at_once_azure_makes_one_and_the_other_finds_it(world: AzureWorld) -> None:
    spec = spec_of(world)
    first = world.cloud.create(spec)
    # As in a race: the second looks before the first has sent its machine.
    world.plant(Fault("virtualMachines.get", how="code", code="ResourceNotFound"))
    second = world.cloud.create(spec)
    assert world.calls().count("virtualMachines.createOrUpdate") == 2
    assert second.cloud_id == first.cloud_id
    assert world.emulator.updated == []  # a condition kept it from changing the first
    assert ours(world) == EVERYTHING


def test_the_sdk_sends_nothing_twice_by_itself(world: AzureWorld) -> None:
    world.plant(Fault("virtualMachines.createOrUpdate", how="html_502", after=True, times=5))
    refused(world)
    assert world.calls().count("virtualMachines.createOrUpdate") == 1
    world.emulator.faults.clear()
    world.plant(Fault("disks.list", how="code", code="TooManyRequests", times=5))
    assert not world.cloud.list_owned().complete
    assert world.calls().count("disks.list") == 1


@pytest.mark.parametrize("n_done", [1, 2, 3])
def test_a_create_that_died_between_two_requests_is_listed_by_its_group_and_deleted(
    world: AzureWorld, n_done: int
) -> None:
    spec = spec_of(world)
    world.plant(Fault(CHAIN[n_done], how="drop"))
    with pytest.raises(Exception, match=r"Connection aborted|Remote end closed"):
        world.cloud.create(spec)
    listing = world.cloud.list_owned()
    (group,) = (r for r in listing.resources if r.kind == "group")
    assert (group.name, group.place, group.tags) == (spec.name, spec.place, spec.tags)
    assert group.created_unix_s == pytest.approx(world.now(), abs=30)
    assert usd_per_hour(world) == 0  # nothing that costs money exists before the machine
    again = world.cloud.get(group.ref())
    assert again is not None and again.cloud_id == group.cloud_id
    world.cloud.delete(group.ref())
    world.sleep(30)
    assert ours(world) == []
    assert world.cloud.get(group.ref()) is None


def test_a_group_deleted_while_its_create_goes_on_does_not_come_back(world: AzureWorld) -> None:
    world.plant(Fault("virtualMachines.createOrUpdate", how="drop"))
    refused(world)
    group = next(r for r in world.cloud.list_owned().resources if r.kind == "group")
    world.cloud.delete(group.ref())
    found = refused(world)
    assert (found.kind, found.code) == (ErrorKind.DELETE_BLOCKED, "ResourceGroupBeingDeleted")
    world.sleep(30)
    assert ours(world) == []


def test_a_server_that_is_being_deleted_is_not_taken_for_a_new_one(world: AzureWorld) -> None:
    made = world.cloud.create(spec_of(world))
    world.cloud.delete(made.ref())
    found = refused(world)
    assert (found.kind, found.code, found.may_exist) == (ErrorKind.DELETE_BLOCKED, "ResourceGroupBeingDeleted", True)
    world.sleep(30)
    assert ours(world) == []


# -- refusals --


@pytest.mark.parametrize(
    ("code", "kind", "scope"),
    [
        ("ZonalAllocationFailed", ErrorKind.CAPACITY, Scope.ZONE),
        ("OverconstrainedZonalAllocationRequest", ErrorKind.CAPACITY, Scope.ZONE),
        ("AllocationFailed", ErrorKind.CAPACITY, Scope.REGION),
        ("SkuNotAvailable", ErrorKind.CAPACITY, Scope.REGION),
        ("QuotaTotal", ErrorKind.QUOTA, Scope.REGION),
        ("QuotaFamily", ErrorKind.QUOTA, Scope.REGION),
        ("PublicIPCountLimitReached", ErrorKind.QUOTA, Scope.REGION),
    ],
)
def test_after_a_refusal_nothing_is_left(world: AzureWorld, code: str, kind: ErrorKind, scope: Scope) -> None:
    world.plant(Fault("virtualMachines.createOrUpdate", how="code", code=code))
    found = refused(world)
    assert (found.kind, found.scope, found.may_exist) == (kind, scope, False)
    assert "\n" not in found.message and "https://aka.ms" not in found.message
    world.sleep(30)
    assert ours(world) == []


def test_a_refusal_whose_remains_could_not_be_deleted_says_that_something_may_exist(world: AzureWorld) -> None:
    world.plant(
        Fault("virtualMachines.createOrUpdate", how="code", code="ZonalAllocationFailed"),
        Fault("resourceGroups.delete", how="drop"),
    )
    found = refused(world)
    assert (found.kind, found.may_exist) == (ErrorKind.CAPACITY, True)
    assert "group" in ours(world)


def test_throttled_creates_keep_what_they_have_and_go_on(world: AzureWorld) -> None:
    for operation in CHAIN[1:]:
        world.plant(Fault(operation, how="code", code="TooManyRequests"))
        found = refused(world)
        assert (found.kind, found.may_exist) == (ErrorKind.RATE_LIMITED, False)
    assert "resourceGroups.delete" not in world.calls()
    world.cloud.create(spec_of(world))
    assert ours(world) == EVERYTHING


def test_quotas_are_told_apart_from_stockouts_by_their_text() -> None:
    quotas = {("westeurope", "total"): 4, ("westeurope", "spot"): 0}
    with open_world(quotas=quotas) as world:
        world.cloud.create(spec_of(world, 1))
        regular, spot = refused(world, 2), refused(world, 3, spot=True)
        assert [(f.kind, f.scope, f.code) for f in (regular, spot)] == [
            (ErrorKind.QUOTA, Scope.REGION, "OperationNotAllowed")
        ] * 2
        assert "Total Regional Cores" in regular.message and "LowPriorityCores" in spot.message
        world.sleep(30)
        assert ours(world) == EVERYTHING  # of the first
        world.cloud.create(spec_of(world, 4, place="eastus-1"))


def test_a_size_that_is_restricted_or_not_sold_is_refused_before_anything_is_made(world: AzureWorld) -> None:
    cases = {
        ("Standard_D4as_v5", "eastus-2"): (ErrorKind.CAPACITY, Scope.ZONE, "SkuNotAvailable"),
        ("Standard_M128ms", "westeurope-1"): (ErrorKind.CAPACITY, Scope.REGION, "SkuNotAvailable"),
        ("Standard_NC4as_T4_v3", "northcentralus"): (ErrorKind.UNSUPPORTED, Scope.REGION, "SizeNotInRegion"),
        ("Standard_D2ps_v6", "westeurope-1"): (ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, "WrongArch"),
    }
    for (size, place), expected in cases.items():
        found = refused(world, server_type=size, place=place)
        assert (found.kind, found.scope, found.code) == expected
    grid = refused(world, server_type="Standard_NV6ads_A10_v5", gpus=1)
    assert (grid.kind, grid.scope) == (ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE)
    assert not [call for call in world.calls() if "createOrUpdate" in call]


def test_a_region_without_groups_gets_its_machine_all_the_same(world: AzureWorld) -> None:
    made = world.cloud.create(spec_of(world, place="brazilsoutheast"))
    assert made.place == "brazilsoutheast"
    group = next(r for r in world.cloud.list_owned().resources if r.kind == "group")
    assert group.place == "brazilsoutheast"
    assert world.emulator.account.groups[made.name].location == "westeurope"


def test_tags_that_azure_cannot_keep_are_refused_before_anything_is_sent(world: AzureWorld) -> None:
    spec = spec_of(world)
    found = refused(world, tags=spec.tags | {"note": "x" * 300})
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.UNSUPPORTED, Scope.VENDOR, False)
    found = refused(world, tags=spec.tags | {f"t{n}": "" for n in range(60)})
    assert found.kind is ErrorKind.UNSUPPORTED
    assert not [call for call in world.calls() if "createOrUpdate" in call]


# -- what is accepted and fails afterwards --


@pytest.mark.parametrize(
    ("place", "code"), [("westeurope-1", "ZonalAllocationFailed"), ("northcentralus", "AllocationFailed")]
)
def test_a_machine_that_azure_accepts_and_cannot_start_is_told_by_get_and_leaves_nothing(
    place: str, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_world(stock={place: 0}, late_stockout=True) as world:
        made = world.cloud.create(spec_of(world, place=place))
        assert made.state == "pending"
        world.sleep(20)
        shown = world.cloud.get(made.ref())
        assert shown is not None and shown.state == "stopped"
        assert code in caplog.text
        assert [r.state for r in world.cloud.list_owned().resources if r.kind == "server"] == ["stopped"]

        # Its card is reserved for 180 s: the deletion of the group is accepted, and the group falls back.
        world.cloud.delete(made.ref())
        world.sleep(31)
        left = {r.kind: r for r in world.cloud.list_owned().resources}
        assert sorted(left) == ["group", "nic"]
        assert left["group"].state == "running"
        world.sleep(180)
        world.cloud.delete(left["nic"].ref())
        world.sleep(31)
        assert ours(world) == []


def test_a_machine_that_runs_although_its_provisioning_failed_is_shown_as_what_it_costs(
    world: AzureWorld, caplog: pytest.LogCaptureFixture
) -> None:
    made = world.cloud.create(spec_of(world))
    world.emulator.vm(made.name).failure = ("OSProvisioningTimedOut", "OS Provisioning did not finish in time.")
    world.sleep(20)
    shown = world.cloud.get(made.ref())
    assert shown is not None and (shown.state, shown.address) == ("running", "192.0.2.1")
    assert "OSProvisioningTimedOut" in caplog.text
    assert usd_per_hour(world) > 0.2
    world.cloud.delete(made.ref())
    world.sleep(30)
    assert ours(world) == []


def test_the_next_zone_has_one_after_a_stockout() -> None:
    with open_world(stock={"westeurope-1": 0}) as world:
        found = refused(world, 1)
        assert (found.kind, found.scope) == (ErrorKind.CAPACITY, Scope.ZONE)
        world.cloud.create(spec_of(world, 2, place="westeurope-2"))
        world.sleep(30)
        assert ours(world) == EVERYTHING


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


# -- credentials --


def test_credentials_that_expire_in_the_middle_are_auth_and_admit_what_may_exist(world: AzureWorld) -> None:
    world.plant(Fault("networkSecurityGroups.createOrUpdate", how="code", code="ExpiredAuthenticationToken"))
    found = refused(world)
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.AUTH, Scope.VENDOR, False)
    world.sleep(30)
    assert ours(world) == []  # only that one call had failed, so the group could be deleted

    world.plant(
        Fault("networkSecurityGroups.createOrUpdate", how="code", code="ExpiredAuthenticationToken"),
        Fault("resourceGroups.get", how="code", code="ExpiredAuthenticationToken", times=0),
        Fault("resourceGroups.delete", how="code", code="ExpiredAuthenticationToken", times=9),
    )
    found = refused(world)
    assert (found.kind, found.may_exist) == (ErrorKind.AUTH, True)
    assert ours(world) == ["group"]


def test_neither_token_nor_host_key_is_logged_or_told(world: AzureWorld, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = world.cloud.create(spec_of(world))
    world.sleep(20)
    told = [repr(made), repr(world.cloud.get(made.ref())), repr(world.cloud.list_owned())]
    world.plant(Fault("virtualMachines.createOrUpdate", how="code", code="PropertyChangeNotAllowed"))
    told.append(repr(refused(world, 2)))
    world.emulator.tokens.clear()
    told += [repr(refused(world, 3)), repr(world.cloud.list_owned().problems), repr(vars(world.cloud))]
    told.append(repr(StaticCredential()).replace(TOKEN, ""))
    text = caplog.text + "".join(told)
    assert TOKEN not in text
    assert "OPENSSH PRIVATE KEY" not in text
    assert base64.b64encode(b"#cloud-config").decode()[:16] not in text


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
