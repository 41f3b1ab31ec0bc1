"""EC2 of one region: moto's backend, made honest where it is kinder than EC2.

moto keeps images, networks, groups, disks, tags and their filters. Here are: tokens that make a launch idempotent,
launches that take time, fail afterwards or run out of stock and quota, spot requests, terminations that take time and
stay visible for an hour, guests that switch themselves off, listings that are behind, tags of interfaces.
"""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar, Protocol

from moto.ec2 import urls
from moto.ec2.exceptions import EC2ClientError, InvalidInstanceIdError
from moto.ec2.models import EC2Backend, ec2_backends
from moto.ec2.models.amis import Ami
from moto.ec2.models.availability_zones_and_regions import Region
from moto.ec2.models.core import TaggedEC2Resource
from moto.ec2.models.instance_types import InstanceType
from moto.ec2.models.instances import Instance, InstanceState, Reservation, StateReason
from moto.ec2.utils import generic_filter, random_spot_request_id

from tests.emulators import aws_prices
from tests.emulators.base import Guest, Machines

TERMINATED_VISIBLE_S = 3600.0
STATE_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
CANONICAL = "099720109477"
IMAGES = (  # id, name, owner, architecture, GiB, created
    (
        "ami-0a00000000000001",
        "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20260401",
        CANONICAL,
        "x86_64",
        8,
    ),
    (
        "ami-0a00000000000002",
        "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20261101",
        CANONICAL,
        "x86_64",
        8,
    ),
    (
        "ami-0a00000000000003",
        "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-arm64-server-20261101",
        CANONICAL,
        "arm64",
        8,
    ),
    (
        "ami-0a00000000000004",
        "ubuntu/images/hvm-ssd-gp3/ubuntu-jammy-22.04-amd64-server-20261102",
        CANONICAL,
        "x86_64",
        8,
    ),
    (
        "ami-0a00000000000005",
        "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) 20261101",
        "898082745236",
        "x86_64",
        75,
    ),
    (
        "ami-0a00000000000006",
        "Deep Learning ARM64 Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) 20261101",
        "898082745236",
        "arm64",
        75,
    ),
    (
        "ami-0a00000000000007",
        "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20261103",
        "666666666666",
        "x86_64",
        8,
    ),
)


class Account(Protocol):
    """What the backends of all regions share. lag_s: how long listings are behind. stock: servers left by (type, zone)
    or zone. vcpu_quota: by region. stuck: instance ids whose termination never ends. die_after_accept: so many of the
    next launches are accepted and then have no capacity."""

    lag_s: float
    boot_s: float
    delete_s: float
    stock: dict[str, int]
    vcpu_quota: dict[str, int]
    stuck: set[str]
    stuck_all: bool
    die_after_accept: int
    machines: Machines
    regions: tuple[str, ...]
    request: dict[str, Any]
    answering: str

    def now(self) -> float: ...


ACCOUNTS: dict[str, Account] = {}


@dataclass
class Life:
    """What really became of an instance, whatever is shown of it. states: since when it has been in which."""

    instance: Instance
    usd_per_hour: Decimal
    states: list[tuple[float, str]]
    doomed: bool = False
    booted: bool = False
    address: str = ""

    @property
    def state(self) -> str:
        return self.states[-1][1]

    @property
    def since_unix_s(self) -> float:
        return self.states[-1][0]

    def shown(self, unix_s: float) -> str | None:
        """The state in which it was then; None before it was launched."""
        past = [state for since, state in self.states if since <= unix_s]
        return past[-1] if past else None


class Image(Ami):
    """An image whose snapshot has its own size."""

    size_gib = 8

    @property
    def block_device_mappings(self) -> list[dict[str, Any]]:
        ebs = {"SnapshotId": self.ebs_snapshot.id, "VolumeSize": self.size_gib, "DeleteOnTermination": True}
        return [{"DeviceName": self.root_device_name, "Ebs": ebs | {"VolumeType": "gp3"}}]


class SpotRequest(TaggedEC2Resource):
    def __init__(self, backend: Any, instance: Instance, created: datetime) -> None:
        self.ec2_backend = backend
        self.id = self.spot_instance_request_id = random_spot_request_id()
        self.instance_id = instance.id
        self.instance = instance
        self.state = "active"
        self.type = "one-time"
        self.create_time = created
        self.launched_availability_zone = instance.availability_zone


