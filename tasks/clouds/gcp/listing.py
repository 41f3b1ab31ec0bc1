"""Everything of ours in every zone and region of the project, or what could not be listed.

An aggregated listing that lacks a zone still says 200. It says so in three places, and each makes it incomplete:
`unreachables`, a warning of the page, and a warning of one scope. The one warning that is none is NO_RESULTS_ON_PAGE,
which every scope without a match carries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from google.cloud import compute_v1

from tasks.clouds.base import OWNER, OWNER_TAG, Listing, Resource
from tasks.clouds.gcp import resources
from tasks.clouds.gcp.clients import Clients
from tasks.clouds.gcp.errors import classify

OURS = f'labels.{OWNER_TAG} = "{OWNER}"'
_NOTHING_THERE = "NO_RESULTS_ON_PAGE"


@dataclass
class Part:
    """One of the listings that together are all. places: the zones and regions that it spoke of."""

    resources: list[Resource] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    places: set[str] = field(default_factory=set)


def list_owned(clients: Clients, project: str, now: Callable[[], float]) -> Listing:
    """Servers, disks, addresses and snapshots with our label, of which one listing each is asked for at once."""
    read_unix_s = now()
    lists: list[Callable[[], Part]] = [
        lambda: _aggregated(
            "instances",
            clients.instances.aggregated_list(
                request=compute_v1.AggregatedListInstancesRequest(project=project, filter=OURS), **clients.call
            ).pages,
            lambda scope: [resources.server(found) for found in scope.instances],
        ),
        lambda: _aggregated(
            "disks",
            clients.disks.aggregated_list(
                request=compute_v1.AggregatedListDisksRequest(project=project, filter=OURS), **clients.call
            ).pages,
            lambda scope: [resources.disk(found) for found in scope.disks],
        ),
        lambda: _aggregated(
            "addresses",
            clients.addresses.aggregated_list(
                request=compute_v1.AggregatedListAddressesRequest(project=project, filter=OURS), **clients.call
            ).pages,
            lambda scope: [resources.address(found) for found in scope.addresses],
        ),
        lambda: _snapshots(clients, project),
    ]
    with ThreadPoolExecutor(len(lists), thread_name_prefix="gcp-list") as pool:
        parts = list(pool.map(_guarded, ("instances", "disks", "addresses", "snapshots"), lists))
    found = [resource for part in parts for resource in part.resources]
    problems = tuple(problem for part in parts for problem in part.problems)
    return Listing(
        vendor=resources.VENDOR,
        resources=tuple(sorted(found, key=lambda r: (r.kind != resources.SERVER, r.place, r.name, r.cloud_id))),
        complete=not problems,
        read_unix_s=read_unix_s,
        places=tuple(sorted(set().union(*(part.places for part in parts)))),
        problems=problems,
    )


def _guarded(what: str, read: Callable[[], Part]) -> Part:
    try:
        return read()
    except Exception as exc:
        found = classify(exc)
        return Part(problems=[f"{what}: {found.code}: {found.message}"])


def _aggregated(what: str, pages: Iterable[Any], of_scope: Callable[[Any], Iterable[Resource]]) -> Part:
    part = Part()
    for page in pages:
        if not page.kind:
            part.problems.append(f"{what}: an answer that is no listing")
        part.problems += [
            f"{what}: {last} cannot be reached" for last in map(resources.last_segment, page.unreachables)
        ]
        part.problems += _warning(what, page.warning)
        for scope_name, scope in page.items.items():
            place = resources.last_segment(scope_name)
            part.problems += _warning(f"{what} in {place}", scope.warning)
            part.places.add(place)
            part.resources += of_scope(scope)
    return part


def _snapshots(clients: Clients, project: str) -> Part:
    part = Part(places={resources.GLOBAL})
    request = compute_v1.ListSnapshotsRequest(project=project, filter=OURS)
    for page in clients.snapshots.list(request=request, **clients.call).pages:
        if not page.kind:
            part.problems.append("snapshots: an answer that is no listing")
        part.problems += _warning("snapshots", page.warning)
        part.resources += [resources.snapshot(found) for found in page.items]
    return part


def _warning(what: str, warning: Any) -> list[str]:
    if not warning.code or warning.code == _NOTHING_THERE:
        return []
    return [f"{what}: {warning.code}: {warning.message}"]
