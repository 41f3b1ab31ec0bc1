"""What may go wrong with a create at AWS: lost answers, refusals, limits, launches that die, the shared group."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from botocore import exceptions as sdk

from tasks.clouds.aws import AwsCloud
from tasks.clouds.aws.errors import CODES, classify
from tasks.clouds.base import OWNER, OWNER_TAG, Classified, CreateSpec, ErrorKind, Scope
from tests.emulators.aws import SECRET_KEY
from tests.emulators.aws_world import AwsWorld, make_spec, open_world, ours
from tests.emulators.base import Fault


@pytest.fixture
def world() -> Iterator[AwsWorld]:
    with open_world() as opened:
        yield opened


def refusal(world: AwsWorld, spec: CreateSpec) -> Classified:
    """What the failed create means."""
    with pytest.raises(Exception) as caught:
        world.cloud.create(spec)
    return world.cloud.classify(caught.value)


# -- the answer of a create gets lost


@pytest.mark.parametrize("how", ["drop", "html_502", "truncated", "hang"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_lost_answer_may_exist_and_the_same_create_finds_it(how: Any, after: bool) -> None:
    with open_world(read_timeout_s=5.0 if how == "hang" else 20.0) as world:
        # The first launch reads image, subnet and group; only the launch itself is to fail.
        world.cloud.delete(world.cloud.create(make_spec(9)).ref())
        world.plant(Fault("RunInstances", how=how, after=after, seconds=7.0))
        found = refusal(world, make_spec(1))
        assert (found.kind, found.may_exist) == (ErrorKind.UNKNOWN, True)
        assert len(ours(world, "server")) == after
        again = world.cloud.create(make_spec(1))
        assert [thing.cloud_id for thing in ours(world, "server")] == [again.cloud_id]


def test_a_retry_with_something_else_in_it_adopts_the_server(world: AwsWorld) -> None:
    world.plant(Fault("RunInstances", after=True))
    refusal(world, make_spec(1))
    newer = world.emulator.backend("us-east-1").amis["ami-0a00000000000001"]
    newer.creation_date = newer.creation_date.replace(year=2027)
    world.cloud.images.forget("us-east-1")
    again = world.cloud.create(make_spec(1))
    assert [thing.cloud_id for thing in ours(world, "server")] == [again.cloud_id]
    assert again.tags == make_spec(1).tags


def test_a_token_of_other_tags_is_not_adopted(world: AwsWorld) -> None:
    world.cloud.create(make_spec(1))
    found = refusal(world, make_spec(1, tags={OWNER_TAG: OWNER, "tokensweep-intent": "another"}))
    assert (found.kind, found.may_exist) == (ErrorKind.EXISTS, True)
    assert len(ours(world, "server")) == 1


def test_a_token_whose_server_has_ended_gives_the_ended_one(world: AwsWorld) -> None:
    made = world.cloud.create(make_spec(1))
    world.cloud.delete(made.ref())
    again = world.cloud.create(make_spec(1))
    assert (again.cloud_id, again.state) == (made.cloud_id, "terminated")
    assert ours(world) == []


# -- refusals


def test_no_stock_in_a_zone_is_no_stock_in_that_zone_only(world: AwsWorld) -> None:
    world.emulator.stock["us-east-1a"] = 0
    found = refusal(world, make_spec(1))
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.CAPACITY, Scope.ZONE, False)
    assert ours(world) == []
    assert world.cloud.create(make_spec(2, place="us-east-1b")).place == "us-east-1b"


def test_the_quota_is_of_the_region(world: AwsWorld) -> None:
    world.emulator.vcpu_quota["us-east-1"] = 3
    world.cloud.create(make_spec(1))
    found = refusal(world, make_spec(2, place="us-east-1b"))
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.QUOTA, Scope.REGION, False)
    assert world.cloud.create(make_spec(3, place="eu-west-1a")).state == "pending"


def test_a_zone_that_does_not_offer_the_type_is_left_for_the_next(world: AwsWorld) -> None:
    found = refusal(world, make_spec(1, server_type="g4dn.xlarge", gpus=1, place="us-east-1f"))
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.UNSUPPORTED, Scope.ZONE, False)


@pytest.mark.parametrize(
    "changes", [{"server_type": "c99.large"}, {"arch": "aarch64"}, {"server_type": "c7g.large"}, {"arch": "riscv64"}]
)
def test_what_never_works_is_said_to_be_unsupported(world: AwsWorld, changes: dict[str, Any]) -> None:
    found = refusal(world, make_spec(1, **changes))
    assert (found.kind, found.may_exist) == (ErrorKind.UNSUPPORTED, False)
    assert ours(world) == []


@pytest.mark.parametrize("server_type", ["g6f.large", "gr6f.4xlarge"])
def test_a_part_of_a_gpu_that_no_image_has_a_driver_for_is_refused_unsent(world: AwsWorld, server_type: str) -> None:
    found = refusal(world, make_spec(1, server_type=server_type, gpus=1))
    assert (found.kind, found.scope, found.code) == (ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, "no_image")
    assert "GRID" in found.message and not found.may_exist
    assert world.calls() == []


@pytest.mark.parametrize("place", ["us-east-1", "us-west-2-lax-1a", "nowhere", ""])
def test_a_place_that_is_no_zone_is_refused_unsent(world: AwsWorld, place: str) -> None:
    found = refusal(world, make_spec(1, place=place))
    assert (found.kind, found.code, found.may_exist) == (ErrorKind.UNSUPPORTED, "no_such_zone", False)
    assert world.calls() == []


def test_a_zone_without_a_default_subnet_says_how_to_make_one(world: AwsWorld) -> None:
    backend = world.emulator.backend("us-east-1")
    for subnet in list(backend.subnets["us-east-1a"].values()):
        backend.delete_subnet(subnet.id)
    with pytest.raises(Exception, match="aws ec2 create-default-subnet --availability-zone us-east-1a") as caught:
        world.cloud.create(make_spec(1))
    found = world.cloud.classify(caught.value)
    assert (found.kind, found.scope, found.code) == (ErrorKind.UNSUPPORTED, Scope.ZONE, "no_default_subnet")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", ErrorKind.AUTH),
        ("RequestLimitExceeded", ErrorKind.RATE_LIMITED),
        ("UnauthorizedOperation", ErrorKind.AUTH),
        ("RequestExpired", ErrorKind.AUTH),
        ("OptInRequired", ErrorKind.AUTH),
        ("InsufficientFreeAddressesInSubnet", ErrorKind.CAPACITY),
        ("MaxSpotInstanceCountExceeded", ErrorKind.QUOTA),
    ],
)
def test_refusals_are_sent_once_and_make_nothing(world: AwsWorld, code: str, kind: ErrorKind) -> None:
    world.plant(Fault("RunInstances", how="code", code=code))
    found = refusal(world, make_spec(1))
    assert (found.kind, found.code, found.may_exist) == (kind, code, False)
    assert len([call for call in world.calls() if call.startswith("RunInstances")]) == 1, "the SDK sent it again"
    assert ours(world) == []


@pytest.mark.parametrize("code", ["OptInRequired", "PendingVerification"])
def test_a_region_that_the_account_may_not_use_yet_leaves_the_others(world: AwsWorld, code: str) -> None:
    """PendingVerification is: "Your request for accessing resources in this region is being validated"."""
    world.plant(Fault("RunInstances", how="code", code=code))
    found = refusal(world, make_spec(1))
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.AUTH, Scope.REGION, False)


@pytest.mark.parametrize("code", ["InternalError", "Unavailable", "SomethingNew", "502"])
def test_codes_that_say_nothing_may_exist(world: AwsWorld, code: str) -> None:
    world.plant(Fault("RunInstances", how="code", code=code))
    found = refusal(world, make_spec(1))
    assert (found.kind, found.may_exist) == (ErrorKind.UNKNOWN, True)


def test_revoked_credentials_stop_everything_and_tell_no_secret(world: AwsWorld) -> None:
    made = world.cloud.create(make_spec(1))
    world.emulator.revoked = True
    found = refusal(world, make_spec(2))
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.AUTH, Scope.VENDOR, False)
    listing = world.cloud.list_owned()
    assert not listing.complete
    with pytest.raises(sdk.ClientError) as caught:
        world.cloud.delete(made.ref())
    said = f"{caught.value!r} {listing} {found} {world.cloud!r} {world.cloud.clients!r}"
    assert SECRET_KEY not in said


# -- accepted, and then


def test_a_launch_that_dies_after_it_was_accepted_shows_it_and_says_why(
    world: AwsWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world.emulator.die_after_accept = 1
    made = world.cloud.create(make_spec(1))
    assert made.state == "pending"
    shown = world.cloud.get(made.ref())
    assert shown is not None
    assert shown.state == "terminated"
    assert ours(world) == []
    world.cloud.get(made.ref())
    assert caplog.text.count("Server.InsufficientInstanceCapacity") == 1, "told once"

    other = world.cloud.create(make_spec(2))
    world.cloud.get(other.ref())
    world.cloud.delete(other.ref())
    world.cloud.get(other.ref())
    assert other.cloud_id not in caplog.text, "deleted by us"


def test_a_spot_server_that_is_taken_back_ends_for_good(world: AwsWorld) -> None:
    made = world.cloud.create(make_spec(1, spot=True))
    assert {thing.kind for thing in ours(world)} == {"server", "disk", "nic", "spot_request"}
    world.emulator.backend("us-east-1").interrupt(made.cloud_id)
    assert ours(world) == []
    world.sleep(600)
    assert ours(world) == []
    assert {r.kind for r in world.cloud.list_owned().resources} == {"server"}, "its request is closed and no leak"


# -- the shared security group


def test_many_at_once_come_to_one_security_group(world: AwsWorld) -> None:
    """All have looked for it before the first makes it."""
    clouds = [AwsCloud(world.cloud.session, world.cloud.options) for _ in range(3)]
    answered, looked = world.emulator.app, threading.Barrier(len(clouds))
    n_looks = itertools.count()

    def answer_together(environ: Any, start_response: Any) -> Any:
        looking = "DescribeSecurityGroups" in world.emulator.operation(environ) and next(n_looks) < len(clouds)
        answer = answered(environ, start_response)
        if looking:
            looked.wait(60)
        return answer

    world.emulator.app = answer_together
    failures: list[BaseException] = []

    def create(attempt: int, cloud: AwsCloud) -> None:
        try:
            cloud.create(make_spec(attempt, server_type="t3.micro"))
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=create, args=pair) for pair in enumerate(clouds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    groups = [g for vpc in world.emulator.backend("us-east-1").groups.values() for g in vpc.values()]
    assert len([g for g in groups if g.name.startswith("tokensweep-ssh-")]) == 1


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("operation", ["CreateSecurityGroup", "AuthorizeSecurityGroupIngress"])
def test_a_group_that_was_left_half_made_is_finished_by_the_next(world: AwsWorld, operation: str, after: bool) -> None:
    world.plant(Fault(operation, after=after))
    refusal(world, make_spec(1))
    assert ours(world) == []
    AwsCloud(world.cloud.session, world.cloud.options).create(make_spec(1))
    client = world.cloud.clients.ec2("us-east-1")
    found = client.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["tokensweep-ssh-*"]}])
    (group,) = found["SecurityGroups"]
    assert len([s for r in group["IpPermissions"] for s in (*r["IpRanges"], *r["Ipv6Ranges"])]) == 2


def test_a_group_that_was_deleted_is_made_again(world: AwsWorld) -> None:
    world.cloud.delete(world.cloud.create(make_spec(1)).ref())
    client = world.cloud.clients.ec2("us-east-1")
    found = client.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["tokensweep-ssh-*"]}])
    client.delete_security_group(GroupId=found["SecurityGroups"][0]["GroupId"])
    assert refusal(world, make_spec(2)).kind is ErrorKind.RATE_LIMITED, "waits and sends the same again"
    assert world.cloud.create(make_spec(2)).state == "pending"


# -- the table of codes


def test_every_error_has_a_meaning_and_none_raises() -> None:
    for code, (kind, _) in CODES.items():
        for shown in (code, f"Client.{code}", f"Server.{code}"):
            found = classify(sdk.ClientError({"Error": {"Code": shown, "Message": "why"}}, "RunInstances"))
            assert (found.kind, found.code) == (kind, code)
    odd: list[BaseException] = [
        sdk.ClientError({}, "x"),
        sdk.ClientError({"Error": {}}, "x"),
        sdk.ClientError({"Error": {"Code": 7, "Message": None}}, "x"),
        sdk.EndpointConnectionError(endpoint_url="https://ec2"),
        sdk.ConnectTimeoutError(endpoint_url="https://ec2"),
        sdk.ReadTimeoutError(endpoint_url="https://ec2"),
        sdk.ConnectionClosedError(endpoint_url="https://ec2"),
        sdk.HTTPClientError(error=ValueError()),
        TimeoutError(),
        KeyError("Instances"),
        KeyboardInterrupt(),
    ]
    for exc in odd:
        found = classify(exc)
        assert (found.kind, found.may_exist) == (ErrorKind.UNKNOWN, True), exc
        assert found.message
    assert classify(sdk.NoCredentialsError()).kind is ErrorKind.AUTH


def test_an_encoded_refusal_is_not_repeated_in_full() -> None:
    text = "You are not authorized. Encoded authorization failure message: " + "x" * 5000
    found = classify(sdk.ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": text}}, "RunInstances"))
    assert "Encoded" not in found.message
    assert len(found.message) <= 500


@pytest.mark.parametrize(
    "tags", [{"aws:x": "1"}, {"k" * 129: "v"}, {"k": "v" * 257}, {"Name": "x"}, {str(i): "" for i in range(50)}]
)
def test_tags_that_ec2_would_refuse_are_refused_unsent(world: AwsWorld, tags: dict[str, str]) -> None:
    found = refusal(world, make_spec(1, tags=tags))
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, False)
    assert not [call for call in world.calls() if call.startswith("RunInstances")]
