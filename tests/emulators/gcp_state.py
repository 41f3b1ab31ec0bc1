"""One emulated project: instances, disks, addresses, snapshots, firewall rules and operations, and what time does to
them. Everything goes by the clock it is given; nothing happens but when it is looked at."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tests.emulators import gcp_offers as offers
from tests.emulators.base import Guest, Machines
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
class Project:
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

    # -- time --

    def pass_time(self) -> None:
        """Let happen what is due: boots, ends of operations, ends of limited run times."""
        now_unix_s = self.now()
        for thing in list(self.things):
            if thing.kind != INSTANCE or not thing.exists(now_unix_s) or thing.deleting_unix_s is not None:
                continue
            self._boot(thing, now_unix_s)
            ends_unix_s = self._ends_unix_s(thing)
            if ends_unix_s is not None and now_unix_s >= ends_unix_s and thing.stopped_unix_s is None:
                self.end_run(thing, ends_unix_s)

    def _boot(self, thing: Thing, now_unix_s: float) -> None:
        ready_unix_s = thing.created_unix_s + self.timing.boot_s
        if thing.running_unix_s is not None or thing.stopped_unix_s is not None or now_unix_s < ready_unix_s:
            return
        if self.machines.address(str(thing.id)):
            at_once = thing.body.pop("_at_once", False)
            thing.running_unix_s = ready_unix_s if at_once else now_unix_s

    def _ends_unix_s(self, thing: Thing) -> float | None:
        scheduling = thing.body.get("scheduling", {})
        if "maxRunDuration" in scheduling and thing.running_unix_s is not None:
            return thing.running_unix_s + float(scheduling["maxRunDuration"].get("seconds", 0))
        return None

    def end_run(self, thing: Thing, at_unix_s: float) -> None:
        """A limited run time is over, or a spot server is taken away: what its scheduling says happens."""
        if thing.body["scheduling"].get("instanceTerminationAction", "STOP") == "DELETE":
            self._delete_instance(thing, at_unix_s, at_unix_s)
        else:
            self.power_off(thing, at_unix_s)

    def power_off(self, thing: Thing, at_unix_s: float) -> None:
        thing.stopped_unix_s, thing.running_unix_s = at_unix_s, None
        self.machines.stop(str(thing.id))

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

    # -- instances --

    def insert(self, zone: str, body: Json, request_id: str) -> Operation:
        """Accepted, like all that is well-formed; whether there is one left shows in the operation."""
        for operation in self.operations:
            if request_id and operation.request_id == request_id:
                return operation
        kind = offers.MACHINE_TYPES[body["machineType"].rpartition("/")[2]]
        name = body["name"]
        for taken, what in ((INSTANCE, name), (DISK, self.boot_disk_name(body))):
            if any(thing.scope == zone and thing.name == what for thing in self.existing(taken)):
                raise RefusedRequest(
                    409, "alreadyExists", f"The resource '{self.path(taken, zone, what)}' already exists"
                )
        errors = self._refusals(zone, kind)
        thing = Thing(INSTANCE, self.next_id(), name, zone, body, self.now())
        took_s = self.timing.refuse_s if errors else self.timing.boot_s
        operation = self.begin("insert", zone, thing, took_s, request_id, errors)
        if not errors:
            self._make_disks(thing)
            self.things.append(thing)
            user_data = {item["key"]: item["value"] for item in body.get("metadata", {}).get("items", ())}
            self.machines.start(
                Guest(
                    cloud_id=str(thing.id),
                    name=name,
                    user_data=user_data.get("user-data", ""),
                    vcpus=kind.vcpus,
                    memory_bytes=kind.memory_mib * 2**20,
                )
            )
            body["_at_once"] = bool(self.machines.address(str(thing.id)))
        return operation

    def fail_insert(self, zone: str, body: Json, request_id: str, code: str) -> Operation:
        """An accepted insert of which nothing comes, for a reason of the test's choice."""
        thing = Thing(INSTANCE, self.next_id(), body.get("name", ""), zone, body, self.now())
        message = {"QUOTA_EXCEEDED": f"Quota 'CPUS' exceeded. Limit: 24.0 in region {offers.region_of(zone)}."}
        errors = [(code, message.get(code, f"The zone '{zone}' cannot fulfil the request: {code}."))]
        return self.begin("insert", zone, thing, self.timing.refuse_s, request_id, errors)

    def _refusals(self, zone: str, kind: offers.MachineType) -> list[tuple[str, str]]:
        for key in (f"{zone}/{kind.name}", zone):
            if key in self.stock:
                if self.stock[key] <= 0:
                    where = self.path("zones", "global", zone).replace("global/", "")
                    return [
                        (
                            "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
                            f"The zone '{where}' does not have enough resources available to fulfill the request. "
                            f"'(resource type:compute)'.",
                        )
                    ]
                self.stock[key] -= 1
        region = offers.region_of(zone)
        running = [offers.MACHINE_TYPES[self.machine_type(t)] for t in self.existing(INSTANCE)]
        here = [
            offers.MACHINE_TYPES[self.machine_type(thing)].vcpus
            for thing in self.existing(INSTANCE)
            if offers.region_of(thing.scope) == region
        ]
        if sum(here) + kind.vcpus > self.quotas[region]:
            return [("QUOTA_EXCEEDED", f"Quota 'CPUS' exceeded. Limit: {self.quotas[region]}.0 in region {region}.")]
        if kind.gpus and sum(k.gpus for k in running) + kind.gpus > self.gpus_all_regions:
            limit = self.gpus_all_regions
            return [("QUOTA_EXCEEDED", f"Quota 'GPUS_ALL_REGIONS' exceeded. Limit: {limit}.0 globally.")]
        return []

    def _make_disks(self, instance: Thing) -> None:
        for number, attached in enumerate(instance.body["disks"]):
            params = attached.pop("initializeParams", None)
            if params is None:
                continue
            size_gb = int(params.get("diskSizeGb", 0)) or _image(params["sourceImage"]).size_gb
            disk_name = params.get("diskName", instance.name if attached.get("boot") else f"{instance.name}-{number}")
            body: Json = {
                "sourceImage": params["sourceImage"],
                "sizeGb": str(size_gb),
                "labels": params.get("labels", {}),
                "type": params.get("diskType", ""),
            }
            self.things.append(Thing(DISK, self.next_id(), disk_name, instance.scope, body, self.now()))
            attached["source"] = self.url(DISK, instance.scope, disk_name)
            attached["diskSizeGb"] = str(size_gb)

    @staticmethod
    def boot_disk_name(body: Json) -> str:
        for attached in body.get("disks", ()):
            if attached.get("boot"):
                return str(attached.get("initializeParams", {}).get("diskName", body["name"]))
        return ""

    def delete_instance(self, thing: Thing) -> Operation:
        if thing.body.get("deletionProtection"):
            raise RefusedRequest(
                400,
                "invalidResourceUsage",
                "Invalid resource usage: 'Resource cannot be deleted if it's protected against deletion. "
                f"resource: {self.path(INSTANCE, thing.scope, thing.name)}'.",
            )
        if thing.name in self.stuck:
            return self.begin("delete", thing.scope, thing, NEVER)
        return self._delete_instance(thing, self.now(), self.now() + self.timing.delete_s)

    def _delete_instance(self, thing: Thing, begun_unix_s: float, gone_unix_s: float) -> Operation:
        if thing.deleting_unix_s is None:
            thing.deleting_unix_s, thing.gone_unix_s = begun_unix_s, gone_unix_s
            self.machines.stop(str(thing.id))
            for attached in thing.body["disks"]:
                if attached.get("autoDelete"):
                    for disk in self.existing(DISK):
                        if self.url(DISK, disk.scope, disk.name) == attached.get("source"):
                            disk.gone_unix_s = gone_unix_s
        return self.begin("delete", thing.scope, thing, thing.gone_unix_s - self.now())

    def delete_side(self, thing: Thing) -> Operation:
        users = self.users(thing)
        if users:
            raise RefusedRequest(
                400,
                "resourceInUseByAnotherResource",
                f"The {thing.kind[:-1]} resource '{self.path(thing.kind, thing.scope, thing.name)}' is already being "
                f"used by '{users[0].removeprefix(f'{BASE}/')}'",
            )
        if thing.name in self.stuck:
            return self.begin("delete", thing.scope, thing, NEVER)
        thing.gone_unix_s = self.now() + self.timing.delete_s
        return self.begin("delete", thing.scope, thing, self.timing.delete_s)

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

    def machine_type(self, thing: Thing) -> str:
        return str(thing.body["machineType"]).rpartition("/")[2]

    def usd_per_hour(self, thing: Thing) -> Decimal:
        """What it bills now: a stopped instance nothing, its disk all the same."""
        if thing.kind == INSTANCE:
            if thing.stopped_unix_s is not None:
                return Decimal(0)
            spot = thing.body.get("scheduling", {}).get("provisioningModel") == "SPOT"
            return offers.usd_per_hour(offers.MACHINE_TYPES[self.machine_type(thing)], thing.scope, spot=spot)
        per_gib = {DISK: offers.DISK_USD_PER_GIB_HOUR, SNAPSHOT: offers.SNAPSHOT_USD_PER_GIB_HOUR}.get(thing.kind)
        if per_gib is not None:
            return per_gib * int(thing.body.get("sizeGb", 10))
        return offers.ADDRESS_USD_PER_HOUR if thing.kind == ADDRESS else Decimal(0)


def _image(url: str) -> offers.Image:
    """The image of a family's URL. Raises what the API says to one that there is not."""
    found = re.fullmatch(r"(?:https://[^/]+/compute/v1/)?projects/([^/]+)/global/images/family/([^/]+)", url)
    image = offers.IMAGES.get((found[1], found[2])) if found else None
    if image is None:
        path = f"projects/{found[1]}/global/images/family/{found[2]}" if found else url
        raise RefusedRequest(404, "notFound", f"The resource '{path}' was not found")
    return image


image_of = _image


def rfc3339(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds")
