"""How the emulated project shows what it has: the JSON of Compute Engine's resources, operations and lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tests.emulators import gcp_offers as offers
from tests.emulators.gcp_discovery import Call, RefusedRequest
from tests.emulators.gcp_state import ADDRESS, BASE, DISK, INSTANCE, Operation, State, Thing, rfc3339

Json = dict[str, Any]


def label_filter(text: str) -> Callable[[Mapping[str, str]], bool]:
    """`labels.KEY = "VALUE"`, or nothing. Anything else is refused: the vendor would not have understood it."""
    if not text:
        return lambda labels: True
    found = re.fullmatch(r'labels\.([a-z0-9_-]+) ?= ?"?([a-z0-9_-]+)"?', text)
    if found is None:
        raise RefusedRequest(
            400, "invalid", f"Invalid value for field 'filter': '{text}'. Invalid list filter expression."
        )
    key, value = found.groups()
    return lambda labels: labels.get(key) == value


def target_filter(text: str) -> Callable[[str], bool]:
    """`targetLink eq "REGEX"`, which must fit the whole link, or nothing."""
    if not text:
        return lambda link: True
    found = re.fullmatch(r'targetLink eq "([^"]+)"', text)
    if found is None:
        raise RefusedRequest(
            400, "invalid", f"Invalid value for field 'filter': '{text}'. Invalid list filter expression."
        )
    pattern = re.compile(found[1])
    return lambda link: pattern.fullmatch(link) is not None


class Answers:
    def __init__(self, project: State) -> None:
        self.project = project

    def thing(self, thing: Thing) -> Json:
        project = self.project
        shown: Json = {
            "kind": f"compute#{thing.kind.removesuffix('es' if thing.kind == ADDRESS else 's')}",
            "id": str(thing.id),
            "name": thing.name,
            "selfLink": project.url(thing.kind, thing.scope, thing.name),
            "creationTimestamp": rfc3339(thing.created_unix_s),
            **{key: value for key, value in thing.body.items() if not key.startswith("_")},
        }
        if thing.scope in offers.ZONES:
            shown["zone"] = f"{BASE}/projects/{project.name}/zones/{thing.scope}"
        elif thing.scope in offers.REGIONS:
            shown["region"] = f"{BASE}/projects/{project.name}/regions/{thing.scope}"
        if thing.kind == INSTANCE:
            shown["status"] = project.status(thing)
            shown["networkInterfaces"] = self._interfaces(thing)
        elif thing.kind == DISK:
            shown["status"], shown["users"] = "READY", project.users(thing)
        return shown

    def _interfaces(self, thing: Thing) -> list[Json]:
        """With the ephemeral address once the server runs."""
        interfaces = thing.body.get("networkInterfaces", [])
        address = self.project.machines.address(str(thing.id)) if thing.running_unix_s is not None else ""
        if not address:
            return list(interfaces)
        return [
            {**interface, "accessConfigs": [{**c, "natIP": address} for c in interface.get("accessConfigs", ())]}
            for interface in interfaces
        ]

    def operation(self, operation: Operation) -> Json:
        project, target, now_unix_s = self.project, operation.target, self.project.now()
        done = now_unix_s >= operation.done_unix_s
        shown: Json = {
            "kind": "compute#operation",
            "id": str(operation.id),
            "name": operation.name,
            "operationType": operation.kind,
            "targetId": str(target.id),
            "targetLink": project.url(target.kind, target.scope, target.name),
            "status": "DONE" if done else "RUNNING",
            "progress": 100 if done else 0,
            "insertTime": rfc3339(operation.begun_unix_s),
            "startTime": rfc3339(operation.begun_unix_s),
        }
        if operation.request_id:
            shown["clientOperationId"] = operation.request_id
        if operation.zone in offers.ZONES:
            shown["zone"] = f"{BASE}/projects/{project.name}/zones/{operation.zone}"
        if done:
            shown["endTime"] = rfc3339(operation.done_unix_s)
        if done and operation.errors:
            shown["error"] = {"errors": [{"code": code, "message": text} for code, text in operation.errors]}
            shown["httpErrorStatusCode"], shown["httpErrorMessage"] = 503, "SERVICE UNAVAILABLE"
        return shown

    def aggregated(
        self,
        resource: str,
        scopes: Sequence[str],
        found: Sequence[Thing],
        next_page: int,
        unreachable: set[str],
        said_as: str,
    ) -> Json:
        """Every scope is there, those without a match with a warning; what cannot be reached is said in one place."""
        shown: Json = {"kind": f"compute#{resource.removesuffix('es' if resource == ADDRESS else 's')}AggregatedList"}
        shown["items"] = {
            _scope_name(scope): self._scope(
                resource, scope, [t for t in found if t.scope == scope], unreachable, said_as
            )
            for scope in scopes
        }
        if unreachable and said_as == "unreachables":
            shown["unreachables"] = [_scope_name(scope) for scope in sorted(unreachable)]
        if unreachable and said_as == "warning":
            shown["warning"] = {"code": "PARTIAL_SUCCESS", "message": "Some results may be missing due to errors."}
        if next_page:
            shown["nextPageToken"] = str(next_page)
        return shown

    def _scope(self, resource: str, scope: str, found: Iterable[Thing], unreachable: set[str], said_as: str) -> Json:
        shown = [self.thing(thing) for thing in found]
        if scope in unreachable:
            warning = {"code": "UNREACHABLE", "message": f"The scope {scope} cannot be reached."}
            return {"warning": warning} if said_as == "scope" else {}
        return {resource: shown} if shown else {"warning": _no_results(scope)}

    def listing(self, kind: str, items: Sequence[Json], call: Call, page_size: int) -> Json:
        first = int(call.query.get("pageToken") or 0)
        size = min(int(call.query.get("maxResults") or 500), page_size)
        shown: Json = {"kind": kind, "items": list(items[first : first + size])}
        if first + size < len(items):
            shown["nextPageToken"] = str(first + size)
        return shown

    def regions(self, call: Call, page_size: int) -> Json:
        used = dict.fromkeys(offers.REGIONS, 0)
        for thing in self.project.existing(INSTANCE):
            used[offers.region_of(thing.scope)] += offers.MACHINE_TYPES[self.project.machine_type(thing)].vcpus
        regions = [
            {
                "kind": "compute#region",
                "name": region,
                "status": "UP",
                "zones": [f"{BASE}/projects/x/zones/{z}" for z in offers.ZONES if offers.region_of(z) == region],
                "quotas": [{"metric": "CPUS", "limit": self.project.quotas[region], "usage": used[region]}],
            }
            for region in offers.REGIONS
        ]
        return self.listing("compute#regionList", regions, call, page_size)

    def machine_types(self, call: Call, page_size: int) -> Json:
        """One page after the other, over all zones."""
        sold = [(zone, kind) for zone in offers.ZONES for kind in offers.MACHINE_TYPES.values() if zone in kind.zones]
        first = int(call.query.get("pageToken") or 0)
        size = min(int(call.query.get("maxResults") or 500), page_size)
        items: Json = {_scope_name(zone): {"warning": _no_results(zone)} for zone in offers.ZONES}
        for zone, kind in sold[first : first + size]:
            scope = items[_scope_name(zone)]
            scope.pop("warning", None)
            scope.setdefault("machineTypes", []).append(self._machine_type(zone, kind))
        shown: Json = {"kind": "compute#machineTypeAggregatedList", "items": items}
        if first + size < len(sold):
            shown["nextPageToken"] = str(first + size)
        return shown

    def _machine_type(self, zone: str, kind: offers.MachineType) -> Json:
        shown: Json = {
            "kind": "compute#machineType",
            "name": kind.name,
            "guestCpus": kind.vcpus,
            "memoryMb": kind.memory_mib,
            "architecture": kind.arch,
            "zone": zone,
        }
        if kind.gpus:
            shown["accelerators"] = [{"guestAcceleratorType": kind.gpu, "guestAcceleratorCount": kind.gpus}]
        if kind.ssd_partitions:
            shown["bundledLocalSsds"] = {"defaultInterface": "NVME", "partitionCount": kind.ssd_partitions}
        return shown

    def accelerator_types(self) -> Json:
        items = {
            _scope_name(zone): {
                "acceleratorTypes": [
                    {"kind": "compute#acceleratorType", "name": name, "description": text}
                    for name, (text, zones) in offers.ACCELERATOR_TYPES.items()
                    if zone in zones
                ]
            }
            for zone in offers.ZONES
        }
        return {"kind": "compute#acceleratorTypeAggregatedList", "items": items}


def _scope_name(scope: str) -> str:
    if scope == "global":
        return scope
    return f"{'zones' if scope in offers.ZONES else 'regions'}/{scope}"


def _no_results(scope: str) -> Json:
    return {
        "code": "NO_RESULTS_ON_PAGE",
        "message": f"There are no results for scope '{_scope_name(scope)}' on this page.",
        "data": [{"key": "scope", "value": _scope_name(scope)}],
    }
