"""Deleting what is not a server: disks, addresses and snapshots that bear our label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.api_core.exceptions import NotFound

from tasks.clouds.base import ErrorKind, Ref
from tasks.clouds.gcp import resources
from tasks.clouds.gcp.clients import Clients
from tasks.clouds.gcp.errors import classify


@dataclass(frozen=True)
class _Collection:
    client: Callable[[Clients], Any]
    name_as: str
    place_as: str = ""


_COLLECTIONS = {
    resources.DISK: _Collection(lambda clients: clients.disks, "disk", "zone"),
    resources.REGION_DISK: _Collection(lambda clients: clients.region_disks, "disk", "region"),
    resources.IP: _Collection(lambda clients: clients.addresses, "address", "region"),
    resources.GLOBAL_IP: _Collection(lambda clients: clients.global_addresses, "address"),
    resources.SNAPSHOT: _Collection(lambda clients: clients.snapshots, "snapshot"),
}


def delete_side(clients: Clients, project: str, kind: str, ref: Ref) -> None:
    """By name, after a look whether that still has the id. Silent for what is gone. Raises what the SDK raises, for a
    disk that is still attached among others."""
    collection = _COLLECTIONS[kind]
    client = collection.client(clients)
    path = {"project": project, collection.name_as: ref.name}
    if collection.place_as:
        path[collection.place_as] = ref.place
    try:
        found = client.get(**path, **clients.call)
        if resources.side_id(kind, found.id) == ref.cloud_id:
            client.delete_unary(**path, **clients.call)
    except NotFound as exc:
        if classify(exc).kind is not ErrorKind.NOT_FOUND:
            raise
