"""Listings of AWS that are behind, cut or incomplete, and deletes that take time, get stuck or leave something."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from botocore import exceptions as sdk

from tasks.clouds.base import OWNER, OWNER_TAG, ErrorKind, Ref
from tasks.domain.errors import ConfigError
from tests.emulators.aws_world import AwsWorld, make_spec, open_world, ours
from tests.emulators.base import Fault


@pytest.fixture
def world() -> Iterator[AwsWorld]:
    with open_world() as opened:
        yield opened


# -- listings


def test_what_is_not_shown_yet_is_none_and_not_listed(world: AwsWorld) -> None:
    world.emulator.lag_s = 30
    made = world.cloud.create(make_spec(1))
    assert world.cloud.get(made.ref()) is None
    assert world.cloud.list_owned().resources == ()
    world.sleep(31)
    assert world.cloud.get(made.ref()) is not None
    assert {r.kind for r in world.cloud.list_owned().resources} == {"server", "disk", "nic"}
    world.cloud.delete(made.ref())
    shown = world.cloud.get(made.ref())
    assert shown is not None
    assert shown.state == "running", "the listing is behind"
    world.sleep(31)
    assert [(r.kind, r.state) for r in world.cloud.list_owned().resources] == [("server", "terminated")]


def test_a_name_finds_only_ours_and_the_living_first(world: AwsWorld) -> None:
    world.add_foreign()
    assert world.cloud.get(Ref(vendor="aws", place="us-east-1a", name="tokensweep-not-ours")) is None
    world.cloud.delete(Ref(vendor="aws", place="us-east-1a", name="tokensweep-not-ours"))
    dead = world.cloud.create(make_spec(1))
    world.cloud.delete(dead.ref())
    world.sleep(5)
    living = world.cloud.create(make_spec(1, token="e" * 64))
    by_name = Ref(vendor="aws", place="us-east-1a", name=living.name)
    found = world.cloud.get(by_name)
    assert found is not None
    assert found.cloud_id == living.cloud_id
    assert world.cloud.get(replace(by_name, place="us-east-1b")) is None
    world.cloud.delete(by_name)
    assert ours(world) == []
    assert len([thing for thing in world.existing() if thing.kind == "server"]) == 1, "the foreign server is gone"


@pytest.mark.parametrize("how", ["drop", "html_502", "truncated", "hang", "code"])
def test_a_region_that_fails_makes_the_listing_incomplete(how: Any) -> None:
    with open_world(read_timeout_s=5.0 if how == "hang" else 20.0) as world:
        world.cloud.create(make_spec(1))
        world.plant(Fault("DescribeVolumes eu-west-1", how=how, code="RequestLimitExceeded", seconds=7.0))
        listing = world.cloud.list_owned()
        assert not listing.complete
        assert listing.places == ("us-east-1",)
        assert [problem.split(":")[0] for problem in listing.problems] == ["eu-west-1"]
        assert {r.kind for r in listing.resources} == {"server", "disk", "nic"}, "the other region is still shown"
        assert world.cloud.list_owned().complete


def test_no_list_of_regions_is_no_listing(world: AwsWorld) -> None:
    world.plant(Fault("DescribeRegions", how="html_502"))
    listing = world.cloud.list_owned()
    assert (listing.complete, listing.resources, listing.places) == (False, (), ())
    assert listing.problems


def test_every_page_is_read_and_a_cut_one_is_noticed(world: AwsWorld) -> None:
    for attempt in range(12):
        world.cloud.create(make_spec(attempt, server_type="t3.micro"))
    listing = world.cloud.list_owned()
    assert listing.complete
    assert len(listing.resources) == 36
    pages = [call for call in world.calls() if call == "DescribeInstances us-east-1"]
    assert len(pages) == 3
    answered = world.emulator.app
    n_pages = 0

    def second_page_fails(environ: Any, start_response: Any) -> Any:
        nonlocal n_pages
        n_pages += world.emulator.operation(environ) == "DescribeInstances us-east-1"
        broken = n_pages == 2
        return (
            world.emulator.error("InternalError", environ, start_response)
            if broken
            else answered(environ, start_response)
        )

    world.emulator.app = second_page_fails
    cut = world.cloud.list_owned()
    assert not cut.complete
    assert cut.places == ("eu-west-1",)


def test_regions_of_the_options_limit_everything() -> None:
    with open_world(regions=("eu-west-1",)) as world:
        assert world.cloud.list_owned().places == ("eu-west-1",)
        assert {place[:-1] for place in world.cloud.server_type("c7i.large").places} == {"eu-west-1"}
        assert not [call for call in world.calls() if "us-east-1" in call and "GetProducts" not in call]


# -- deletes


def test_a_termination_that_takes_time_shows_its_state(world: AwsWorld) -> None:
    world.emulator.delete_s = 40
    made = world.cloud.create(make_spec(1))
    world.cloud.delete(made.ref())
    for _ in range(2):
        shown = world.cloud.get(made.ref())
        assert shown is not None
        assert shown.state == "stopping"
        assert {thing.kind for thing in ours(world)} == {"server", "disk", "nic"}
        world.cloud.delete(made.ref())
    world.sleep(41)
    assert ours(world) == []


def test_a_stuck_termination_stays_visible(world: AwsWorld) -> None:
    made = world.cloud.create(make_spec(1))
    world.emulator.stuck.add(made.cloud_id)
    world.cloud.delete(made.ref())
    world.sleep(7200)
    assert [r.state for r in world.cloud.list_owned().resources if r.kind == "server"] == ["stopping"]
    world.emulator.stuck.clear()
    assert ours(world) == []


def test_termination_protection_blocks_and_says_so(world: AwsWorld) -> None:
    made = world.cloud.create(make_spec(1))
    world.emulator.backend("us-east-1").get_instance(made.cloud_id).disable_api_termination = True
    with pytest.raises(sdk.ClientError) as caught:
        world.cloud.delete(made.ref())
    assert world.cloud.classify(caught.value).kind is ErrorKind.DELETE_BLOCKED
    assert len(ours(world, "server")) == 1


def test_every_kind_of_stray_is_listed_and_deleted_by_its_ref(world: AwsWorld) -> None:
    made = world.cloud.create(make_spec(1))
    client = world.cloud.clients.ec2("us-east-1")

    def tags(kind: str) -> list[dict[str, Any]]:
        return [{"ResourceType": kind, "Tags": [{"Key": OWNER_TAG, "Value": OWNER}]}]

    volume = client.create_volume(AvailabilityZone="us-east-1a", Size=10, TagSpecifications=tags("volume"))["VolumeId"]
    client.attach_volume(VolumeId=volume, InstanceId=made.cloud_id, Device="/dev/sdf")
    address = client.allocate_address(Domain="vpc", TagSpecifications=tags("elastic-ip"))["AllocationId"]
    client.associate_address(AllocationId=address, InstanceId=made.cloud_id)
    free = client.allocate_address(Domain="vpc", TagSpecifications=tags("elastic-ip"))["AllocationId"]
    subnet = client.describe_subnets()["Subnets"][0]["SubnetId"]
    nic = client.create_network_interface(SubnetId=subnet, TagSpecifications=tags("network-interface"))
    client.create_snapshot(VolumeId=volume, TagSpecifications=tags("snapshot"))
    client.create_key_pair(KeyName="stray", TagSpecifications=tags("key-pair"))
    world.cloud.create(make_spec(2, spot=True))

    with pytest.raises(sdk.ClientError) as caught:
        world.cloud.delete(Ref(vendor="aws", place="us-east-1a", name="", cloud_id=volume))
    assert world.cloud.classify(caught.value).kind is ErrorKind.DELETE_BLOCKED, "it is still attached"

    shown = {r.cloud_id: r for r in world.cloud.list_owned().resources}
    assert {r.kind for r in shown.values()} == {"server", "disk", "nic", "ip", "snapshot", "key", "spot_request"}
    assert {volume, address, free, nic["NetworkInterface"]["NetworkInterfaceId"]} <= set(shown)
    assert {thing.cloud_id for thing in ours(world)} == set(shown)
    world.cloud.delete(shown[address].ref())  # while its server lives
    for resource in sorted(shown.values(), key=lambda r: r.kind != "server"):
        world.cloud.delete(resource.ref())
        world.cloud.delete(resource.ref())
    assert ours(world) == []


def test_a_disk_that_does_not_go_with_its_server_is_left_in_sight(world: AwsWorld) -> None:
    made = world.cloud.create(make_spec(1))
    client = world.cloud.clients.ec2("us-east-1")
    mapping = {"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": False}}
    client.modify_instance_attribute(InstanceId=made.cloud_id, BlockDeviceMappings=[mapping])
    world.cloud.delete(made.ref())
    (left,) = [r for r in world.cloud.list_owned().resources if r.kind != "server"]
    assert (left.kind, left.tags) == ("disk", make_spec(1).tags)
    world.cloud.delete(left.ref())
    assert ours(world) == []


def test_an_id_of_nothing_that_we_make_is_refused(world: AwsWorld) -> None:
    with pytest.raises(ConfigError, match="vpc-1"):
        world.cloud.delete(Ref(vendor="aws", place="us-east-1a", name="", cloud_id="vpc-1"))
