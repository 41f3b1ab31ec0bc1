"""Azure's answers as our resources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tasks.clouds import guest
from tasks.clouds.azure.identity import GROUP, SERVER, VENDOR, CloudId, Place, Stamp, decode_tags
from tasks.clouds.base import Resource

if TYPE_CHECKING:
    from azure.mgmt.compute.models import VirtualMachine
    from azure.mgmt.resource.resources.v2025_04_01.models import ResourceGroup

_BY_POWER = {
    "starting": "pending",
    "running": "running",
    "stopping": "stopping",
    "stopped": "stopped",  # by its guest: billed in full
    "deallocating": "stopping",
    "deallocated": "stopped",  # its disk and its address are still billed
}


def server(
    vm: VirtualMachine,
    *,
    group_state: str = "",
    statuses: Iterable[Any] | None = None,
    address: str = "",
    usd_per_hour: Decimal = Decimal(0),
) -> Resource:
    """group_state: a machine goes with its group, which says so first. statuses: of its instance view, if known."""
    return Resource(
        vendor=VENDOR,
        place=str(Place.of(vm.location, vm.zones)),
        name=vm.name or "",
        cloud_id=server_id(vm),
        kind=SERVER,
        state=_server_state(vm, group_state, statuses),
        tags=decode_tags(vm.tags),
        created_unix_s=_unix_s(vm.time_created) or Stamp.of(vm.tags).created_unix_s,
        address=address,
        username=guest.USERNAME,
        server_type=(vm.hardware_profile.vm_size or "") if vm.hardware_profile else "",
        usd_per_hour=usd_per_hour,
    )


def server_id(vm: VirtualMachine) -> str:
    return str(CloudId.of(SERVER, vm.id or "", vm.vm_id or ""))


def failure(statuses: Iterable[Any] | None) -> str:
    """Why provisioning failed, "" where it has not: an accepted create ends so, with AllocationFailed for example."""
    for status in statuses or ():
        parts = (status.code or "").split("/")
        if parts[0].lower() == "provisioningstate" and parts[1:2] == ["failed"]:
            return f"{'/'.join(parts[2:]) or 'failed'}: {status.message or ''}".strip(": ")
    return ""


def _server_state(vm: VirtualMachine, group_state: str, statuses: Iterable[Any] | None) -> str:
    provisioning = (vm.provisioning_state or "").lower()
    if group_state.lower() == "deleting" or provisioning == "deleting":
        return "stopping"
    if provisioning == "creating":
        return "pending"
    for status in statuses or ():
        area, _, state = (status.code or "").partition("/")
        if area.lower() == "powerstate":
            return _BY_POWER.get(
                state.lower(), "running"
            )  # also of a failed one: its guest may only not have told Azure
    if provisioning == "failed":
        return "stopped"  # it was never allocated; what it has got is still there and may be billed
    # Without a word on its power, what is shown must be what is billed.
    return "running" if provisioning == "succeeded" else "pending"


def group(found: ResourceGroup) -> Resource:
    stamp = Stamp.of(found.tags)
    return Resource(
        vendor=VENDOR,
        place=stamp.place or str(Place.of(found.location, None)),
        name=found.name or "",
        cloud_id=group_id(found),
        kind=GROUP,
        state=_side_state(group_state(found), ""),
        tags=decode_tags(found.tags),
        created_unix_s=stamp.created_unix_s,
    )


def group_id(found: ResourceGroup) -> str:
    return str(CloudId.of(GROUP, found.id or "", Stamp.of(found.tags).nonce))


def group_state(found: ResourceGroup) -> str:
    return (found.properties.provisioning_state if found.properties else "") or ""


def side(kind: str, found: Any, *, guid: str | None, group: ResourceGroup | None, tags: Mapping[str, str]) -> Resource:
    """A resource beside the machine, with the tags of its group where it has none of its own."""
    return Resource(
        vendor=VENDOR,
        place=str(Place.of(found.location, getattr(found, "zones", None))),
        name=found.name or "",
        cloud_id=str(CloudId.of(kind, found.id or "", guid or "")),
        kind=kind,
        state=_side_state(found.provisioning_state or "", group_state(group) if group else ""),
        tags=decode_tags(tags),
        created_unix_s=_unix_s(getattr(found, "time_created", None)) or Stamp.of(tags).created_unix_s,
        address=getattr(found, "ip_address", None) or "",
    )


def _side_state(own: str, of_group: str) -> str:
    return "stopping" if "deleting" in (own.lower(), of_group.lower()) else "running"


def _unix_s(at: datetime | None) -> float:
    return at.timestamp() if at else 0.0
