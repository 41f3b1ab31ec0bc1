"""What is wrong with an account at UpCloud, found out without making or deleting anything."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from upcloud_api import CloudManager

from tasks.clouds.base import Check, ErrorKind
from tasks.clouds.upcloud.catalog import price_currency
from tasks.clouds.upcloud.client import every
from tasks.clouds.upcloud.errors import classify
from tasks.clouds.upcloud.images import find_template
from tasks.domain.errors import UnsupportedError

_ADVICE = {
    ErrorKind.AUTH: "Use a sub-account with API access, allowed from this address: People, Add new, in the console.",
    ErrorKind.RATE_LIMITED: "Wait a minute.",
}


def examine(manager: CloudManager, currency: str = "") -> list[Check]:
    """Checks in the order in which they depend on each other; without an identity there are no others. currency: what
    the user says of it."""
    identity = _try("identity", lambda: _identify(manager))
    if not identity.ok:
        return [identity]
    return [
        identity,
        _try("permissions", lambda: _may_list(manager)),
        _try("credits", lambda: _credits(manager)),
        _try("quotas", lambda: _quotas(manager)),
        _try("images", lambda: _images(manager)),
        _try("prices", lambda: _prices(manager, currency)),
        _try("leftovers", lambda: _leftovers(manager)),
    ]


def _try(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except Exception as exc:
        found = classify(exc)
        step = _ADVICE.get(found.kind, "Look at the network, and at status.upcloud.com.")
        return Check(name=name, ok=False, detail=f"{found.code}: {found.message}", next_step=step)


def _identify(manager: CloudManager) -> Check:
    account = manager.get_account()["account"]
    return Check(name="identity", ok=True, detail=f"the API answers; account {account['username']}")


def _may_list(manager: CloudManager) -> Check:
    """UpCloud has no dry run, so that it may create and delete cannot be told; listing is what the reaper needs."""
    manager.api.get_request("/server", params={"limit": "1"})
    manager.api.get_request("/storage/private", params={"limit": "1"})
    manager.api.get_request("/ip_address", params={"limit": "1"})
    return Check(
        name="permissions",
        ok=True,
        detail="servers, storages and addresses can be listed; whether it may create is not told without doing it",
    )


def _credits(manager: CloudManager) -> Check:
    amount = Decimal(str(manager.get_account()["account"].get("credits", 0)))
    return Check(
        name="credits",
        ok=amount > 0,
        detail=f"{amount / 100:.2f} of the account's currency are left; servers stop when they are spent",
        next_step="" if amount > 0 else "Add credits, or nothing can be created.",
    )


def _quotas(manager: CloudManager) -> Check:
    limits = manager.get_account()["account"].get("resource_limits") or {}
    names = ("cores", "memory", "public_ipv4", "storage_maxiops", "gpus")
    told = ", ".join(f"{name} {limits[name]}" for name in names if name in limits)
    return Check(name="quotas", ok=bool(told) or None, detail=told or "the API does not tell this account's limits")


def _images(manager: CloudManager) -> Check:
    plain = str(find_template(manager, gpus=0)["title"])
    try:
        with_drivers = str(find_template(manager, gpus=1)["title"])
    except UnsupportedError:
        with_drivers = "none, so that no GPU plan can be had"
    return Check(name="images", ok=True, detail=f"{plain}; for GPUs {with_drivers}")


def _prices(manager: CloudManager, currency: str) -> Check:
    told = currency or price_currency(manager, manager.get_prices()["prices"])
    return Check(name="prices", ok=True, detail=f"prices are in {told}")


def _leftovers(manager: CloudManager) -> Check:
    """What bills alone: a storage on no server, an address that outlived its own. Whosever they are."""
    storages = every(manager, "/storage/private", "storages", "storage", "uuid")
    alone = [f"storage {s['title']}" for s in storages if not (s.get("labels") or s.get("servers", {}).get("server"))]
    addresses = every(manager, "/ip_address", "ip_addresses", "ip_address", "address")
    alone += [f"address {ip['address']}" for ip in addresses if not ip.get("server")]
    if not alone:
        return Check(name="leftovers", ok=True, detail="nothing in the account bills alone and without a label")
    return Check(
        name="leftovers",
        ok=None,
        detail=f"{len(alone)} alone and without a label, whosever they are: {', '.join(alone[:10])}",
        next_step="Look at them in the console; a sub-account of its own for sweeps makes them plainly ours.",
    )
