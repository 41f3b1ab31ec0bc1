"""Compute Engine's resources as ours.

A server's `cloud_id` is its numeric id. Those of other kinds have the kind before it, because numeric ids alone do not
tell which of Google's collections a thing is to be deleted from.
"""

from __future__ import annotations

from datetime import datetime

from google.cloud import compute_v1

from tasks.clouds.base import Resource
from tasks.clouds.gcp.attached_gpus import Attached
from tasks.clouds.guest import USERNAME

VENDOR = "gcp"
GLOBAL = "global"
SERVER, DISK, REGION_DISK, IP, GLOBAL_IP, SNAPSHOT = "server", "disk", "regiondisk", "ip", "globalip", "snapshot"

PENDING, RUNNING, STOPPING, STOPPED, TERMINATED = "pending", "running", "stopping", "stopped", "terminated"

_INSTANCE_STATES = {
    "PENDING": PENDING,
    "PROVISIONING": PENDING,
    "STAGING": PENDING,
    "RUNNING": RUNNING,
    "STOPPING": STOPPING,
    "PENDING_STOP": STOPPING,
    "DEPROVISIONING": STOPPING,
    "SUSPENDING": STOPPING,
    "SUSPENDED": STOPPED,
    "STOPPED": STOPPED,
    "REPAIRING": STOPPED,
    "TERMINATED": STOPPED,  # Google's word for stopped: the instance exists, and its disk bills
}
_DISK_STATES = {"CREATING": PENDING, "RESTORING": PENDING, "DELETING": STOPPING, "FAILED": STOPPED}


def side_id(kind: str, number: int) -> str:
    return f"{kind}/{number}"


def side_kind(cloud_id: str) -> str:
    """Which collection an id belongs to: `SERVER` for a bare number or none."""
    kind, slash, _ = cloud_id.partition("/")
    return kind if slash else SERVER


def last_segment(url: str) -> str:
    return url.rpartition("/")[2]


def unix_s(timestamp: str) -> float:
    """Seconds of an RFC 3339 timestamp, 0 where there is none."""
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0


def server(found: compute_v1.Instance) -> Resource:
    addresses = [config.nat_i_p for nic in found.network_interfaces for config in nic.access_configs if config.nat_i_p]
    return Resource(
        vendor=VENDOR,
        place=last_segment(found.zone),
        name=found.name,
        cloud_id=str(found.id),
        kind=SERVER,
        state=_INSTANCE_STATES.get(found.status, PENDING),
        tags=dict(found.labels),
        created_unix_s=unix_s(found.creation_timestamp),
        address=addresses[0] if addresses else "",
        username=USERNAME,
        server_type=_server_type(found),
    )


def _server_type(found: compute_v1.Instance) -> str:
    """GPUs of a machine type of their own are listed as attached too; only those of N1 are sold apart."""
    name = last_segment(found.machine_type)
    for gpu in found.guest_accelerators if name.startswith("n1-") else ():
        return Attached(name, gpu.accelerator_count, last_segment(gpu.accelerator_type)).name
    return name


def disk(found: compute_v1.Disk) -> Resource:
    """A zonal or a regional disk."""
    kind = DISK if found.zone else REGION_DISK
    return Resource(
        vendor=VENDOR,
        place=last_segment(found.zone or found.region),
        name=found.name,
        cloud_id=side_id(kind, found.id),
        kind=DISK,
        state=_DISK_STATES.get(found.status, RUNNING),
        tags=dict(found.labels),
        created_unix_s=unix_s(found.creation_timestamp),
    )


def address(found: compute_v1.Address) -> Resource:
    """A reserved address, of a region or global. Ephemeral ones are no resources and go with their server."""
    kind = IP if found.region else GLOBAL_IP
    return Resource(
        vendor=VENDOR,
        place=last_segment(found.region) or GLOBAL,
        name=found.name,
        cloud_id=side_id(kind, found.id),
        kind=IP,
        state=RUNNING,
        tags=dict(found.labels),
        created_unix_s=unix_s(found.creation_timestamp),
        address=found.address,
    )


def snapshot(found: compute_v1.Snapshot) -> Resource:
    return Resource(
        vendor=VENDOR,
        place=last_segment(found.region) or GLOBAL,
        name=found.name,
        cloud_id=side_id(SNAPSHOT, found.id),
        kind=SNAPSHOT,
        state=STOPPING if found.status == "DELETING" else RUNNING,
        tags=dict(found.labels),
        created_unix_s=unix_s(found.creation_timestamp),
    )