@dataclass
class _Launched:
    request: str
    reservation: Reservation


@dataclass
class _Launches:
    by_token: dict[str, _Launched] = field(default_factory=dict)
    lives: dict[str, Life] = field(default_factory=dict)


class Backend(EC2Backend):  # type: ignore[misc]
    instance_types: ClassVar[list[InstanceType]] = [InstanceType(name) for name in aws_prices.USD_PER_HOUR]

    def __init__(self, region_name: str, account_id: str) -> None:
        self.account = ACCOUNTS.get(account_id)
        self.launches = _Launches()
        self.born: dict[str, float] = {}
        super().__init__(region_name, account_id)
        if self.account is not None:
            self.regions = [Region(r, f"ec2.{r}.amazonaws.com", "opt-in-not-required") for r in self.account.regions]

    @property
    def _url_module(self) -> Any:
        return urls

    def _load_amis(self) -> None:
        for ami_id, name, owner, architecture, size_gib in IMAGES:
            image = Image(
                self,
                ami_id,
                name=name,
                owner_id=owner,
                owner_alias="amazon" if owner not in (CANONICAL, "666666666666") else None,
                architecture=architecture,
                public=True,
                virtualization_type="hvm",
                root_device_type="ebs",
                creation_date=datetime.strptime(name[-8:], "%Y%m%d"),
                region_name=f"{self.region_name}a",
            )
            image.size_gib = size_gib
            self.amis[ami_id] = image

    # -- launching

    def run_instances(
        self, image_id: str, count: int, user_data: Any, security_group_names: list[str], **kwargs: Any
    ) -> Reservation:
        account = self.account
        assert account is not None and count == 1
        request = {k: v for k, v in account.request.items() if k not in ("ClientToken", "DryRun")}
        fingerprint = json.dumps(request, sort_keys=True, default=lambda blob: base64.b64encode(blob).decode())
        token = account.request.get("ClientToken", "")
        if token and token in self.launches.by_token:
            earlier = self.launches.by_token[token]
            if earlier.request != fingerprint:
                raise EC2ClientError(
                    "IdempotentParameterMismatch",
                    "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
                )
            return earlier.reservation
        zone = self._zone(request)
        self._check_launch(request, zone)
        self._take_stock(request, zone)
        kwargs["block_device_mappings"] = self._all_devices(request, kwargs.get("block_device_mappings") or [])
        made = super().run_instances(image_id, count, user_data, security_group_names, **kwargs)
        self._launched(made.instances[0], request, kwargs.get("tags") or {})
        if token:
            self.launches.by_token[token] = _Launched(fingerprint, made)
        return made

    def _zone(self, request: dict[str, Any]) -> str:
        interfaces = request.get("NetworkInterfaces") or [{}]
        if interfaces[0] and (request.get("SubnetId") or request.get("SecurityGroupIds")):
            raise EC2ClientError(
                "InvalidParameterCombination",
                "Network interfaces and an instance-level subnet ID may not be specified on the same request",
            )
        subnet_id = interfaces[0].get("SubnetId") or request.get("SubnetId")
        if subnet_id:
            return str(self.get_subnet(subnet_id).availability_zone)
        return str(request.get("Placement", {}).get("AvailabilityZone") or f"{self.region_name}a")

    def _check_launch(self, request: dict[str, Any], zone: str) -> None:
        name = request.get("InstanceType", "m1.small")
        if not any(known.name == name for known in self.instance_types):
            raise EC2ClientError("InvalidParameterValue", f"Invalid value '{name}' for InstanceType.")
        if zone not in self.zones_of(name):
            raise EC2ClientError(
                "Unsupported",
                f"Your requested instance type ({name}) is not supported in your requested Availability Zone ({zone}).",
            )
        image = self.describe_images(ami_ids=[request["ImageId"]])[0]
        if image.architecture not in self.described(name)["ProcessorInfo"]["SupportedArchitectures"]:
            raise EC2ClientError(
                "InvalidParameterValue",
                f"The architecture of the specified instance type does not match {image.architecture} of {image.id}.",
            )
        asked = [*(request.get("SecurityGroupIds") or ())]
        asked += [group for nic in request.get("NetworkInterfaces") or () for group in nic.get("Groups", ())]
        for group in asked:
            if self.get_security_group_from_id(group) is None:
                raise EC2ClientError("InvalidGroup.NotFound", f"The security group '{group}' does not exist")
        for mapping in request.get("BlockDeviceMappings") or ():
            size_gib = mapping.get("Ebs", {}).get("VolumeSize")
            if mapping["DeviceName"] == image.root_device_name and size_gib and size_gib < image.size_gib:
                raise EC2ClientError(
                    "InvalidBlockDeviceMapping",
                    f"Volume of size {size_gib}GB is smaller than its snapshot, expect size>= {image.size_gib}GB",
                )
        if len(base64.b64decode(request.get("UserData") or "")) > 16384:
            raise EC2ClientError("InvalidParameterValue", "User data is limited to 16384 bytes")
        spot = "InstanceMarketOptions" in request
        for specification in request.get("TagSpecifications") or ():
            if specification["ResourceType"] == "spot-instances-request" and not spot:
                raise EC2ClientError("InvalidParameterCombination", "There is no Spot request to tag.")
            for tag in specification.get("Tags", ()):
                if len(tag["Key"]) > 128 or len(tag.get("Value", "")) > 256 or tag["Key"].startswith("aws:"):
                    raise EC2ClientError("InvalidParameterValue", f"Tag {tag['Key']} is invalid.")

    def _take_stock(self, request: dict[str, Any], zone: str) -> None:
        account, name = self.account, request["InstanceType"]
        assert account is not None
        quota = account.vcpu_quota.get(self.region_name)
        if quota is not None:
            living = [x for x in self.launches.lives.values() if x.state in ("pending", "running")]
            used = sum(self.described(x.instance.instance_type)["VCpuInfo"]["DefaultVCpus"] for x in living)
            if used + self.described(name)["VCpuInfo"]["DefaultVCpus"] > quota:
                raise EC2ClientError(
                    "VcpuLimitExceeded",
                    f"You have requested more vCPU capacity than your current vCPU limit of {quota} allows.",
                )
        for key in (zone, f"{name} {zone}"):
            if account.stock.get(key, 1) <= 0:
                raise EC2ClientError(
                    "InsufficientInstanceCapacity",
                    f"We currently do not have sufficient {name} capacity in the zone you requested ({zone}).",
                )
        for key in (zone, f"{name} {zone}"):
            if key in account.stock:
                account.stock[key] -= 1

    def _all_devices(self, request: dict[str, Any], mappings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The image's own root disk is there also when the request does not name it."""
        image = self.describe_images(ami_ids=[request["ImageId"]])[0]
        if any(mapping["DeviceName"] == image.root_device_name for mapping in mappings):
            return mappings
        ebs = {"VolumeSize": image.size_gib, "VolumeType": "gp3", "DeleteOnTermination": True}
        return [*mappings, {"DeviceName": image.root_device_name, "Ebs": ebs, "NoDevice": None, "VirtualName": None}]

    def _launched(self, instance: Instance, request: dict[str, Any], tags: dict[str, dict[str, str]]) -> None:
        account = self.account
        assert account is not None
        now_unix_s, now = account.now(), self.time()
        spot = "InstanceMarketOptions" in request
        instance.launch_time = now
        price = aws_prices.spot if spot else lambda name, zone: aws_prices.regional(name, zone[:-1])
        life = Life(
            instance,
            price(instance.instance_type, str(instance.availability_zone)),
            [(now_unix_s, "pending")],
            doomed=account.die_after_accept > 0,
        )
        account.die_after_accept = max(0, account.die_after_accept - 1)
        self.launches.lives[instance.id] = life
        self.born[instance.id] = now_unix_s
        asked = {nic.get("DeviceIndex"): nic for nic in request.get("NetworkInterfaces") or ()}
        for index, nic in instance.nics.items():
            nic.delete_on_termination = asked.get(index, {}).get("DeleteOnTermination", True)
            nic.add_tags(tags.get("network-interface", {}))
            nic.public_ip, nic.attach_time = None, now
            self.born[nic.id] = now_unix_s
        for _, device in instance.get_block_device_mapping:
            self.volumes[device.volume_id].create_time = now
            self.born[device.volume_id] = now_unix_s
        if spot:
            made = SpotRequest(self, instance, now)
            made.add_tags(tags.get("spot-instances-request", {}))
            self.spot_instance_requests[made.id] = made
            instance.spot_instance_request_id = made.id
            self.born[made.id] = now_unix_s
        self._show(life, "pending")
        types = self.described(instance.instance_type)
        document = base64.b64decode(request.get("UserData") or "").decode()
        account.machines.start(
            Guest(
                cloud_id=instance.id,
                name=next((t["value"] for t in instance.get_tags() if t["key"] == "Name"), instance.id),
                user_data=document,
                vcpus=types["VCpuInfo"]["DefaultVCpus"],
                memory_bytes=types["MemoryInfo"]["SizeInMiB"] * 2**20,
            )
        )

    # -- time

    def time(self) -> datetime:
        """Now as moto keeps it: UTC, not saying so."""
        assert self.account is not None
        return datetime.fromtimestamp(self.account.now(), UTC).replace(tzinfo=None)

    def advance(self) -> None:
        """Everything that has happened by now."""
        for life in list(self.launches.lives.values()):
            self._advance(life)
            self._show(life, life.state)

    def _advance(self, life: Life) -> None:
        account, instance = self.account, life.instance
        assert account is not None
        now_unix_s = account.now()
        if life.state == "pending" and now_unix_s >= life.since_unix_s + account.boot_s:
            address = account.machines.address(instance.id)
            if life.doomed:
                self._begin_end(life, "Server.InsufficientInstanceCapacity", "Insufficient capacity.")
            elif address:
                life.states.append((now_unix_s, "running"))
                life.address = instance.nics[0].public_ip = address
        elif life.state == "running" and not account.machines.address(instance.id):
            # The guest has switched itself off.
            if instance.instance_initiated_shutdown_behavior == "terminate":
                self._begin_end(life, "Client.InstanceInitiatedShutdown", "Instance initiated shutdown")
            else:
                life.states.append((now_unix_s, "stopped"))
                instance.nics[0].public_ip = None
        if life.state == "shutting-down":
            stuck = account.stuck_all or instance.id in account.stuck
            if not stuck and now_unix_s >= life.since_unix_s + account.delete_s:
                self._end(life)
        elif life.state == "terminated" and now_unix_s >= life.since_unix_s + TERMINATED_VISIBLE_S:
            for key, reservation in list(self.reservations.items()):
                if instance in reservation.instances:
                    del self.reservations[key]

    def _begin_end(self, life: Life, code: str, message: str) -> None:
        assert self.account is not None
        life.states.append((self.account.now(), "shutting-down"))
        life.instance.state_reason = StateReason(f"{code}: {message}", code)
        self.account.machines.stop(life.instance.id)

    def _end(self, life: Life) -> None:
        """moto's own termination: disks and interfaces that are marked for it go, the others stay behind."""
        assert self.account is not None
        reason = life.instance.state_reason
        kept = [nic for nic in life.instance.nics.values() if not nic.delete_on_termination]
        life.instance.terminate()
        for nic in kept:
            life.instance.detach_eni(nic)
        life.instance.state_reason = reason
        life.states.append((self.account.now(), "terminated"))
        for request in self.spot_instance_requests.values():
            if request.instance is life.instance and request.state == "active":
                request.state = "closed"

    def interrupt(self, instance_id: str) -> None:
        """AWS takes a spot instance back."""
        self._begin_end(self.launches.lives[instance_id], "Server.SpotInstanceTermination", "Spot interruption")

    def terminate_instances(self, instance_ids: list[str]) -> list[tuple[Instance, InstanceState]]:
        found = self.get_multi_instances_by_id(instance_ids)
        for instance in found:
            if instance.disable_api_termination:
                raise EC2ClientError(
                    "OperationNotPermitted",
                    f"The instance '{instance.id}' may not be terminated: 'disableApiTermination' is set.",
                )
        answers = []
        for instance in found:
            life = self.launches.lives[instance.id]
            answers.append((instance, InstanceState(life.state, STATE_CODES[life.state])))
            if life.state not in ("shutting-down", "terminated"):
                self._begin_end(life, "Client.UserInitiatedShutdown", "User initiated shutdown")
            self._advance(life)
        return answers

    # -- what listings show

    def _show(self, life: Life, state: str) -> None:
        life.instance._state = InstanceState(state, STATE_CODES[state])
        nics = life.instance.nics
        if 0 in nics:
            nics[0].public_ip = life.address if state in ("running", "shutting-down") else None

    def _visible(self, resource_id: str) -> bool:
        account = self.account
        if account is None or not account.answering.startswith(("Describe", "Terminate")):
            return True
        return account.now() >= self.born.get(resource_id, 0.0) + account.lag_s

    def all_reservations(self, filters: Any = None) -> list[Reservation]:
        account = self.account
        shown = []
        for reservation in list(self.reservations.values()):
            copied = copy.copy(reservation)
            copied.instances = [instance for instance in reservation.instances if self._visible(instance.id)]
            for instance in copied.instances:
                life = self.launches.lives.get(instance.id)
                if life is not None and account is not None and account.answering.startswith("Describe"):
                    self._show(life, life.shown(account.now() - account.lag_s) or life.state)
            if copied.instances:
                shown.append(copied)
        self.reservations, real = {r.id: r for r in shown}, self.reservations
        try:
            wanted = dict(filters or {})
            tokens, zones = wanted.pop("client-token", None), wanted.pop("availability-zone", None)
            found = super().all_reservations(wanted or None)
        finally:
            self.reservations = real
        for reservation in found:
            reservation.instances = [
                i
                for i in reservation.instances
                if (tokens is None or i.client_token in tokens) and (zones is None or i.availability_zone in zones)
            ]
        return [reservation for reservation in found if reservation.instances]

    def get_multi_instances_by_id(self, instance_ids: list[str], filters: Any = None) -> list[Instance]:
        shown = {i.id: i for reservation in self.all_reservations() for i in reservation.instances}
        missing = [i for i in instance_ids if i not in shown]
        if missing:
            raise InvalidInstanceIdError(missing)
        return [shown[i] for i in instance_ids]

    def describe_volumes(self, volume_ids: Any = None, filters: Any = None) -> list[Any]:
        return [v for v in super().describe_volumes(volume_ids, filters) if self._visible(v.id)]

    def get_all_network_interfaces(self, eni_ids: Any = None, filters: Any = None) -> list[Any]:
        return [e for e in super().get_all_network_interfaces(eni_ids, filters) if self._visible(e.id)]

    def delete_network_interface(self, eni_id: str) -> None:
        nic = self.enis.get(eni_id)
        called = self.account is not None and self.account.answering == "DeleteNetworkInterface"
        if called and nic is not None and nic.attachment_id:
            raise EC2ClientError(
                "InvalidParameterValue" if nic.instance is None else "InvalidNetworkInterface.InUse",
                f"Network interface '{eni_id}' is currently in use.",
            )
        super().delete_network_interface(eni_id)

    def describe_spot_instance_requests(self, filters: Any = None, spot_instance_ids: Any = None) -> list[Any]:
        found = [r for r in self.spot_instance_requests.values() if self._visible(r.id)]
        wanted = [r for r in found if not spot_instance_ids or r.id in spot_instance_ids]
        return generic_filter(filters, wanted)

    def cancel_spot_instance_requests(self, request_ids: list[str]) -> list[Any]:
        """A request that is cancelled leaves its instance running."""
        missing = [r for r in request_ids if r not in self.spot_instance_requests]
        if missing:
            raise EC2ClientError("InvalidSpotInstanceRequestID.NotFound", f"{missing} does not exist")
        found = [self.spot_instance_requests[r] for r in request_ids]
        for request in found:
            request.state = "cancelled"
        return found

    # -- what is sold where

    def described(self, name: str) -> InstanceType:
        return next(known for known in self.instance_types if known.name == name)

    def zones_of(self, name: str) -> list[str]:
        zones = [zone.name for zone in self.describe_availability_zones()]
        return zones[:-1] if name in aws_prices.ONLY_IN_SOME_ZONES else zones

    def describe_instance_type_offerings(self, location_type: Any = None, filters: Any = None) -> list[dict[str, str]]:
        wanted = (filters or {}).get("instance-type")
        # A local zone as well: it needs an opt-in of its own and is no place of ours.
        return [
            {"InstanceType": known.name, "LocationType": str(location_type), "Location": zone}
            for known in self.instance_types
            for zone in [*self.zones_of(known.name), f"{self.region_name}-lax-1a"]
            if not wanted or known.name in wanted
        ]

    def spot_history(self, names: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "InstanceType": known.name,
                "ProductDescription": "Linux/UNIX",
                "SpotPrice": str(aws_prices.spot(known.name, zone)),
                "AvailabilityZone": zone,
                "Timestamp": self.time(),
            }
            for known in self.instance_types
            for zone in self.zones_of(known.name)
            if not names or known.name in names
        ]


ec2_backends.backend = Backend
