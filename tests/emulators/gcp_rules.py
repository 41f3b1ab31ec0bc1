"""What Compute Engine refuses of a well-formed instance, and which permission each call takes.

Each rule is one that the vendor documents or that its refusals are known for.
"""

from __future__ import annotations

import ipaddress
import re
import uuid
from typing import Any

from tests.emulators import gcp_offers as offers
from tests.emulators.gcp_discovery import RefusedRequest
from tests.emulators.gcp_project import image_of

Json = dict[str, Any]

PERMISSIONS: dict[str, tuple[str, ...]] = {
    # docs.cloud.google.com/compute/docs/reference/rest/v1/instances/insert#iam-permissions, and so on
    "instances.insert": (
        "compute.instances.create",
        "compute.instances.setLabels",
        "compute.instances.setMetadata",
        "compute.instances.setTags",
        "compute.disks.create",
        "compute.disks.setLabels",
        "compute.subnetworks.use",
        "compute.subnetworks.useExternalIp",
    ),
    "instances.get": ("compute.instances.get",),
    "instances.aggregatedList": ("compute.instances.list",),
    "instances.delete": ("compute.instances.delete",),
    "disks.get": ("compute.disks.get",),
    "disks.aggregatedList": ("compute.disks.list",),
    "disks.delete": ("compute.disks.delete",),
    "addresses.get": ("compute.addresses.get",),
    "addresses.aggregatedList": ("compute.addresses.list",),
    "addresses.delete": ("compute.addresses.delete",),
    "globalAddresses.get": ("compute.globalAddresses.get",),
    "globalAddresses.delete": ("compute.globalAddresses.delete",),
    "snapshots.get": ("compute.snapshots.get",),
    "snapshots.list": ("compute.snapshots.list",),
    "snapshots.delete": ("compute.snapshots.delete",),
    "zoneOperations.get": ("compute.zoneOperations.get",),
    "zoneOperations.list": ("compute.zoneOperations.list",),
    "firewalls.get": ("compute.firewalls.get",),
    "firewalls.insert": ("compute.firewalls.create", "compute.networks.updatePolicy"),
    "networks.get": ("compute.networks.get",),
    "machineTypes.aggregatedList": ("compute.machineTypes.list",),
    "acceleratorTypes.aggregatedList": ("compute.acceleratorTypes.list",),
    "regions.list": ("compute.regions.list",),
    "projects.get": ("compute.projects.get",),
}

_LABEL_KEY = r"[a-z][a-z0-9_-]{0,62}"
_LABEL_VALUE = r"[a-z0-9_-]{0,63}"
_TAG = r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
_MAX_METADATA_BYTES = 262_144


def check_instance(project: str, zone: str, body: Json) -> None:
    """Raises RefusedRequest for what the vendor would not make."""
    kind = _machine_type(zone, body.get("machineType", ""))
    check_labels(body.get("labels", {}), "labels")
    for item in body.get("metadata", {}).get("items", ()):
        if len(item.get("value", "").encode()) > _MAX_METADATA_BYTES:
            raise _invalid("metadata.items", item["key"], "at most 262144 bytes")
    for tag in body.get("tags", {}).get("items", ()):
        if not re.fullmatch(_TAG, tag):
            raise _invalid("tags.items", tag, f"a match of regex '{_TAG}'")
    _check_disks(project, zone, body, kind)
    _check_interfaces(project, body, kind)
    n_attached = _check_accelerators(project, zone, body, kind)
    _check_scheduling(body.get("scheduling", {}), kind, n_gpus=kind.gpus + n_attached)


def check_request_id(request_id: str) -> None:
    try:
        given = uuid.UUID(request_id) if request_id else uuid.uuid4()
    except ValueError:
        given = uuid.UUID(int=0)
    if given.int == 0:
        raise _invalid("requestId", request_id, "a UUID other than zero")


def check_firewall(project: str, body: Json) -> None:
    if bool(body.get("allowed")) == bool(body.get("denied")):
        raise RefusedRequest(400, "invalid", "Exactly one of 'allowed' and 'denied' must be given.")
    _check_network(project, body.get("network", "global/networks/default"))
    networks = [ipaddress.ip_network(network) for network in body.get("sourceRanges", ())]
    if len({network.version for network in networks}) > 1:
        raise RefusedRequest(400, "invalid", "IPv4 and IPv6 source ranges cannot be in one rule.")


def check_labels(labels: Json, at: str) -> None:
    if len(labels) > 64:
        raise _invalid(at, str(len(labels)), "at most 64 labels")
    for key, value in labels.items():
        if not re.fullmatch(_LABEL_KEY, key):
            raise _invalid(f"{at}.key", key, f"a match of regex '{_LABEL_KEY}'")
        if not re.fullmatch(_LABEL_VALUE, value):
            raise _invalid(f"{at}.value", value, f"a match of regex '{_LABEL_VALUE}'")


def _machine_type(zone: str, url: str) -> offers.MachineType:
    found = re.fullmatch(r"(?:.*/)?zones/([^/]+)/machineTypes/([^/]+)", url)
    kind = offers.MACHINE_TYPES.get(found[2]) if found and found[1] == zone else None
    if kind is None or zone not in kind.zones:
        # An invalid value, and no resource that is not found: so met by github.com/gruntwork-io/terratest/issues/1132.
        missing = f"Machine type with name '{found[2] if found else url}' does not exist in zone '{zone}'."
        raise RefusedRequest(400, "invalid", f"Invalid value for field 'resource.machineType': '{url}'. {missing}")
    return kind


