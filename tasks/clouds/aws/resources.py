"""Every kind of thing that can be ours or bill: how it is listed, what its entries say, and how it is deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from botocore.exceptions import ClientError

from tasks.clouds.aws.clients import tags_of
from tasks.clouds.aws.errors import is_not_found
from tasks.clouds.aws.launch import NAME_TAG
from tasks.clouds.base import Resource
from tasks.clouds.guest import USERNAME
from tasks.domain.reaping import SERVER

VENDOR = "aws"

# What a forgotten one costs, roughly: list prices of us-east-1, https://aws.amazon.com/ebs/pricing/ and
# https://aws.amazon.com/vpc/pricing/; other regions ask up to twice as much for disks.
_GP3_USD_PER_GIB_HOUR = Decimal("0.08") / 730
_SNAPSHOT_USD_PER_GIB_HOUR = Decimal("0.05") / 730
_IPV4_USD_PER_HOUR = Decimal("0.005")

_SERVER_STATES = {
    "pending": "pending",
    "running": "running",
    "stopping": "stopping",
    "shutting-down": "stopping",
    "stopped": "stopped",
    "terminated": "terminated",
}
_DISK_STATES = {"creating": "pending", "deleting": "stopping", "deleted": "terminated"}
_SPOT_REQUESTS_THAT_MAY_LAUNCH = ("open", "active")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """prefix: of its ids. entries: from a page to its entries. read: None for entries that no longer matter."""

    kind: str
    prefix: str
    operation: str
    entries: Callable[[Any], list[Any]]
    read: Callable[[Any, str], Resource | None]
    delete: Callable[[Any, str], Any]
    arguments: dict[str, Any] = field(default_factory=dict)


def server_of(instance: Any, region: str) -> Resource:
    """The instance as a Resource; `Placement` is missing from instances that ended long ago."""
    return _resource(
        instance,
        SERVER,
        instance["InstanceId"],
        instance.get("Placement", {}).get("AvailabilityZone") or region,
        state=_SERVER_STATES.get(instance["State"]["Name"], "pending"),
        created=instance.get("LaunchTime"),
        address=instance.get("PublicIpAddress") or "",
        server_type=instance.get("InstanceType") or "",
    )


def _disk_of(volume: Any, region: str) -> Resource:
    return _resource(
        volume,
        "disk",
        volume["VolumeId"],
        volume.get("AvailabilityZone") or region,
        state=_DISK_STATES.get(volume["State"], "running"),
        created=volume.get("CreateTime"),
        usd_per_hour=_GP3_USD_PER_GIB_HOUR * int(volume.get("Size") or 0),
    )


def _nic_of(nic: Any, region: str) -> Resource:
    return _resource(
        nic | {"Tags": nic.get("TagSet")},
        "nic",
        nic["NetworkInterfaceId"],
        nic.get("AvailabilityZone") or region,
        created=nic.get("Attachment", {}).get("AttachTime"),
    )


def _ip_of(address: Any, region: str) -> Resource:
    return _resource(
        address,
        "ip",
        address["AllocationId"],
        region,
        address=address.get("PublicIp") or "",
        usd_per_hour=_IPV4_USD_PER_HOUR,
    )


def _snapshot_of(snapshot: Any, region: str) -> Resource:
    return _resource(
        snapshot,
        "snapshot",
        snapshot["SnapshotId"],
        region,
        created=snapshot.get("StartTime"),
        usd_per_hour=_SNAPSHOT_USD_PER_GIB_HOUR * int(snapshot.get("VolumeSize") or 0),
    )


def _spot_request_of(request: Any, region: str) -> Resource | None:
    if request["State"] not in _SPOT_REQUESTS_THAT_MAY_LAUNCH:
        return None
    return _resource(
        request,
        "spot_request",
        request["SpotInstanceRequestId"],
        request.get("LaunchedAvailabilityZone") or region,
        created=request.get("CreateTime"),
    )


def _key_of(key: Any, region: str) -> Resource:
    return _resource(key, "key", key["KeyPairId"], region, created=key.get("CreateTime"))


def _resource(
    entry: Any,
    kind: str,
    cloud_id: str,
    place: str,
    *,
    state: str = "running",
    created: Any = None,
    address: str = "",
    server_type: str = "",
    usd_per_hour: Decimal = Decimal(0),
) -> Resource:
    tags = tags_of(entry)
    name = tags.pop(NAME_TAG, "") or cloud_id
    return Resource(
        vendor=VENDOR,
        place=place,
        name=name,
        cloud_id=cloud_id,
        kind=kind,
        state=state,
        tags=tags,
        created_unix_s=created.timestamp() if created else 0.0,
        address=address,
        username=USERNAME,
        server_type=server_type,
        usd_per_hour=usd_per_hour,
    )


def _release(client: Any, allocation_id: str) -> None:
    """An address in use is taken from what uses it first, which may have ended meanwhile."""
    for address in client.describe_addresses(AllocationIds=[allocation_id])["Addresses"]:
        if address.get("AssociationId"):
            try:
                client.disassociate_address(AssociationId=address["AssociationId"])
            except ClientError as exc:
                if not is_not_found(exc):
                    raise
    client.release_address(AllocationId=allocation_id)


KINDS = (
    Kind(
        kind=SERVER,
        prefix="i-",
        operation="describe_instances",
        entries=lambda page: [instance for r in page["Reservations"] for instance in r["Instances"]],
        read=server_of,
        # One id per call: one bad id fails all of them. Nothing on it is worth the minutes of an orderly shutdown.
        delete=lambda client, cloud_id: client.terminate_instances(InstanceIds=[cloud_id], SkipOsShutdown=True),
    ),
    Kind(
        kind="disk",
        prefix="vol-",
        operation="describe_volumes",
        entries=lambda page: page["Volumes"],
        read=_disk_of,
        delete=lambda client, cloud_id: client.delete_volume(VolumeId=cloud_id),
    ),
    Kind(
        kind="nic",
        prefix="eni-",
        operation="describe_network_interfaces",
        entries=lambda page: page["NetworkInterfaces"],
        read=_nic_of,
        delete=lambda client, cloud_id: client.delete_network_interface(NetworkInterfaceId=cloud_id),
    ),
    Kind(
        kind="ip",
        prefix="eipalloc-",
        operation="describe_addresses",
        entries=lambda page: page["Addresses"],
        read=_ip_of,
        delete=_release,
    ),
    Kind(
        kind="spot_request",
        prefix="sir-",
        operation="describe_spot_instance_requests",
        entries=lambda page: page["SpotInstanceRequests"],
        read=_spot_request_of,
        delete=lambda client, cloud_id: client.cancel_spot_instance_requests(SpotInstanceRequestIds=[cloud_id]),
    ),
    Kind(
        kind="snapshot",
        prefix="snap-",
        operation="describe_snapshots",
        entries=lambda page: page["Snapshots"],
        read=_snapshot_of,
        delete=lambda client, cloud_id: client.delete_snapshot(SnapshotId=cloud_id),
        arguments={"OwnerIds": ["self"]},
    ),
    Kind(
        kind="key",
        prefix="key-",
        operation="describe_key_pairs",
        entries=lambda page: page["KeyPairs"],
        read=_key_of,
        delete=lambda client, cloud_id: client.delete_key_pair(KeyPairId=cloud_id),
    ),
)


def kind_of(cloud_id: str) -> Kind | None:
    """The kind that an id belongs to, None for what is no id of ours."""
    return next((kind for kind in KINDS if cloud_id.startswith(kind.prefix)), None)
