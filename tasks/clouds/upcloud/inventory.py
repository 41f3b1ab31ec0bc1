"""All that is ours in an account: servers, storages and addresses, as `Resource`s.

Servers have their UUID as their id; other things carry their kind in it ("storage/UUID"). Addresses bear no labels
and are used again, so theirs also names the server that they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from upcloud_api import CloudManager

from tasks.clouds.base import OWNER, OWNER_TAG, Listing, Resource
from tasks.clouds.guest import USERNAME
from tasks.clouds.upcloud.client import every
from tasks.clouds.upcloud.errors import classify
from tasks.clouds.upcloud.labels import OWNED, created_of, tags_of

VENDOR = "upcloud"
EVERY_ZONE = "every zone"
STORAGE = "storage"
IP = "ip"

STATES = {
    "started": "running",
    "stopped": "stopped",
    "maintenance": "pending",
    "error": "stopped",  # "inaccessible due to an error in the cloud service": of no use, and still to be deleted
}


def list_account(manager: CloudManager, now: Callable[[], float]) -> Listing:
    """Everything of ours in every zone. Complete only if all of it could be read."""
    read_unix_s = now()
    with ThreadPoolExecutor(max_workers=3) as pool:
        jobs = [pool.submit(_try_all, read, manager) for read in (_servers, _storages, _addresses)]
    (servers, problem), (storages, storage_problem), (addresses, ip_problem) = [job.result() for job in jobs]
    named = (("servers", problem), ("storages", storage_problem), ("IP addresses", ip_problem))
    problems = tuple(f"{what}: {why}" for what, why in named if why)
    owners = {str(server["uuid"]): server for server in servers}
    resources = [server_resource(server) for server in servers]
    resources += [storage_resource(storage) for storage in storages]
    resources += [
        ip_resource(ip, owners[str(ip["server"])]) for ip in addresses if is_bound(ip) and ip["server"] in owners
    ]
    return Listing(
        vendor=VENDOR,
        resources=tuple(resources),
        complete=not problems,
        read_unix_s=read_unix_s,
        places=() if problems else (EVERY_ZONE,),
        problems=problems,
    )


def _try_all(
    read: Callable[[CloudManager], list[dict[str, Any]]], manager: CloudManager
) -> tuple[list[dict[str, Any]], str]:
    try:
        return read(manager), ""
    except Exception as exc:
        return [], classify(exc).message


def _servers(manager: CloudManager) -> list[dict[str, Any]]:
    return _ours(every(manager, "/server", "servers", "server", "uuid", label=OWNED))


def _storages(manager: CloudManager) -> list[dict[str, Any]]:
    return _ours(every(manager, "/storage/private", "storages", "storage", "uuid", label=OWNED))


def _addresses(manager: CloudManager) -> list[dict[str, Any]]:
    return every(manager, "/ip_address", "ip_addresses", "ip_address", "address")


def _ours(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Looked at again here, should the API not know the filter some day."""
    return [entry for entry in entries if tags_of(entry).get(OWNER_TAG) == OWNER]


def servers_named(manager: CloudManager, name: str) -> list[dict[str, Any]]:
    """Ours with this name, the oldest first. Names are not unique."""
    found = [server for server in _servers(manager) if server.get("hostname") == name]
    return sorted(found, key=lambda server: (created_of(server), str(server["uuid"])))


def addresses_of(manager: CloudManager, server_uuid: str) -> list[dict[str, Any]]:
    return [ip for ip in _addresses(manager) if ip.get("server") == server_uuid]


def is_bound(ip: Mapping[str, Any]) -> bool:
    """Whether it came with its server. A floating one was attached by somebody, whose it is."""
    return bool(ip.get("server")) and ip.get("floating") != "yes" and ip.get("access") != "utility"


def server_resource(server: Mapping[str, Any]) -> Resource:
    return Resource(
        vendor=VENDOR,
        place=str(server.get("zone", "")),
        name=str(server.get("hostname", "")),
        cloud_id=str(server["uuid"]),
        kind="server",
        state=STATES.get(str(server.get("state")), "pending"),
        tags=tags_of(server),
        created_unix_s=created_of(server),
        address=_public_ipv4(server),
        username=USERNAME,
        server_type=str(server.get("plan") or ""),
    )


def _public_ipv4(server: Mapping[str, Any]) -> str:
    """From the details of a server; a listing has no addresses."""
    networking = server.get("networking")
    if not isinstance(networking, Mapping):
        return ""
    for interface in networking.get("interfaces", {}).get("interface", ()):
        for ip in interface.get("ip_addresses", {}).get("ip_address", ()):
            if interface.get("type") == "public" and ip.get("family") == "IPv4":
                return str(ip["address"])
    return ""


def storage_resource(storage: Mapping[str, Any]) -> Resource:
    return Resource(
        vendor=VENDOR,
        place=str(storage.get("zone", "")),
        name=str(storage.get("title", "")),
        cloud_id=f"{STORAGE}/{storage['uuid']}",
        kind="snapshot" if storage.get("type") in ("backup", "template") else "disk",
        state="pending" if storage.get("state") in ("maintenance", "cloning", "syncing") else "running",
        tags=tags_of(storage),
        created_unix_s=created_of(storage),
    )


def ip_resource(ip: Mapping[str, Any], server: Mapping[str, Any]) -> Resource:
    return Resource(
        vendor=VENDOR,
        place=str(server.get("zone", "")),
        name=str(ip["address"]),
        cloud_id=f"{IP}/{ip['server']}/{ip['address']}",
        kind="ip",
        state="running",
        tags=tags_of(server),
        created_unix_s=created_of(server),
        address=str(ip["address"]),
    )
