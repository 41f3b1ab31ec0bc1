"""Resources as the emulated Azure shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tests.emulators.azure_state import DISK, IP, NIC, SUBSCRIPTION, VM, Account, Group, Thing

_GUID_FIELDS = {VM: "vmId", DISK: "uniqueId"}


def group_json(group: Group) -> dict[str, Any]:
    return {
        "id": f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{group.name}",
        "name": group.name,
        "type": "Microsoft.Resources/resourceGroups",
        "location": group.location,
        "tags": group.tags,
        "properties": {"provisioningState": group.state},
    }


def thing_json(thing: Thing, account: Account, *, expand: str = "") -> dict[str, Any]:
    group = account.groups.get(thing.group.lower())
    state = thing.state(account.now())
    properties: dict[str, Any] = {k: v for k, v in thing.properties.items() if k != "vm"} | {
        "provisioningState": state,
        _GUID_FIELDS.get(thing.type, "resourceGuid"): thing.guid,
    }
    if thing.type in (VM, DISK):
        properties["timeCreated"] = _iso(thing.created_unix_s)
    if thing.type == VM:
        properties["networkProfile"] = {"networkInterfaces": [{"id": nic.id} for nic in account.brought(thing, NIC)]}
        properties["osProfile"] = {
            k: v for k, v in properties.get("osProfile", {}).items() if k != "customData"
        }  # written, never read back
        if expand == "instanceView":
            properties["instanceView"] = {"statuses": _statuses(thing, account)}
    if thing.type == NIC:
        properties["ipConfigurations"] = [_ip_configuration(thing, account, expand)]
    if thing.type == IP:
        properties |= _address(thing, account)
    shown: dict[str, Any] = {
        "id": thing.id,
        "name": thing.name,
        "type": thing.type,
        "location": thing.location,
        "tags": thing.tags,
        "properties": properties,
    }
    if thing.zones:
        shown["zones"] = thing.zones
    if group is not None and group.ends_unix_s is not None and thing.type == VM:
        properties["provisioningState"] = state  # a machine tells nothing of its group's deletion until it is its turn
    return shown


def status_json(thing: Thing, account: Account) -> dict[str, Any]:
    return {
        "id": thing.id,
        "name": thing.name,
        "location": thing.location,
        "properties": {"vmId": thing.guid, "instanceView": {"statuses": _statuses(thing, account)}},
    }


def _statuses(vm: Thing, account: Account) -> list[dict[str, str]]:
    state = vm.state(account.now())
    statuses = [{"code": f"ProvisioningState/{state.lower()}", "level": "Info"}]
    if state == "Failed" and vm.failure:
        code, message = vm.failure
        statuses = [{"code": f"ProvisioningState/failed/{code}", "level": "Error", "message": message}]
    if state in ("Succeeded", "Failed") and not vm.never_ran:
        booted = vm.power != "running" or bool(account.machines.address(vm.guid))
        statuses.append({"code": f"PowerState/{vm.power if booted else 'starting'}", "level": "Info"})
    return statuses


def _ip_configuration(nic: Thing, account: Account, expand: str) -> dict[str, Any]:
    vm = account.things.get(nic.properties.get("vm", ""))
    properties: dict[str, Any] = {"primary": True}
    for ip in account.brought(vm, IP) if vm else ():
        properties["publicIPAddress"] = {"id": ip.id}
        if "publicIPAddress" in expand:
            properties["publicIPAddress"] = thing_json(ip, account)
    return {"name": "ipv4", "properties": properties}


def _address(ip: Thing, account: Account) -> dict[str, Any]:
    vm = account.things.get(ip.properties.get("vm", ""))
    address = account.machines.address(vm.guid) if vm else ""
    return {"publicIPAllocationMethod": "Static"} | ({"ipAddress": address} if address else {})


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")
