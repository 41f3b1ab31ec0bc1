"""All that is ours, in every region, of every kind: complete, or it says that it is not."""

from __future__ import annotations

from collections.abc import Callable

from tasks.clouds.aws.clients import Clients, pages
from tasks.clouds.aws.errors import classify
from tasks.clouds.aws.resources import KINDS, VENDOR, Kind
from tasks.clouds.base import OWNER, OWNER_TAG, Listing, Resource


def list_owned(clients: Clients, now: Callable[[], float]) -> Listing:
    """Asks the services themselves and not the tagging API, which goes on showing what has been deleted."""
    began_unix_s = now()
    try:
        regions = clients.regions()
    except Exception as exc:
        return Listing(
            vendor=VENDOR,
            resources=(),
            complete=False,
            read_unix_s=began_unix_s,
            places=(),
            problems=(f"The regions could not be listed: {classify(exc).message}",),
        )
    questions = [(clients, region, kind) for region in regions for kind in KINDS]
    resources: list[Resource] = []
    problems: list[str] = []
    failed: set[str] = set()
    for (_, region, kind), answer in zip(questions, clients.in_parallel(_owned, questions), strict=True):
        if isinstance(answer, Exception):
            found = classify(answer)
            problems.append(f"{region}: {kind.operation}: {found.code}: {found.message}")
            failed.add(region)
        else:
            resources += answer
    return Listing(
        vendor=VENDOR,
        resources=tuple(resources),
        complete=not problems,
        read_unix_s=began_unix_s,
        places=tuple(region for region in regions if region not in failed),
        problems=tuple(problems),
    )


def _owned(clients: Clients, region: str, kind: Kind) -> list[Resource]:
    client = clients.ec2(region)
    arguments = kind.arguments | {"Filters": [{"Name": f"tag:{OWNER_TAG}", "Values": [OWNER]}]}
    entries = [
        entry
        for page in pages(client, kind.operation, clients.options.page_size, **arguments)
        for entry in kind.entries(page)
    ]
    read = (kind.read(entry, region) for entry in entries)
    return [resource for resource in read if resource is not None and resource.tags.get(OWNER_TAG) == OWNER]
