"""What the emulated EC2 knows beside moto: the account, its images, and what really became of each instance."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

from moto.ec2.models.amis import Ami
from moto.ec2.models.core import TaggedEC2Resource
from moto.ec2.models.instances import Instance, Reservation
from moto.ec2.utils import random_spot_request_id

from tests.emulators.base import Machines

STATE_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
CANONICAL = "099720109477"
AMAZON = "898082745236"
STRANGER = "666666666666"
_UBUNTU = "ubuntu/images/hvm-ssd-gp3/ubuntu-"
_GPU = "Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) 20261101"
# id, name, owner, architecture, GiB: two that are older or of another release, and one of somebody who takes the name.
IMAGES = (
    ("ami-0a00000000000001", f"{_UBUNTU}noble-24.04-amd64-server-20260401", CANONICAL, "x86_64", 8),
    ("ami-0a00000000000002", f"{_UBUNTU}noble-24.04-amd64-server-20261101", CANONICAL, "x86_64", 8),
    ("ami-0a00000000000003", f"{_UBUNTU}noble-24.04-arm64-server-20261101", CANONICAL, "arm64", 8),
    ("ami-0a00000000000004", f"{_UBUNTU}jammy-22.04-amd64-server-20261102", CANONICAL, "x86_64", 8),
    ("ami-0a00000000000005", f"Deep Learning {_GPU}", AMAZON, "x86_64", 75),
    ("ami-0a00000000000006", f"Deep Learning ARM64 {_GPU}", AMAZON, "arm64", 75),
    ("ami-0a00000000000007", f"{_UBUNTU}noble-24.04-amd64-server-20261103", STRANGER, "x86_64", 8),
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
class Launched:
    request: str
    reservation: Reservation


@dataclass
class Launches:
    by_token: dict[str, Launched] = field(default_factory=dict)
    lives: dict[str, Life] = field(default_factory=dict)
