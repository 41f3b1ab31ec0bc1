"""What there is in an emulated project, and how it is looked up: instances, disks, addresses, snapshots, firewall rules
and operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tests.emulators import gcp_offers as offers
from tests.emulators.base import Machines
from tests.emulators.gcp_discovery import RefusedRequest

Json = dict[str, Any]
BASE = "https://www.googleapis.com/compute/v1"
NEVER = float("inf")
INSTANCE, DISK, ADDRESS, SNAPSHOT, FIREWALL = "instances", "disks", "addresses", "snapshots", "firewalls"


@dataclass
class Timing:
    """Seconds. boot_s: from the insert to RUNNING. refuse_s: until an operation that will fail has failed. hidden_s: an
    accepted instance cannot be read yet. list_lag_s: how far listings are behind, for what comes and what goes."""

    boot_s: float = 8.0
    delete_s: float = 5.0
    refuse_s: float = 1.0
    hidden_s: float = 0.0
    list_lag_s: float = 0.0


@dataclass
class Thing:
    """One resource. body: as it was asked for and as the API shows it, but for what depends on the time."""

    kind: str
    id: int
    name: str
    scope: str  # a zone, a region, or "global"
    body: Json
    created_unix_s: float
    deleting_unix_s: float | None = None
    gone_unix_s: float = NEVER
    running_unix_s: float | None = None
    stopped_unix_s: float | None = None

    def exists(self, now_unix_s: float) -> bool:
        return now_unix_s < self.gone_unix_s

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.body.get("labels", {}))


@dataclass
class Operation:
    name: str
    id: int
    zone: str
    kind: str
    target: Thing
    begun_unix_s: float
    done_unix_s: float
    request_id: str = ""
    errors: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class State:
    """stock: servers left, by zone or by "zone/type" (absent: no end). quotas: by region, of vCPUs. stuck: names whose
    delete is accepted and never comes to pass."""

    now: Callable[[], float]
    machines: Machines
    name: str = "bench-project"
    timing: Timing = field(default_factory=Timing)
    stock: dict[str, int] = field(default_factory=dict)
    quotas: dict[str, int] = field(default_factory=lambda: dict.fromkeys(offers.REGIONS, 500))
    gpus_all_regions: int = 8
    stuck: set[str] = field(default_factory=set)
    things: list[Thing] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    _ids: int = 4_000_000_000_000_000_000

    def url(self, kind: str, scope: str, name: str) -> str:
        where = scope if scope == "global" else f"{'zones' if scope in offers.ZONES else 'regions'}/{scope}"
        return f"{BASE}/projects/{self.name}/{where}/{kind}/{name}"

    def path(self, kind: str, scope: str, name: str) -> str:
        return self.url(kind, scope, name).removeprefix(f"{BASE}/")

    # -- reading --

    def existing(self, kind: str) -> Iterator[Thing]:
        now_unix_s = self.now()
        return (thing for thing in self.things if thing.kind == kind and thing.exists(now_unix_s))

    def find(self, kind: str, scope: str, name: str) -> Thing:
        """By name or id. Raises what the API says to a name that there is not."""
        for thing in self.existing(kind):
            hidden_s = self.timing.hidden_s if kind == INSTANCE else 0.0
            if thing.scope == scope and name in (thing.name, str(thing.id)):
                if self.now() >= thing.created_unix_s + hidden_s:
                    return thing
                break
        raise RefusedRequest(404, "notFound", f"The resource '{self.path(kind, scope, name)}' was not found")

    def listed(self, kind: str) -> list[Thing]:
        """What listings show, which are behind."""
        lag_s, now_unix_s = self.timing.list_lag_s, self.now()
        shown = [
            thing
            for thing in self.things
            if thing.kind == kind
            and now_unix_s >= thing.created_unix_s + max(lag_s, self.timing.hidden_s if kind == INSTANCE else 0.0)
            and now_unix_s < thing.gone_unix_s + lag_s
        ]
        return sorted(shown, key=lambda thing: thing.name)

    def status(self, thing: Thing) -> str:
        if thing.deleting_unix_s is not None:
            return "STOPPING"
        if thing.stopped_unix_s is not None:
            return "TERMINATED"
        if thing.running_unix_s is not None:
            return "RUNNING"
        return "PROVISIONING" if self.now() < thing.created_unix_s + self.timing.boot_s / 2 else "STAGING"

    def users(self, disk: Thing) -> list[str]:
        url = self.url(DISK, disk.scope, disk.name)
        return [
            self.url(INSTANCE, thing.scope, thing.name)
            for thing in self.existing(INSTANCE)
            if disk.kind == DISK and any(attached.get("source") == url for attached in thing.body["disks"])
        ]

    # -- the rest --

    def next_id(self) -> int:
        self._ids += 7
        return self._ids

    def add(self, kind: str, name: str, scope: str, body: Json) -> Thing:
        thing = Thing(kind, self.next_id(), name, scope, body, self.now())
        self.things.append(thing)
        return thing

    def begin(
        self,
        kind: str,
        zone: str,
        target: Thing,
        took_s: float,
        request_id: str = "",
        errors: list[tuple[str, str]] | None = None,
    ) -> Operation:
        number, now_unix_s = self.next_id(), self.now()
        operation = Operation(
            f"operation-{number}", number, zone, kind, target, now_unix_s, now_unix_s + took_s, request_id, errors or []
        )
        self.operations.append(operation)
        return operation

    @staticmethod
    def n_attached(thing: Thing) -> int:
        """GPUs beside those of the machine type."""
        return sum(config["acceleratorCount"] for config in thing.body.get("guestAccelerators", ()))

    def n_gpus(self, thing: Thing) -> int:
        return offers.MACHINE_TYPES[self.machine_type(thing)].gpus + self.n_attached(thing)

    def machine_type(self, thing: Thing) -> str:
        return str(thing.body["machineType"]).rpartition("/")[2]

    def usd_per_hour(self, thing: Thing) -> Decimal:
        """What it bills now: a stopped instance nothing, its disk all the same."""
        if thing.kind == INSTANCE:
            if thing.stopped_unix_s is not None:
                return Decimal(0)
            spot = thing.body.get("scheduling", {}).get("provisioningModel") == "SPOT"
            kind, t4s = offers.MACHINE_TYPES[self.machine_type(thing)], self.n_attached(thing)
            return offers.usd_per_hour(kind, thing.scope, spot=spot, t4s=t4s)
        per_gib = {DISK: offers.DISK_USD_PER_GIB_HOUR, SNAPSHOT: offers.SNAPSHOT_USD_PER_GIB_HOUR}.get(thing.kind)
        if per_gib is not None:
            return per_gib * int(thing.body.get("sizeGb", 10))
        return offers.ADDRESS_USD_PER_HOUR if thing.kind == ADDRESS else Decimal(0)


def rfc3339(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds")