def _check_disks(project: str, zone: str, body: Json, kind: offers.MachineType) -> None:
    boot = [disk for disk in body.get("disks", ()) if disk.get("boot")]
    if len(boot) != 1 or "initializeParams" not in boot[0]:
        raise RefusedRequest(400, "required", "Exactly one boot disk with initializeParams must be given.")
    params = boot[0]["initializeParams"]
    check_labels(params.get("labels", {}), "disks[0].initializeParams.labels")
    image = image_of(params.get("sourceImage", ""))
    if image.arch != kind.arch:
        raise _invalid("disks[0].initializeParams.sourceImage", image.family, f"an image for {kind.arch}")
    if 0 < int(params.get("diskSizeGb", 0)) < image.size_gb:
        raise _invalid("disks[0].diskSizeGb", params["diskSizeGb"], f"not smaller than the image ({image.size_gb} GB)")
    disk_type = params.get("diskType", f"zones/{zone}/diskTypes/pd-standard")
    name = disk_type.rpartition("/")[2]
    if disk_type != f"zones/{zone}/diskTypes/{name}":
        raise RefusedRequest(404, "notFound", f"The resource 'projects/{project}/{disk_type}' was not found")
    if kind.family not in offers.ANY_DISK and name.startswith("pd-") == (kind.family in offers.HYPERDISK_ONLY):
        raise RefusedRequest(
            400, "badRequest", f"[{name}] features are not compatible for creating instance of type {kind.name}."
        )


def _check_interfaces(project: str, body: Json, kind: offers.MachineType) -> None:
    interfaces = body.get("networkInterfaces", [])
    if not interfaces:
        raise RefusedRequest(400, "required", "At least one network interface is required.")
    for interface in interfaces:
        # docs.cloud.google.com/compute/docs/instances/create-bare-metal-instance, REST: "nicType": "IDPF".
        if (interface.get("nicType") == "IDPF") != kind.name.endswith("-metal"):
            raise _invalid("networkInterfaces.nicType", str(interface.get("nicType")), "IDPF for bare metal alone")
        _check_network(project, interface.get("network", "global/networks/default"))
        for config in interface.get("accessConfigs", ()):
            if config.get("type", "ONE_TO_ONE_NAT") != "ONE_TO_ONE_NAT":
                raise _invalid("accessConfigs.type", config["type"], "ONE_TO_ONE_NAT")


def _check_network(project: str, url: str) -> None:
    name = url.rpartition("/")[2]
    if name != "default":
        raise RefusedRequest(404, "notFound", f"The resource 'projects/{project}/global/networks/{name}' was not found")


def _check_accelerators(project: str, zone: str, body: Json, kind: offers.MachineType) -> int:
    """How many GPUs are attached beside those of the machine type."""
    count = 0
    for config in body.get("guestAccelerators", ()):
        name = config.get("acceleratorType", "").rpartition("/")[2]
        path = f"zones/{zone}/acceleratorTypes/{name}"
        if zone not in offers.ACCELERATOR_TYPES.get(name, ("", ()))[1] or not config["acceleratorType"].endswith(path):
            raise RefusedRequest(404, "notFound", f"The resource 'projects/{project}/{path}' was not found")
        if kind.family != "n1" or config.get("acceleratorCount", 0) not in offers.ATTACHABLE.get(name, ()):
            text = f"[{config.get('acceleratorCount')} x {name}] cannot be attached to {kind.name}."
            raise RefusedRequest(400, "badRequest", text)
        count += config["acceleratorCount"]
    return count


def _check_scheduling(scheduling: Json, kind: offers.MachineType, *, n_gpus: int) -> None:
    spot = scheduling.get("provisioningModel") == "SPOT"
    limited = "maxRunDuration" in scheduling
    if limited and not 30 <= int(scheduling["maxRunDuration"].get("seconds", 0)) <= 120 * 86_400:
        raise _invalid("scheduling.maxRunDuration", str(scheduling["maxRunDuration"]), "from 30 seconds to 120 days")
    if limited and "terminationTime" in scheduling:
        raise RefusedRequest(400, "invalid", "Only one of maxRunDuration and terminationTime may be given.")
    if "instanceTerminationAction" in scheduling and not (spot or limited):
        raise RefusedRequest(400, "invalid", "instanceTerminationAction takes a Spot VM or a limited run time.")
    if spot and scheduling.get("automaticRestart", True):
        raise RefusedRequest(400, "invalid", "Scheduling must have automaticRestart = false when preemptible.")
    migrates = scheduling.get("onHostMaintenance", "TERMINATE" if spot else "MIGRATE") == "MIGRATE"
    if migrates and spot:
        raise RefusedRequest(400, "invalid", "Scheduling must have onHostMaintenance = TERMINATE when preemptible.")
    if migrates and (n_gpus or "metal" in kind.name):
        raise RefusedRequest(400, "invalid", f"Instances of type {kind.name} do not support live migration.")
    if not migrates and not spot and kind.family == "e2":  # github.com/chainguard-dev/terraform-infra-common/pull/935
        text = "e2 instances do not support onHostMaintenance=TERMINATE unless they are preemptible."
        raise RefusedRequest(400, "badRequest", text)


def _invalid(at: str, value: str, wanted: str) -> RefusedRequest:
    return RefusedRequest(400, "invalid", f"Invalid value for field 'resource.{at}': '{value}'. Must be {wanted}.")
