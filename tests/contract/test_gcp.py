"""The GCP module through Google's own SDK over the emulated project: create, get, list, delete."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import yaml

from tasks.clouds.base import OWNER, OWNER_TAG, ErrorKind, Ref
from tasks.clouds.gcp.instance import instance
from tasks.domain.errors import ConfigError
from tests.contract.gcp_servers import HOST_KEY, TTL_S, asked_for, ours, spec_for, until_running
from tests.emulators.base import Fault, NoMachines
from tests.emulators.gcp_state import ADDRESS, DISK, INSTANCE, SNAPSHOT, Timing
from tests.emulators.gcp_world import GcpWorld, open_world


@pytest.fixture
def world() -> Iterator[GcpWorld]:
    with open_world() as opened:
        yield opened


def test_a_server_comes_runs_is_listed_and_goes_with_its_disk(world: GcpWorld) -> None:
    world.add_foreign()
    spec = spec_for(world)
    made = world.cloud.create(spec)
    assert (made.state, made.name, made.place) == ("pending", spec.name, spec.place)
    assert ours(world) == [f"disk/{spec.name}", f"server/{spec.name}"]

    running = until_running(world, made.ref())
    assert running.cloud_id == made.cloud_id
    assert running.address
    assert running.username == "tokensweep"
    assert running.tags == spec.tags
    assert running.tags[OWNER_TAG] == OWNER

    listing = world.cloud.list_owned()
    assert listing.complete, listing.problems
    assert set(listing.places) == {*world.places, "us-central1", "europe-west4", "global"}
    assert [(r.kind, r.name, r.tags) for r in listing.resources] == [
        ("server", spec.name, spec.tags),
        ("disk", spec.name, spec.tags),
    ]
    assert listing.resources[0].cloud_id == made.cloud_id

    world.cloud.delete(made.ref())
    found = world.cloud.get(made.ref())
    assert found is not None and found.state == "stopping"
    world.sleep(10)
    assert world.cloud.get(made.ref()) is None
    assert world.cloud.list_owned().resources == ()
    assert ours(world) == []
    assert len(world.existing()) == 3, "somebody else's were deleted"
    world.cloud.delete(made.ref())


def test_the_same_create_again_finds_the_first_server_also_from_another_process(world: GcpWorld) -> None:
    spec = spec_for(world)
    first = world.cloud.create(spec)
    again = world.another_cloud().create(spec)
    until_running(world, first.ref())
    later = world.another_cloud().create(spec)
    assert first.cloud_id == again.cloud_id == later.cloud_id
    assert ours(world) == [f"disk/{spec.name}", f"server/{spec.name}"]


def test_a_name_that_is_taken_exists_and_is_not_touched(world: GcpWorld) -> None:
    spec = spec_for(world)
    body: dict[str, Any] = {
        "labels": {"owner": "somebody-else"},
        "disks": [],
        "machineType": "zones/z/machineTypes/e2-micro",
    }
    world.emulator.add(INSTANCE, spec.name, spec.place, body)
    with pytest.raises(Exception) as refused:
        world.cloud.create(spec)
    found = world.cloud.classify(refused.value)
    assert (found.kind, found.may_exist, found.code) == (ErrorKind.EXISTS, True, "alreadyExists")
    world.cloud.delete(Ref(vendor="gcp", place=spec.place, name=spec.name))
    world.sleep(60)
    assert [thing.name for thing in world.existing()] == [spec.name]


def test_names_are_of_one_zone(world: GcpWorld) -> None:
    first = world.cloud.create(spec_for(world))
    second = world.cloud.create(spec_for(world, place=world.places[1], token="cd" * 32))
    assert first.cloud_id != second.cloud_id
    world.cloud.delete(first.ref())
    world.sleep(10)
    assert world.cloud.get(first.ref()) is None
    assert until_running(world, second.ref()).place == world.places[1]


def test_everything_that_is_asked_for_ends_with_the_server(world: GcpWorld) -> None:
    world.cloud.create(spec_for(world, disk_bytes=50 * 10**9))
    (body,) = asked_for(world)
    (disk,) = body["disks"]
    assert disk["autoDelete"] is True
    assert disk["diskSizeGb"] == "47", "50 GB in GiB, rounded up"
    assert body["scheduling"] == {
        "maxRunDuration": {"seconds": str(int(TTL_S))},
        "instanceTerminationAction": "DELETE",
        "automaticRestart": False,
        "provisioningModel": "STANDARD",
    }
    (interface,) = body["networkInterfaces"]
    assert interface["accessConfigs"] == [{"name": "External NAT", "type": "ONE_TO_ONE_NAT"}], "no reserved address"
    assert "serviceAccounts" not in body, "the server must have no credentials of ours"


def test_what_the_user_data_says_reaches_the_machine() -> None:
    told: list[str] = []

    class Machines(NoMachines):
        def start(self, guest: Any) -> None:
            told.append(guest.user_data)
            super().start(guest)

    with open_world(machines=Machines()) as world:
        spec = spec_for(world)
        world.cloud.create(spec)
    document = yaml.safe_load(told[0])
    assert told[0].startswith("#cloud-config\n")
    assert document["ssh_keys"]["ed25519_private"] == HOST_KEY
    assert document["users"][0]["ssh_authorized_keys"] == [spec.client_public_key]
    assert "systemctl poweroff" in document["bootcmd"][0][2]
    assert "set_host_keys = false" in document["bootcmd"][-1][2], "Google's agent would replace the pinned host key"


@pytest.mark.parametrize(
    ("server_type", "changes", "image", "disk_type"),
    [
        ("e2-standard-2", {}, "ubuntu-2404-lts-amd64", "pd-balanced"),
        ("c4a-standard-2", {"arch": "aarch64"}, "ubuntu-2404-lts-arm64", "hyperdisk-balanced"),
        ("t2a-standard-1", {"arch": "aarch64"}, "ubuntu-2404-lts-arm64", "pd-balanced"),
        ("g2-standard-4", {"gpus": 1}, "ubuntu-accelerator-2404-amd64-with-nvidia-580", "pd-balanced"),
        ("a3-highgpu-1g", {"gpus": 1}, "ubuntu-accelerator-2404-amd64-with-nvidia-580", "hyperdisk-balanced"),
        ("g4-standard-48", {"gpus": 1}, "ubuntu-accelerator-2404-amd64-with-nvidia-580", "hyperdisk-balanced"),
        ("x9-metal", {}, "ubuntu-2404-lts-amd64", "hyperdisk-balanced"),
    ],
)
def test_image_and_disk_fit_the_machine(
    world: GcpWorld, server_type: str, changes: dict[str, Any], image: str, disk_type: str
) -> None:
    """The emulator refuses an image of another architecture, and a disk type that the family does not take."""
    world.cloud.create(spec_for(world, server_type=server_type, disk_bytes=5 * 10**9, **changes))
    (disk,) = asked_for(world, DISK)
    assert disk["type"].endswith(f"/{disk_type}")
    assert disk["sourceImage"].endswith(f"/{image}")


@pytest.mark.parametrize(
    ("server_type", "disk_type", "nic_type"),
    [
        ("c3-standard-4", "pd-balanced", ""),
        ("c3-standard-192-metal", "hyperdisk-balanced", "IDPF"),
        ("c4a-highmem-96-metal", "hyperdisk-balanced", "IDPF"),
        ("m4n-megamem-14", "hyperdisk-balanced", ""),
        ("z4d-highmem-8-highlssd", "hyperdisk-balanced", ""),
    ],
)
def test_machines_that_the_emulator_does_not_sell(
    world: GcpWorld, server_type: str, disk_type: str, nic_type: str
) -> None:
    """Families newer than this module take Hyperdisk; bare metal also has but one kind of network interface."""
    asked = instance(spec_for(world, server_type=server_type), network="default", now_unix_s=world.now())
    (interface,), (disk,) = asked.network_interfaces, asked.disks
    assert disk.initialize_params.disk_type.endswith(f"/{disk_type}")
    assert interface.nic_type == nic_type


def test_gpus_that_are_sold_apart_are_attached(world: GcpWorld) -> None:
    name = "n1-standard-8-1x-nvidia-tesla-t4"
    kind = world.cloud.server_type(name)
    made = world.cloud.create(spec_for(world, server_type=name, gpus=kind.gpus))
    until_running(world, made.ref())
    (body,) = asked_for(world)
    zone = world.places[0]
    assert body["machineType"] == f"zones/{zone}/machineTypes/n1-standard-8"
    gpu = f"zones/{zone}/acceleratorTypes/nvidia-tesla-t4"
    assert body["guestAccelerators"] == [{"acceleratorType": gpu, "acceleratorCount": 1}]
    assert body["disks"][0]["source"], "an image with the driver"
    assert asked_for(world, DISK)[0]["sourceImage"].endswith("with-nvidia-580")
    (billed,) = [thing.usd_per_hour for thing in world.existing() if thing.kind == "server"]
    assert abs(billed - kind.prices[zone]) < Decimal("1e-6")


def test_a_spot_server_that_is_taken_away_is_gone_with_its_disk(world: GcpWorld) -> None:
    made = world.cloud.create(spec_for(world, spot=True))
    until_running(world, made.ref())
    (body,) = asked_for(world)
    assert body["scheduling"]["provisioningModel"] == "SPOT"
    dear = [thing.usd_per_hour for thing in world.existing() if thing.kind == "server"]
    world.emulator.preempt(made.name)
    assert world.cloud.get(made.ref()) is None
    assert ours(world) == []
    assert dear and dear[0] < world.emulator.list_price("e2-standard-2", world.places[0])


def test_google_itself_deletes_the_server_at_its_deadline(world: GcpWorld) -> None:
    made = world.cloud.create(spec_for(world))
    until_running(world, made.ref())
    world.sleep(TTL_S - 60)
    assert ours(world)
    world.sleep(120)
    assert world.cloud.get(made.ref()) is None
    assert ours(world) == []


def test_a_server_that_shut_itself_down_is_stopped_not_gone(world: GcpWorld) -> None:
    made = world.cloud.create(spec_for(world))
    until_running(world, made.ref())
    world.emulator.power_off(made.name)
    found = world.cloud.get(made.ref())
    assert found is not None and found.state == "stopped", "TERMINATED is Google's word for stopped"
    assert [r.state for r in world.cloud.list_owned().resources if r.kind == "server"] == ["stopped"]
    assert sum(thing.usd_per_hour for thing in world.existing()) > 0, "its disk bills"
    world.cloud.delete(made.ref())
    world.sleep(10)
    assert ours(world) == []


def test_a_disk_that_outlives_its_server_is_listed_and_deleted(world: GcpWorld) -> None:
    spec = spec_for(world)
    made = world.cloud.create(spec)
    until_running(world, made.ref())
    world.emulator.add(DISK, "scratch", spec.place, {"labels": spec.tags, "sizeGb": "100"})
    url = world.emulator.project.url(DISK, spec.place, "scratch")
    asked_for(world)[0]["disks"].append({"source": url, "autoDelete": False})

    (scratch,) = [r for r in world.cloud.list_owned().resources if r.name == "scratch"]
    with pytest.raises(Exception) as refused:
        world.cloud.delete(scratch.ref())
    assert world.cloud.classify(refused.value).kind is ErrorKind.DELETE_BLOCKED
    world.cloud.delete(made.ref())
    world.sleep(10)
    assert ours(world) == ["disk/scratch"]
    world.cloud.delete(scratch.ref())
    world.sleep(10)
    assert ours(world) == []
    world.cloud.delete(scratch.ref())


def test_addresses_and_snapshots_of_ours_are_listed_and_deleted_by_their_refs(world: GcpWorld) -> None:
    labels = spec_for(world).tags
    world.emulator.add(ADDRESS, "here", "us-central1", {"labels": labels, "address": "198.51.100.1"})
    world.emulator.add(ADDRESS, "everywhere", "global", {"labels": labels, "address": "198.51.100.2"})
    world.emulator.add(SNAPSHOT, "kept", "global", {"labels": labels})
    world.add_foreign()
    found = world.cloud.list_owned()
    assert found.complete, found.problems
    assert [(r.kind, r.name, r.place) for r in found.resources] == [
        ("ip", "everywhere", "global"),
        ("snapshot", "kept", "global"),
        ("ip", "here", "us-central1"),
    ]
    for resource in found.resources:
        world.cloud.delete(resource.ref())
    world.sleep(10)
    assert ours(world) == []
    assert len(world.existing()) == 3, "somebody else's were deleted"


def test_a_name_that_came_to_mean_another_thing_is_spared(world: GcpWorld) -> None:
    spec = spec_for(world)
    made = world.cloud.create(spec)
    until_running(world, made.ref())
    (server, disk) = world.cloud.list_owned().resources
    world.cloud.delete(made.ref())
    world.sleep(10)
    second = world.cloud.create(spec_for(world, token="cd" * 32))
    until_running(world, second.ref())
    world.cloud.delete(server.ref())
    world.cloud.delete(disk.ref())
    world.sleep(10)
    assert world.cloud.get(server.ref()) is None
    assert until_running(world, second.ref()).cloud_id == second.cloud_id
    assert ours(world) == [f"disk/{spec.name}", f"server/{spec.name}"]


def test_an_accepted_server_that_cannot_be_read_yet_is_pending() -> None:
    with open_world(timing=Timing(hidden_s=30.0, boot_s=40.0)) as world:
        made = world.cloud.create(spec_for(world))
        assert [r.kind for r in world.cloud.list_owned().resources] == ["disk"], "the emulator hides the server"
        for cloud in (world.cloud, world.another_cloud()):
            found = cloud.get(made.ref())
            assert found is not None
            assert (found.state, found.cloud_id) == ("pending", made.cloud_id)
            with pytest.raises(Exception) as not_yet:
                cloud.delete(made.ref())
            assert cloud.classify(not_yet.value).kind is ErrorKind.DELETE_BLOCKED
        world.sleep(30)
        assert until_running(world, made.ref()).cloud_id == made.cloud_id


def test_a_create_of_the_same_name_that_is_under_way_is_not_taken_for_the_one_that_is_gone() -> None:
    with open_world(timing=Timing(hidden_s=30.0, boot_s=40.0)) as world:
        first = world.cloud.create(spec_for(world))
        world.sleep(60)
        world.cloud.delete(first.ref())
        world.sleep(10)
        second = world.cloud.create(spec_for(world, token="cd" * 32))
        assert world.cloud.get(first.ref()) is None
        world.cloud.delete(first.ref())
        found = world.cloud.get(second.ref())
        assert found is not None and (found.cloud_id, found.state) == (second.cloud_id, "pending")


def test_listings_have_pages() -> None:
    with open_world(page_size=2) as world:
        names = [f"tokensweep-{number}" for number in range(5)]
        for number, name in enumerate(names):
            world.cloud.create(spec_for(world, name=name, token=f"{number:02d}" * 32, place=world.places[number % 3]))
        found = world.cloud.list_owned()
    assert found.complete, found.problems
    assert sorted(r.name for r in found.resources if r.kind == "server") == names
    assert sorted(r.name for r in found.resources if r.kind == "disk") == names


def test_ssh_is_open_to_the_given_networks_and_nothing_else_is(world: GcpWorld) -> None:
    world.cloud.create(spec_for(world, ssh_sources=("203.0.113.7/32", "2001:db8::/64")))
    world.cloud.create(spec_for(world, ssh_sources=("198.51.100.0/24",), name="tokensweep-2", token="cd" * 32))
    world.cloud.create(spec_for(world, name="tokensweep-3", token="ef" * 32))
    rules = {rule["name"]: rule for rule in asked_for(world, "firewalls")}
    deny = rules.pop("tokensweep-deny-ingress")
    assert deny["denied"] == [{"IPProtocol": "all"}]
    assert deny["priority"] < 65534, "the network's own rule lets everybody in on port 22"
    open_to = {name: rule["sourceRanges"] for name, rule in rules.items()}
    for rule in rules.values():
        assert rule["allowed"] == [{"IPProtocol": "tcp", "ports": ["22"]}]
        assert rule["targetTags"] == [rule["name"]]
        assert rule["priority"] < deny["priority"]
    for body, networks in zip(asked_for(world), (["203.0.113.7/32"], ["198.51.100.0/24"], ["0.0.0.0/0"]), strict=True):
        (tag,) = set(body["tags"]["items"]) & set(open_to)
        assert open_to[tag] == networks
        assert set(deny["targetTags"]) <= set(body["tags"]["items"])


def test_the_rules_are_made_once_and_again_when_somebody_deletes_one(world: GcpWorld) -> None:
    for number in range(3):
        world.cloud.create(spec_for(world, name=f"tokensweep-{number}", token=f"{number:02d}" * 32))
    world.another_cloud().create(spec_for(world, name="tokensweep-3", token="33" * 32))
    assert world.calls().count("firewalls.insert") == 2
    things = world.emulator.project.things
    things[:] = [thing for thing in things if thing.name != "tokensweep-deny-ingress"]
    world.cloud.create(spec_for(world, name="tokensweep-4", token="44" * 32))
    assert world.calls().count("firewalls.insert") == 3
    assert len(asked_for(world, "firewalls")) == 2


def test_a_rule_that_another_one_makes_at_the_same_time_is_no_error(world: GcpWorld) -> None:
    """Both looked before either made it."""
    world.plant(Fault("firewalls.get", "code", code="notFound", times=2))
    world.cloud.create(spec_for(world))
    world.plant(Fault("firewalls.get", "code", code="notFound", times=2))
    world.cloud.create(spec_for(world, name="tokensweep-2", token="cd" * 32))
    assert world.calls().count("firewalls.insert") == 4
    assert len(asked_for(world, "firewalls")) == 2


def test_what_cannot_be_asked_for_is_refused_before_anything_is_made(world: GcpWorld) -> None:
    for changes, said in (
        ({"ssh_sources": ("2001:db8::/64",)}, "IPv4"),
        ({"ssh_sources": ("somewhere",)}, "somewhere"),
        ({"arch": "riscv64"}, "riscv64"),
    ):
        with pytest.raises(ConfigError, match=said) as refused:
            world.cloud.create(spec_for(world, **changes))
        found = world.cloud.classify(refused.value)
        assert (found.kind, found.may_exist) == (ErrorKind.UNSUPPORTED, False)
    assert world.existing() == []
    assert "instances.insert" not in world.calls()
