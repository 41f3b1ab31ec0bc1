"""Things of an UpCloud account as its API shows them."""

from __future__ import annotations

from typing import Any

from tests.emulators.upcloud_state import Account, Thing


def _labels(thing: Thing) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in thing.labels.items()]


def summary(account: Account, server: Thing) -> dict[str, Any]:
    """In a listing: no addresses, no storages, no time of creation."""
    return {
        "core_number": str(server.data["plan"]["core_number"]),
        "hostname": server.data["hostname"],
        "labels": {"label": _labels(server)},
        "license": 0,
        "memory_amount": str(server.data["plan"]["memory_amount"]),
        "plan": server.data["plan"]["name"],
        "state": account.state(server),
        "tags": {"tag": []},
        "title": server.title,
        "uuid": server.uuid,
        "zone": server.zone,
    }


def details(account: Account, server: Thing) -> dict[str, Any]:
    addresses = []
    for ip in account.of("ip", server):
        shown = account.machines.address(server.uuid) or ip.uuid
        addresses.append({"address": shown, "family": "IPv4", "floating": ip.data["floating"]})
    interface = {"index": 1, "type": "public", "mac": "de:ff:ff:ff:00:01", "ip_addresses": {"ip_address": addresses}}
    devices = [
        {
            "address": f"virtio:{number}",
            "boot_disk": "0",
            "labels": _labels(storage),
            "storage": storage.uuid,
            "storage_size": storage.data["size"],
            "storage_tier": storage.data["tier"],
            "storage_title": storage.title,
            "type": "disk",
        }
        for number, storage in enumerate(account.of("storage", server))
    ]
    return summary(account, server) | {
        "boot_order": "disk",
        "created": int(server.created_unix_s),
        "firewall": "off",
        "ip_addresses": {"ip_address": [{"access": "public", **address} for address in addresses]},
        "metadata": "yes",
        "networking": {"interfaces": {"interface": [interface] if addresses else []}},
        "nic_model": "virtio",
        "simple_backup": "no",
        "storage_devices": {"storage_device": devices},
        "timezone": "UTC",
    }


def storage_payload(account: Account, storage: Thing) -> dict[str, Any]:
    shown = {
        "access": "private",
        "labels": _labels(storage),
        "license": 0,
        "servers": {"server": [storage.data["server"]] if storage.data.get("server") else []},
        "size": storage.data["size"],
        "state": "online" if storage.ended_unix_s == float("inf") else "maintenance",
        "tier": storage.data["tier"],
        "title": storage.title,
        "type": storage.data["type"],
        "uuid": storage.uuid,
        "zone": storage.zone,
    }
    return shown | ({"origin": storage.data["origin"]} if "origin" in storage.data else {})


def ip_payload(ip: Thing) -> dict[str, Any]:
    shown = {
        "access": "public",
        "address": ip.uuid,
        "family": "IPv4",
        "floating": ip.data["floating"],
        "part_of_plan": "yes",
        "ptr_record": f"{ip.uuid}.v4.example",
        "release_policy": ip.data["release_policy"],
        "zone": ip.zone,
    }
    return shown | ({"server": ip.data["server"]} if ip.data.get("server") else {})
