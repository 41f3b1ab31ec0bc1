"""The methods of Google's APIs by their names in the discovery documents: `instances.insert` is `instances_insert`."""

from __future__ import annotations

from typing import Any

from tests.emulators import gcp_offers as offers
from tests.emulators import gcp_rules as rules
from tests.emulators.gcp_answers import Answers, label_filter, target_filter
from tests.emulators.gcp_discovery import Call, RefusedRequest
from tests.emulators.gcp_project import Project
from tests.emulators.gcp_state import ADDRESS, DISK, FIREWALL, INSTANCE, SNAPSHOT, Thing

Json = dict[str, Any]
_AGGREGATED = {"instances": INSTANCE, "disks": DISK, "addresses": ADDRESS}


class Methods:
    """What each call does and is answered with. Raises RefusedRequest."""

    project: Project
    answers: Answers
    unreachable: set[str]
    unreachable_as: str
    granted: set[str] | None
    page_size: int

    def call(self, call: Call) -> Json:
        resource, _, method = call.operation.rpartition(".")
        special = getattr(self, call.operation.replace(".", "_"), None)
        if special is not None:
            return dict(special(call))
        if method == "aggregatedList" and resource in _AGGREGATED:
            return self._aggregated(resource, call)
        if method == "get" and resource in (*_AGGREGATED, SNAPSHOT, FIREWALL, "globalAddresses"):
            return self.answers.thing(self._find(resource, call))
        if method == "delete" and resource in (DISK, ADDRESS, SNAPSHOT, "globalAddresses"):
            return self.answers.operation(self.project.delete_side(self._find(resource, call)))
        raise RefusedRequest(501, "notImplemented", f"The emulator does not know {call.operation}.")

    def _find(self, resource: str, call: Call) -> Thing:
        kind = {"globalAddresses": ADDRESS}.get(resource, resource)
        scope = call.path.get("zone") or call.path.get("region") or "global"
        singular = {ADDRESS: "address"}.get(kind, kind.removesuffix("s"))
        return self.project.find(kind, scope, call.path[singular])

    def instances_insert(self, call: Call) -> Json:
        zone = call.path["zone"]
        if zone not in offers.ZONES:
            raise RefusedRequest(
                404, "notFound", f"The resource 'projects/{self.project.name}/zones/{zone}' was not found"
            )
        request_id = call.query.get("requestId", "")
        rules.check_request_id(request_id)
        rules.check_instance(self.project.name, zone, call.body)
        return self.answers.operation(self.project.insert(zone, call.body, request_id))

    def instances_delete(self, call: Call) -> Json:
        return self.answers.operation(self.project.delete_instance(self._find(INSTANCE, call)))

    def _aggregated(self, resource: str, call: Call) -> Json:
        wanted = label_filter(call.query.get("filter", ""))
        scopes = {DISK: offers.ZONES, INSTANCE: offers.ZONES, ADDRESS: (*offers.REGIONS, "global")}[resource]
        cut_off = {
            z for s in self.unreachable for z in scopes if s in (z, offers.region_of(z)) or offers.region_of(s) == z
        }
        found = [t for t in self.project.listed(_AGGREGATED[resource]) if wanted(t.labels) and t.scope not in cut_off]
        first = int(call.query.get("pageToken") or 0)
        size = min(int(call.query.get("maxResults") or 500), self.page_size)
        return self.answers.aggregated(
            resource, scopes, found[first : first + size], first + size if first + size < len(found) else 0, cut_off,
            self.unreachable_as,
        )  # fmt: skip

    def snapshots_list(self, call: Call) -> Json:
        wanted = label_filter(call.query.get("filter", ""))
        return self.answers.listing(
            "compute#snapshotList",
            [self.answers.thing(t) for t in self.project.listed(SNAPSHOT) if wanted(t.labels)],
            call,
            self.page_size,
        )

    def zoneOperations_get(self, call: Call) -> Json:
        for operation in self.project.operations:
            if (operation.zone, operation.name) == (call.path["zone"], call.path["operation"]):
                return self.answers.operation(operation)
        path = f"projects/{self.project.name}/zones/{call.path['zone']}/operations/{call.path['operation']}"
        raise RefusedRequest(404, "notFound", f"The resource '{path}' was not found")

    def zoneOperations_list(self, call: Call) -> Json:
        wanted = target_filter(call.query.get("filter", ""))
        here = [o for o in self.project.operations if o.zone == call.path["zone"]]
        shown = [self.answers.operation(operation) for operation in here]
        return self.answers.listing(
            "compute#operationList", [o for o in shown if wanted(o["targetLink"])], call, self.page_size
        )

    def firewalls_insert(self, call: Call) -> Json:
        rules.check_firewall(self.project.name, call.body)
        name = call.body["name"]
        if any(thing.name == name for thing in self.project.existing(FIREWALL)):
            path = self.project.path(FIREWALL, "global", name)
            raise RefusedRequest(409, "alreadyExists", f"The resource '{path}' already exists")
        rule = self.project.add(FIREWALL, name, "global", call.body)
        return self.answers.operation(self.project.begin("insert", "global", rule, 5.0))

    def networks_get(self, call: Call) -> Json:
        name = call.path["network"]
        if name != "default":
            path = f"projects/{self.project.name}/global/networks/{name}"
            raise RefusedRequest(404, "notFound", f"The resource '{path}' was not found")
        return {"kind": "compute#network", "id": "1", "name": name, "autoCreateSubnetworks": True}

    def projects_get(self, call: Call) -> Json:
        in_use = sum(map(self.project.n_gpus, self.project.existing(INSTANCE)))
        quota = {"metric": "GPUS_ALL_REGIONS", "limit": self.project.gpus_all_regions, "usage": in_use}
        return {"kind": "compute#project", "id": "5", "name": self.project.name, "quotas": [quota]}

    def regions_list(self, call: Call) -> Json:
        return self.answers.regions(call, self.page_size)

    def images_getFromFamily(self, call: Call) -> Json:
        image = offers.IMAGES.get((call.path["project"], call.path["family"]))
        if image is None:
            path = f"projects/{call.path['project']}/global/images/family/{call.path['family']}"
            raise RefusedRequest(404, "notFound", f"The resource '{path}' was not found")
        return {
            "kind": "compute#image",
            "id": "9",
            "name": f"{image.family}-v20261101",
            "architecture": image.arch,
            "diskSizeGb": str(image.size_gb),
        }

    def machineTypes_aggregatedList(self, call: Call) -> Json:
        return self.answers.machine_types(call, self.page_size)

    def acceleratorTypes_aggregatedList(self, call: Call) -> Json:
        return self.answers.accelerator_types()

    def services_skus_list(self, call: Call) -> Json:
        found, first = offers.skus(), int(call.query.get("pageToken") or 0)
        size = min(int(call.query.get("pageSize") or 5000), self.page_size)
        if call.path["parent"] != "services/6F81-5844-456A":
            raise RefusedRequest(404, "notFound", "Requested entity was not found.")
        return {
            "skus": found[first : first + size],
            "nextPageToken": str(first + size) if first + size < len(found) else "",
        }

    def projects_testIamPermissions(self, call: Call) -> Json:
        asked = call.body.get("permissions", [])
        return {"permissions": [p for p in asked if self.granted is None or p in self.granted]}
