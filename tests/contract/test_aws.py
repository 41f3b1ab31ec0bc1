"""The AWS module over the emulated AWS, through boto3: the ordinary life of a server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tasks.clouds.base import Resource
from tasks.clouds.guest import user_data
from tests.emulators.aws_world import AwsWorld, make_spec, open_world, ours


@pytest.fixture
def world() -> Iterator[AwsWorld]:
    with open_world() as opened:
        yield opened


def running(world: AwsWorld, resource: Resource) -> Resource:
    shown = world.cloud.get(resource.ref())
    assert shown is not None
    assert shown.state == "running"
    return shown


def test_a_server_lives_and_goes_with_everything_it_brought(world: AwsWorld) -> None:
    made = world.cloud.create(make_spec())
    assert (made.state, made.place, made.kind) == ("pending", "us-east-1a", "server")
    shown = running(world, made)
    assert shown.address
    assert (shown.username, shown.ssh_port) == ("tokensweep", 22)
    assert shown.created_unix_s == world.now()
    assert {thing.kind for thing in ours(world)} == {"server", "disk", "nic"}
    assert all(thing.name == made.name for thing in ours(world)), "a side resource was made without our tags"

    world.cloud.delete(made.ref())
    assert ours(world) == []
    ended = world.cloud.get(made.ref())
    assert ended is not None
    assert ended.state == "terminated"
    world.cloud.delete(made.ref())
    world.sleep(3601)
    assert world.cloud.get(made.ref()) is None
    world.cloud.delete(made.ref())


def test_the_listing_shows_all_of_it_in_every_region_with_the_tags_given(world: AwsWorld) -> None:
    first, second = make_spec(1), make_spec(2, place="eu-west-1b", spot=True)
    for spec in (first, second):
        world.cloud.create(spec)
    listing = world.cloud.list_owned()
    assert listing.complete
    assert listing.places == ("eu-west-1", "us-east-1")
    shown = {(r.kind, r.place.rstrip("abc")): r for r in listing.resources}
    assert {kind for kind, region in shown if region == "us-east-1"} == {"server", "disk", "nic"}
    assert {kind for kind, region in shown if region == "eu-west-1"} == {"server", "disk", "nic", "spot_request"}
    assert all(r.tags == (first if "us" in r.place else second).tags for r in listing.resources)
    assert {r.name for r in listing.resources} == {first.name, second.name}
    assert {r.cloud_id for r in listing.resources} == {thing.cloud_id for thing in ours(world)}


def test_what_boots_was_told_its_host_key_and_its_end(world: AwsWorld) -> None:
    told: list[Any] = []
    world.emulator.machines.start = told.append  # type: ignore[method-assign]
    spec = make_spec()
    world.cloud.create(spec)
    assert [guest.user_data for guest in told] == [user_data(spec)]
    assert (told[0].vcpus, told[0].memory_bytes) == (2, 4 * 2**30)


def test_the_launch_asks_for_what_ends_billing_and_for_no_more_than_ssh(world: AwsWorld) -> None:
    made = world.cloud.create(make_spec())
    backend = world.emulator.backend("us-east-1")
    instance = backend.get_instance(made.cloud_id)
    assert instance.instance_initiated_shutdown_behavior == "terminate"
    assert instance.metadata_options.http_tokens == "required"
    assert [v.volume_type for v in backend.volumes.values()] == ["gp3"]
    assert [v.size for v in backend.volumes.values()] == [30]
    ids = [group.id for group in instance.nics[0].group_set]
    (group,) = world.cloud.clients.ec2("us-east-1").describe_security_groups(GroupIds=ids)["SecurityGroups"]
    assert {(r["IpProtocol"], r["FromPort"], r["ToPort"]) for r in group["IpPermissions"]} == {("tcp", 22, 22)}
    sources = [r["CidrIp"] for rule in group["IpPermissions"] for r in rule.get("IpRanges", ())]
    sources += [r["CidrIpv6"] for rule in group["IpPermissions"] for r in rule.get("Ipv6Ranges", ())]
    assert sorted(sources) == ["2001:db8::/64", "203.0.113.7/32"]


def test_a_guest_that_switches_itself_off_is_terminated(world: AwsWorld) -> None:
    made = world.cloud.create(make_spec())
    running(world, made)
    world.emulator.machines.stop(made.cloud_id)
    ended = world.cloud.get(made.ref())
    assert ended is not None
    assert ended.state == "terminated"
    assert ours(world) == []


def test_the_security_group_is_shared_and_no_leak(world: AwsWorld) -> None:
    for attempt in range(3):
        world.cloud.delete(world.cloud.create(make_spec(attempt)).ref())
    groups = [g for vpc in world.emulator.backend("us-east-1").groups.values() for g in vpc.values()]
    assert len([g for g in groups if g.name.startswith("tokensweep-ssh-")]) == 1
    assert {r.kind for r in world.cloud.list_owned().resources} == {"server"}, "only the terminated are still shown"


def test_a_disk_for_big_models_is_a_fast_one(world: AwsWorld) -> None:
    for attempt, size_gib in enumerate((30, 100)):
        world.cloud.create(make_spec(attempt, disk_bytes=size_gib * 2**30 - 1))
    client = world.cloud.clients.ec2("us-east-1")
    volumes = {v["Size"]: v["Throughput"] for v in client.describe_volumes()["Volumes"]}
    assert volumes == {30: 125, 100: 500}


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1"])
def test_the_newest_image_of_the_right_kind(world: AwsWorld, region: str) -> None:
    wanted = {
        ("c7i.large", "x86_64", 0): "ami-0a00000000000002",
        ("c7g.large", "aarch64", 0): "ami-0a00000000000003",
        ("g4dn.xlarge", "x86_64", 1): "ami-0a00000000000005",
        ("g5g.xlarge", "aarch64", 1): "ami-0a00000000000006",
    }
    for attempt, ((name, arch, gpus), image_id) in enumerate(wanted.items()):
        spec = make_spec(attempt, server_type=name, arch=arch, gpus=gpus, place=f"{region}a", disk_bytes=0)
        made = world.cloud.create(spec)
        backend = world.emulator.backend(region)
        assert backend.get_instance(made.cloud_id).image_id == image_id
        sizes = [v.size for v in backend.volumes.values() if v.attachment.instance.id == made.cloud_id]
        assert sizes == [75 if gpus else 8], "0 is the smallest disk that holds the image"
