"""What the emulated subscription has, and how that changes with time."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from threading import RLock
from typing import Any

from tasks.clouds.azure.identity import Stamp
from tasks.clouds.base import OWNER, OWNER_TAG
from tests.emulators.azure_sales import usd_per_hour
from tests.emulators.base import Existing, Machines

SUBSCRIPTION = "11111111-2222-4333-8444-555555555555"
VM, DISK = "Microsoft.Compute/virtualMachines", "Microsoft.Compute/disks"
NSG, NET = "Microsoft.Network/networkSecurityGroups", "Microsoft.Network/virtualNetworks"
NIC, IP = "Microsoft.Network/networkInterfaces", "Microsoft.Network/publicIPAddresses"
SCHEDULE = "Microsoft.DevTestLab/schedules"
KINDS = {VM: "server", DISK: "disk", NSG: "firewall", NET: "network", NIC: "nic", IP: "ip", SCHEDULE: "schedule"}
SIDE_USD_PER_HOUR = {DISK: Decimal("0.0267"), IP: Decimal("0.005")}

NIC_RESERVED_S = 180.0
UNFORCED_S = 600.0  # a clean shutdown of a guest that does not answer
SCHEDULE_LEAD_S = 1800.0


class Refused(Exception):
    """Answered with an error. `at`: the HTTP status."""

    def __init__(self, at: int, code: str, message: str) -> None:
        super().__init__(code)
        self.at, self.code, self.message = at, code, message


@dataclass
class Group:
    name: str
    location: str
    tags: dict[str, str]
    created_unix_s: float
    ends_unix_s: float | None = None

    @property
    def state(self) -> str:
        return "Succeeded" if self.ends_unix_s is None else "Deleting"


@dataclass
class Thing:
    """One resource. power: of a machine. reserved_until_unix_s: of a network card whose machine failed."""

    type: str
    group: str
    name: str
    location: str
    created_unix_s: float
    tags: dict[str, str] = field(default_factory=dict)
    zones: list[str] = field(default_factory=list)
    sku: dict[str, Any] | None = None
    properties: dict[str, Any] = field(default_factory=dict)
    guid: str = field(default_factory=lambda: str(uuid.uuid4()))
    ready_unix_s: float = 0.0
    failure: tuple[str, str] | None = None
    power: str = "running"
    ends_unix_s: float | None = None
    reserved_until_unix_s: float = 0.0
    brings: list[str] = field(default_factory=list)
    """Keys of what it made and what goes with it."""

    @property
    def never_ran(self) -> bool:
        """Allocation failed; after other failures (OSProvisioningTimedOut) it runs, and bills."""
        return self.failure is not None and "Allocation" in self.failure[0]

    @property
    def key(self) -> str:
        return f"{self.group}/{self.type}/{self.name}".lower()

    @property
    def id(self) -> str:
        return f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{self.group}/providers/{self.type}/{self.name}"

    def state(self, now_unix_s: float) -> str:
        if self.ends_unix_s is not None:
            return "Deleting"
        if now_unix_s < self.ready_unix_s:
            return "Creating" if self.type == VM else "Updating"
        return "Failed" if self.failure else "Succeeded"


@dataclass
class Account:
    """lag_s: how far listings are behind. stuck: groups whose deletion is accepted and never ends. surviving: types
    that outlive their group's deletion, after which it is as before. locked: groups with a lock."""

    now: Callable[[], float]
    machines: Machines
    lag_s: float = 0.0
    network_s: float = 1.0
    boot_s: float = 6.0
    delete_s: float = 12.0
    stuck: set[str] = field(default_factory=set)
    locked: set[str] = field(default_factory=set)
    groups: dict[str, Group] = field(default_factory=dict)
    things: dict[str, Thing] = field(default_factory=dict)
    lock: RLock = field(default_factory=RLock)
    _dead: list[tuple[float, Group | Thing]] = field(default_factory=list)

    # -- time --

    def settle(self) -> None:
        """Everything that has become due."""
        now_unix_s = self.now()
        self._dead = [(at, found) for at, found in self._dead if now_unix_s < at + self.lag_s]
        for vm in [t for t in self.things.values() if t.type == VM and t.never_ran]:
            if now_unix_s >= vm.ready_unix_s and vm.power != "failed":
                vm.power = "failed"
                for card in self.brought(vm, NIC):
                    card.reserved_until_unix_s = vm.ready_unix_s + NIC_RESERVED_S
        for schedule in [t for t in self.things.values() if t.type == SCHEDULE]:
            self._shut_down(schedule, now_unix_s)
        for thing in [t for t in self.things.values() if t.ends_unix_s is not None and now_unix_s >= t.ends_unix_s]:
            self.remove(thing)
        for group in list(self.groups.values()):
            if group.ends_unix_s is not None and now_unix_s >= group.ends_unix_s:
                self._end(group)

    def _end(self, group: Group) -> None:
        if group.name.lower() in self.stuck:
            return
        at_unix_s = group.ends_unix_s or 0.0
        for thing in self.inside(group.name):
            if thing.reserved_until_unix_s <= at_unix_s or thing.type != NIC:
                self.remove(thing, cascade=False)
        group.ends_unix_s = None
        if not list(self.inside(group.name)):
            del self.groups[group.name.lower()]
            self._dead.append((self.now(), group))

    def _shut_down(self, schedule: Thing, now_unix_s: float) -> None:
        """Deallocates every day at HHmm, the first time no sooner than half an hour after it was set."""
        text = schedule.properties["dailyRecurrence"]["time"]
        earliest = datetime.fromtimestamp(schedule.created_unix_s + SCHEDULE_LEAD_S, UTC)
        at = earliest.replace(hour=int(text[:2]), minute=int(text[2:]), second=0, microsecond=0).timestamp()
        at += 86_400 if at < earliest.timestamp() else 0
        vm = self.things.get(f"{schedule.group}/{VM}/{schedule.name.removeprefix('shutdown-computevm-')}".lower())
        if vm is not None and now_unix_s >= at and vm.power in ("running", "stopped"):
            vm.power = "deallocated"
            self.machines.stop(vm.guid)

    def remove(self, thing: Thing, *, cascade: bool = True) -> None:
        if self.things.pop(thing.key, None) is None:
            return
        self._dead.append((self.now(), thing))
        if thing.type == VM:
            self.machines.stop(thing.guid)
            for key in thing.brings if cascade else ():
                if key in self.things:
                    self.remove(self.things[key])

    # -- sight --

    def inside(self, group: str) -> Iterator[Thing]:
        return iter([t for t in self.things.values() if t.group.lower() == group.lower()])

    def brought(self, vm: Thing, type_: str) -> list[Thing]:
        prefix = f"{vm.group}/{type_}/".lower()
        return [t for t in self.things.values() if t.key.startswith(prefix) and t.properties.get("vm") == vm.key]

    def group(self, name: str) -> Group:
        found = self.groups.get(name.lower())
        if found is None:
            raise Refused(404, "ResourceGroupNotFound", f"Resource group '{name}' could not be found.")
        return found

    def thing(self, group: str, type_: str, name: str) -> Thing:
        self.group(group)
        found = self.things.get(f"{group}/{type_}/{name}".lower())
        if found is None:
            raise Refused(
                404, "ResourceNotFound", f"The Resource '{type_}/{name}' under resource group '{group}' was not found."
            )
        return found

    def listed(self, type_: str) -> list[Any]:
        """Late to appear, late to go."""
        now_unix_s = self.now()
        alive: list[Any] = (
            list(self.groups.values()) if type_ == "group" else [t for t in self.things.values() if t.type == type_]
        )
        dead: list[Any] = [
            found
            for at, found in self._dead
            if now_unix_s < at + self.lag_s
            and (isinstance(found, Group) if type_ == "group" else isinstance(found, Thing) and found.type == type_)
        ]
        return [found for found in alive if now_unix_s >= found.created_unix_s + self.lag_s] + [
            found for found in dead if found.created_unix_s + self.lag_s <= now_unix_s
        ]

    def existing(self) -> list[Existing]:
        with self.lock:
            self.settle()
            groups = [
                Existing(
                    kind="group",
                    name=group.name,
                    cloud_id=f"group:{group.name}/{group.name}:{Stamp.of(group.tags).nonce}".lower(),
                    place=group.location,
                    ours=group.tags.get(OWNER_TAG) == OWNER,
                    usd_per_hour=Decimal(0),
                )
                for group in self.groups.values()
            ]
            # A schedule never bills and has no life beside its machine's group.
            return groups + [self._existing(thing) for thing in self.things.values() if thing.type != SCHEDULE]

    def _existing(self, thing: Thing) -> Existing:
        group = self.groups.get(thing.group.lower())
        ours = OWNER in (thing.tags.get(OWNER_TAG), group.tags.get(OWNER_TAG) if group else None)
        zone = f"-{thing.zones[0]}" if thing.zones else ""
        return Existing(
            kind=KINDS[thing.type],
            name=thing.name,
            cloud_id=f"{KINDS[thing.type]}:{thing.group}/{thing.name}:{thing.guid}".lower(),
            place=f"{thing.location}{zone}",
            ours=ours,
            usd_per_hour=self._meter(thing),
        )

    def _meter(self, thing: Thing) -> Decimal:
        if thing.type != VM:
            return SIDE_USD_PER_HOUR.get(thing.type, Decimal(0))
        if thing.never_ran or thing.power == "deallocated":
            return Decimal(0)
        size = thing.properties["hardwareProfile"]["vmSize"]
        return usd_per_hour(size, thing.properties.get("priority") == "Spot")

    # -- deletion --

    def delete_group(self, name: str, *, forced: bool) -> None:
        group = self.group(name)
        if name.lower() in self.locked:
            raise Refused(
                409,
                "ScopeLocked",
                f"The scope '/subscriptions/{SUBSCRIPTION}/resourceGroups/{name}' cannot perform delete operation "
                "because following scope(s) are locked. Please remove the lock and try again.",
            )
        if group.ends_unix_s is None:
            slow = any(t.type == VM for t in self.inside(name)) and not forced
            group.ends_unix_s = self.now() + self.delete_s + (UNFORCED_S if slow else 0.0)

    def delete(self, thing: Thing) -> None:
        if thing.group.lower() in self.locked:
            raise Refused(409, "ScopeLocked", f"The scope '{thing.id}' cannot perform delete operation: it is locked.")
        if thing.reserved_until_unix_s > self.now():
            raise Refused(
                400,
                "NicReservedForAnotherVm",
                f"Nic(s) in request is reserved for another Virtual Machine for 180 seconds: {thing.name}",
            )
        owner = thing.properties.get("vm")
        if owner in self.things:
            raise Refused(409, "NicInUse" if thing.type == NIC else "OperationNotAllowed", f"{thing.name} is attached.")
        if thing.ends_unix_s is None:
            thing.ends_unix_s = self.now() + self.delete_s
