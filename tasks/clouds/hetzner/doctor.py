"""What is wrong with an account at Hetzner, found out without making or deleting anything."""

from __future__ import annotations

from collections.abc import Callable

from hcloud import APIException, Client

from tasks.clouds.base import Check, ErrorKind
from tasks.clouds.hetzner.client import RateLimit, watched
from tasks.clouds.hetzner.errors import INVALID_INPUT, NOT_FOUND, READONLY_CODES, classify
from tasks.clouds.hetzner.inventory import unlabelled


def examine(client: Client, image: str) -> list[Check]:
    """Checks in the order in which they depend on each other; the first to fail at reaching or identity is the last."""
    with watched(client) as rate_limit:
        reached = _try("reachability", lambda: _reach(client))
        if not reached.ok:
            return [reached]
        return [
            reached,
            _try("identity", lambda: _identify(client)),
            _try("permissions", lambda: _may_write(client)),
            _try("images", lambda: _has_image(client, image)),
            _quotas(),
            _try("leftovers", lambda: _leftovers(client)),
            _requests_left(rate_limit),
        ]


def _try(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except Exception as exc:
        found = classify(exc)
        if found.kind is ErrorKind.AUTH:
            step = "Make a token with read and write access in the console: Security, API tokens."
            return Check(name="identity", ok=False, detail=f"{found.code}: {found.message}", next_step=step)
        return Check(name=name, ok=False, detail=f"{found.code}: {found.message}", next_step="Look at the network.")


def _reach(client: Client) -> Check:
    locations = client.locations.get_all()
    names = ", ".join(sorted(str(location.name) for location in locations))
    return Check(name="reachability", ok=True, detail=f"the API answers; locations: {names}")


def _identify(client: Client) -> Check:
    meta = client.servers.get_list(per_page=1).meta
    total = meta.pagination.total_entries if meta and meta.pagination else None
    return Check(name="identity", ok=True, detail=f"the token opens a project with {total} servers")


def _may_write(client: Client) -> Check:
    """Hetzner has no dry run. A token that may only read is refused before the thing to change is looked for, and
    this would change nothing if there were one."""
    try:
        client.request("PUT", "/ssh_keys/0", json={})
    except APIException as exc:
        if exc.code in (NOT_FOUND, INVALID_INPUT):
            return Check(name="permissions", ok=True, detail="the token may read and write")
        if exc.code in READONLY_CODES:
            return Check(
                name="permissions",
                ok=False,
                detail=f"the token may only read ({exc.code})",
                next_step="Make one with read and write access: Security, API tokens.",
            )
        raise
    return Check(name="permissions", ok=True, detail="the token may read and write")


def _has_image(client: Client, image: str) -> Check:
    found = client.images.get_list(name=image, type=["system"]).images
    architectures = sorted({str(model.architecture) for model in found})
    missing = {"x86", "arm"} - set(architectures)
    return Check(
        name="images",
        ok="x86" in architectures,
        detail=f"{image} for {', '.join(architectures) or 'nothing'}" + (f"; none for {missing}" if missing else ""),
        next_step="" if not missing else "Servers of the missing architecture cannot be created now.",
    )


def _quotas() -> Check:
    return Check(
        name="quotas",
        ok=None,
        detail="the API does not tell a project's limits; a create beyond them is refused with resource_limit_exceeded",
        next_step="See them in the console: Limits.",
    )


def _requests_left(rate_limit: RateLimit) -> Check:
    """Shared by all that use the project. A tenth is a few dozen server runs and the passes of a reaper."""
    limit, left = rate_limit.limit, rate_limit.left
    if limit is None or left is None:
        return Check(name="rate limit", ok=None, detail="the API does not tell how many requests are left")
    return Check(
        name="rate limit",
        ok=left * 10 >= limit,
        detail=f"{left} of {limit} requests are left in this hour",
        next_step="" if left * 10 >= limit else "Find out what else uses this project, or wait.",
    )


def _leftovers(client: Client) -> Check:
    found = unlabelled(client)
    if not found:
        return Check(name="leftovers", ok=True, detail="nothing in the project bills without a label")
    return Check(
        name="leftovers",
        ok=None,
        detail=f"{len(found)} without any label, whosever they are: {', '.join(found[:10])}",
        next_step="Look at them in the console; a project of its own for sweeps makes them plainly ours.",
    )
