"""All that is ours in a project: servers, and whatever else bills, as `Resource`s.

Servers have their number as their id. Everything else carries its kind in it ("primary_ip/42"), because Hetzner
numbers every kind from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hcloud import Client

from tasks.clouds.base import OWNER, OWNER_TAG, Listing, Resource
from tasks.clouds.guest import USERNAME
from tasks.clouds.hetzner.errors import classify
from tasks.clouds.hetzner.labels import OWNED, to_tags
from tasks.domain.errors import ProviderError

VENDOR = "hetzner"
SERVER = "server"
EVERY_LOCATION = "every location"

STATES = {
    "initializing": "pending",
    "starting": "pending",
    "running": "running",
    "migrating": "running",
    "rebuilding": "pending",
    "stopping": "stopping",
    "off": "stopped",
    "deleting": "stopping",
    "unknown": "pending",
}
_PAGE = 50  # the API's most
_N_TRIES = 3


@dataclass(frozen=True)
class Side:
    """A kind of thing that bills, or is made, beside servers. attribute: its client of the SDK."""

    path: str
    kind: str
    attribute: str
    noun: str


SIDES = (
    Side("primary_ip", "ip", "primary_ips", "primary IPs"),
    Side("volume", "disk", "volumes", "volumes"),
    Side("image", "snapshot", "images", "snapshots"),
    Side("floating_ip", "ip", "floating_ips", "floating IPs"),
    Side("ssh_key", "key", "ssh_keys", "SSH keys"),
)
PRIMARY_IPS = SIDES[0]


def split_id(cloud_id: str) -> tuple[Side | None, int]:
    """The kind (None: a server) and the number of an id of ours. Raises ValueError for what is none."""
    path, slash, number = cloud_id.rpartition("/")
    if not slash:
        return None, int(number)
    for side in SIDES:
        if side.path == path:
            return side, int(number)
    raise ValueError(f"{cloud_id!r} names nothing at Hetzner that we know")


def list_project(client: Client, now: Callable[[], float]) -> Listing:
    """Everything of ours in every location: one project is one listing. Complete only if all of it could be read."""
    read_unix_s = now()
    with ThreadPoolExecutor(max_workers=len(SIDES) + 1) as pool:
        servers = pool.submit(_try_all, client.servers.get_list, label_selector=OWNED)
        # Primary IPs without a selector: one that was made along with a server of ours may not be labelled yet.
        sides = [
            (side, pool.submit(_try_all, getattr(client, side.attribute).get_list, **_selector(side))) for side in SIDES
        ]
    models, problem = servers.result()
    problems = [f"servers: {problem}"] if problem else []
    resources = [server_resource(server) for server in models]
    owners = {server.id: server for server in models}
    for side, future in sides:
        found, problem = future.result()
        if problem:
            problems.append(f"{side.noun}: {problem}")
        resources += [
            side_resource(side, model, owners) for model in found if side is not PRIMARY_IPS or _is_ours(model, owners)
        ]
    return Listing(
        vendor=VENDOR,
        resources=tuple(resources),
        complete=not problems,
        read_unix_s=read_unix_s,
        places=() if problems else (EVERY_LOCATION,),
        problems=tuple(problems),
    )


def _selector(side: Side) -> dict[str, Any]:
    if side is PRIMARY_IPS:
        return {}
    if side.path == "image":
        return {"label_selector": OWNED, "type": ["snapshot", "backup"]}
    return {"label_selector": OWNED}


def _is_ours(ip: Any, owners: dict[int, Any]) -> bool:
    return to_tags(ip.labels).get(OWNER_TAG) == OWNER or (ip.assignee_type == SERVER and ip.assignee_id in owners)


def _try_all(get_list: Callable[..., Any], **filters: Any) -> tuple[list[Any], str]:
    try:
        return every(get_list, **filters), ""
    except Exception as exc:
        return [], classify(exc).message


def every(get_list: Callable[..., Any], **filters: Any) -> list[Any]:
    """All pages of one listing. Pages are counted by position, so what goes while they are read can hide what comes
    after it: a listing that does not add up is read again. Raises ProviderError when it never adds up."""
    for _ in range(_N_TRIES):
        found, totals = _pages(get_list, filters)
        if len(totals) == 1 and totals in ({None}, {len(found)}):
            return list(found.values())
    raise ProviderError(f"the pages do not add up ({len(found)} read, {sorted(map(str, totals))} promised)")


def _pages(get_list: Callable[..., Any], filters: dict[str, Any]) -> tuple[dict[int, Any], set[int | None]]:
    found: dict[int, Any] = {}
    totals: set[int | None] = set()
    page: int | None = 1
    while page:
        models, meta = get_list(page=page, per_page=_PAGE, **filters)
        found |= {model.id: model for model in models}
        pagination = meta.pagination if meta else None
        totals.add(pagination.total_entries if pagination else None)
        page = pagination.next_page if pagination else None
    return found, totals


def server_resource(server: Any, *, state: str = "") -> Resource:
    """A server of the SDK as ours. Its address is the public IPv4."""
    net = server.public_net
    return Resource(
        vendor=VENDOR,
        place=place_of(server),
        name=str(server.name),
        cloud_id=str(server.id),
        kind=SERVER,
        state=state or STATES.get(str(server.status), "pending"),
        tags=to_tags(server.labels),
        created_unix_s=_unix_s(server.created),
        address=net.ipv4.ip if net is not None and net.ipv4 is not None else "",
        username=USERNAME,
        server_type=str(server.server_type.name) if server.server_type is not None else "",
    )


def side_resource(side: Side, model: Any, owners: dict[int, Any] | None = None) -> Resource:
    """Anything else of the SDK as ours. An IP of a server of ours has the server's tags, whatever its own are."""
    tags = to_tags(model.labels)
    owner = (owners or {}).get(model.assignee_id) if side is PRIMARY_IPS else None
    if owner is not None and tags.get(OWNER_TAG) != OWNER:
        tags = to_tags(owner.labels)
    return Resource(
        vendor=VENDOR,
        place=place_of(model),
        name=str(model.name or getattr(model, "description", "") or model.id),
        cloud_id=f"{side.path}/{model.id}",
        kind=side.kind,
        state="running",
        tags=tags,
        created_unix_s=_unix_s(model.created),
        address=str(model.ip or "") if side.kind == "ip" else "",
    )


def place_of(model: Any) -> str:
    location = getattr(model, "location", None) or getattr(model, "home_location", None)
    return str(location.name) if location is not None else ""


def _unix_s(created: datetime | None) -> float:
    return created.timestamp() if created is not None else 0.0


def unlabelled(client: Client) -> Sequence[str]:
    """What bills in the project and bears no label at all: nobody's, as far as can be seen."""
    found = []
    for side in SIDES[:4]:
        filters = _selector(side) | {"label_selector": None}
        for model in every(getattr(client, side.attribute).get_list, **filters):
            if not model.labels and getattr(model, "assignee_id", None) is None:
                found.append(f"{side.path} {model.name or model.id}")
    return found
