"""The emulated project's instances and disks: how they are made, run, end and go.

Everything goes by the clock that it is given; nothing happens but when it is looked at.
"""

from __future__ import annotations

import re
from typing import Any

from tests.emulators import gcp_offers as offers
from tests.emulators.base import Guest
from tests.emulators.gcp_discovery import RefusedRequest
from tests.emulators.gcp_state import BASE, DISK, INSTANCE, NEVER, Operation, State, Thing

Json = dict[str, Any]


class Project(State):
    """One project with what time does to it."""

    def pass_time(self) -> None:
        """Let happen what is due: boots, ends of operations, ends of limited run times."""
        now_unix_s = self.now()
        self._forget(now_unix_s)
        for thing in list(self.things):
            if thing.kind != INSTANCE or not thing.exists(now_unix_s) or thing.deleting_unix_s is not None:
                continue
            self._boot(thing, now_unix_s)
            ends_unix_s = self._ends_unix_s(thing)
            if ends_unix_s is not None and now_unix_s >= ends_unix_s and thing.stopped_unix_s is None:
                self.end_run(thing, ends_unix_s)

    def _forget(self, now_unix_s: float) -> None:
        """What nobody can be shown any more: things when listings have caught up, operations after a day (Google keeps
        them for two weeks)."""
        self.things[:] = [t for t in self.things if now_unix_s < t.gone_unix_s + self.timing.list_lag_s + 3600]
        self.operations[:] = [o for o in self.operations if now_unix_s < o.begun_unix_s + 86_400]

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
        thing = Thing(INSTANCE, self.next_id(), name, zone, body, self.now())
        errors = self._refusals(zone, kind, self.n_gpus(thing))
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

    def _refusals(self, zone: str, kind: offers.MachineType, n_gpus: int) -> list[tuple[str, str]]:
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
        here = [
            offers.MACHINE_TYPES[self.machine_type(thing)].vcpus
            for thing in self.existing(INSTANCE)
            if offers.region_of(thing.scope) == region
        ]
        if sum(here) + kind.vcpus > self.quotas[region]:
            return [("QUOTA_EXCEEDED", f"Quota 'CPUS' exceeded. Limit: {self.quotas[region]}.0 in region {region}.")]
        if n_gpus and sum(map(self.n_gpus, self.existing(INSTANCE))) + n_gpus > self.gpus_all_regions:
            limit = self.gpus_all_regions
            return [("QUOTA_EXCEEDED", f"Quota 'GPUS_ALL_REGIONS' exceeded. Limit: {limit}.0 globally.")]
        return []

    def _make_disks(self, instance: Thing) -> None:
        for number, attached in enumerate(instance.body["disks"]):
            params = attached.pop("initializeParams", None)
            if params is None:
                continue
            size_gb = int(params.get("diskSizeGb", 0)) or image_of(params["sourceImage"]).size_gb
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


def image_of(url: str) -> offers.Image:
    """The image of a family's URL. Raises what the API says to one that there is not."""
    found = re.fullmatch(r"(?:https://[^/]+/compute/v1/)?projects/([^/]+)/global/images/family/([^/]+)", url)
    image = offers.IMAGES.get((found[1], found[2])) if found else None
    if image is None:
        path = f"projects/{found[1]}/global/images/family/{found[2]}" if found else url
        raise RefusedRequest(404, "notFound", f"The resource '{path}' was not found")
    return image
