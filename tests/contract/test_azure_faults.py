"""The adapter of Azure when creates fail, are refused, or are not answered."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator

import pytest

from tasks.clouds.base import Classified, ErrorKind, Scope
from tests.emulators.azure_world import TOKEN, AzureWorld, StaticCredential, open_world, ours, usd_per_hour
from tests.emulators.base import Fault, How
from tests.emulators.emulated import spec_of

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
        ("SkuNotAvailable", ErrorKind.CAPACITY, Scope.ZONE),
        ("SkuNotAvailableInRegion", ErrorKind.CAPACITY, Scope.REGION),
        ("QuotaTotal", ErrorKind.QUOTA, Scope.REGION),
        ("QuotaFamily", ErrorKind.QUOTA, Scope.REGION),
        ("PublicIPCountLimitReached", ErrorKind.QUOTA, Scope.REGION),
        ("IPv4StandardSkuPublicIpCountLimitReached", ErrorKind.QUOTA, Scope.REGION),
        ("AzureSpotIsNotSupportedForThisVMSize", ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE),
        ("AzureSpotFeatureNotEnabledForSubscription", ErrorKind.UNSUPPORTED, Scope.VENDOR),
        ("PolicyOfLocations", ErrorKind.UNSUPPORTED, Scope.REGION),
        ("PolicyOfTags", ErrorKind.UNSUPPORTED, Scope.VENDOR),
    ],
)
def test_after_a_refusal_nothing_is_left(world: AzureWorld, code: str, kind: ErrorKind, scope: Scope) -> None:
    world.plant(Fault("virtualMachines.createOrUpdate", how="code", code=code))
    found = refused(world)
    assert (found.kind, found.scope, found.may_exist) == (kind, scope, False)
    assert "\n" not in found.message and "https://aka.ms" not in found.message
    world.sleep(30)
    assert ours(world) == []


def test_a_region_that_is_not_for_this_subscription_leaves_the_others_and_no_group(world: AzureWorld) -> None:
    world.plant(Fault("resourceGroups.createOrUpdate", how="code", code="DisallowedLocation"))
    found = refused(world)
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.UNSUPPORTED, Scope.REGION, False)
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
    quotas = {("westeurope", "total"): 4, ("westeurope", "spot"): 4}
    with open_world(quotas=quotas) as world:
        world.cloud.create(spec_of(world, 1))
        world.cloud.create(spec_of(world, 5, spot=True))
        regular, spot = refused(world, 2), refused(world, 3, spot=True)
        assert [(f.kind, f.scope, f.code) for f in (regular, spot)] == [
            (ErrorKind.QUOTA, Scope.REGION, "OperationNotAllowed")
        ] * 2
        assert "Total Regional Cores" in regular.message and "LowPriorityCores" in spot.message
        world.sleep(30)
        assert ours(world) == sorted(EVERYTHING * 2)  # of the first two
        world.cloud.create(spec_of(world, 4, place="eastus-1"))


@pytest.mark.parametrize("name", ["total", "standardDASv5Family", "spot"])
def test_what_a_quota_can_never_hold_is_refused_before_anything_is_made(name: str) -> None:
    with open_world(quotas={("westeurope", name): 3}) as world:
        found = refused(world, spot=name == "spot")
        assert (found.kind, found.scope, found.may_exist) == (ErrorKind.QUOTA, Scope.REGION, False)
        refused(world, 2, place="westeurope-2", spot=name == "spot")
        assert world.calls().count("usages.list") == 1, "limits are read once for many creates"
        assert not [call for call in world.calls() if "createOrUpdate" in call]
        world.emulator.shop.quotas = {}
        world.sleep(901)  # somebody has asked for more
        world.cloud.create(spec_of(world, 3, spot=name == "spot"))


def test_quotas_that_cannot_be_read_keep_nothing_from_being_made(world: AzureWorld) -> None:
    world.plant(Fault("usages.list", how="html_502"))
    world.cloud.create(spec_of(world))
    assert ours(world) == EVERYTHING


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
    # Microsoft has CUDA drivers for NCasT4_v3, NC_A100_v4 and NCads_H100_v5, and for these only GRID drivers:
    # https://learn.microsoft.com/azure/virtual-machines/linux/n-series-driver-setup
    for size in ("Standard_NV6ads_A10_v5", "Standard_NC128ds_xl_RTXPRO6000BSE_v6"):
        grid = refused(world, server_type=size, gpus=1)
        assert (grid.kind, grid.scope, grid.code) == (ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, "NoImage")
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

    world.emulator.faults.clear()
    world.plant(Fault("", how="code", code="ExpiredAuthenticationToken", times=99))
    found = refused(world)
    assert (found.kind, found.may_exist) == (ErrorKind.AUTH, True), "the same create had made a group before"
    found = refused(world, number=2)
    assert (found.kind, found.may_exist) == (ErrorKind.AUTH, False), "refused at its first request: nothing was made"


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
