"""Whether Azure can be used: looked at, and nothing created."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from tasks.clouds.azure import bodies, prices
from tasks.clouds.azure.clients import Clients
from tasks.clouds.azure.errors import classify, refusal
from tasks.clouds.base import Check, ErrorKind, Scope

NEEDED = (
    "Microsoft.Resources/subscriptions/resourceGroups/read",
    "Microsoft.Resources/subscriptions/resourceGroups/write",
    "Microsoft.Resources/subscriptions/resourceGroups/delete",
    "Microsoft.Network/networkSecurityGroups/write",
    "Microsoft.Network/networkSecurityGroups/join/action",
    "Microsoft.Network/virtualNetworks/write",
    "Microsoft.Network/virtualNetworks/subnets/join/action",
    "Microsoft.Network/publicIPAddresses/write",
    "Microsoft.Network/publicIPAddresses/join/action",
    "Microsoft.Network/networkInterfaces/write",
    "Microsoft.Network/networkInterfaces/join/action",
    "Microsoft.Compute/virtualMachines/write",
    "Microsoft.Compute/virtualMachines/delete",
    "Microsoft.Compute/disks/write",
    "Microsoft.Compute/disks/delete",
    "Microsoft.Compute/skus/read",
    "Microsoft.DevTestLab/schedules/write",
)
"""What a create and a delete cannot do without; deployments/policies/azure-controller.json has all of it."""

_PROVIDERS = ("Microsoft.Compute", "Microsoft.Network", "Microsoft.DevTestLab")
_SAMPLE_REGION = "westeurope"
_QUOTAS = {
    "cores": "cores",
    "lowPriorityCores": "spot cores",
    "PublicIPAddresses": "public addresses",
    "IPv4StandardSkuPublicIpAddresses": "public addresses",  # ours are of this kind
}


def examine(clients: Clients, regions: Sequence[str], now_unix_s: float) -> list[Check]:
    """Every check, also after one has failed, except that without a token nothing else is asked."""
    identity = _check("identity", lambda: _identity(clients), "See docs/vendors/azure.md for the credentials.")
    if not identity.ok:
        return [identity]
    places = list(regions) or [_SAMPLE_REGION]
    checks = [
        identity,
        _check("subscription", lambda: _subscription(clients), "Check TOKENSWEEP_AZURE_SUBSCRIPTION_ID."),
        _permissions(clients),
        _providers(clients),
        _check("prices", lambda: _prices(clients, places[0], now_unix_s), "Allow HTTPS to prices.azure.com."),
    ]
    for region in places:
        checks.append(_quota(clients, region))
        checks.append(_check(f"images in {region}", partial(_images, clients, region), "Choose another region."))
    return checks


def _check(name: str, look: Callable[[], str], next_step: str) -> Check:
    """Not ok where Azure says no; unknown where it does not answer."""
    try:
        return Check(name=name, ok=True, detail=look())
    except Exception as exc:
        found = classify(exc)
        refused = found.kind is not ErrorKind.UNKNOWN and found.kind is not ErrorKind.RATE_LIMITED
        return Check(
            name=name, ok=False if refused else None, detail=f"{found.code}: {found.message}", next_step=next_step
        )


def _not_ok(code: str, message: str) -> Exception:
    return refusal(ErrorKind.UNSUPPORTED, Scope.VENDOR, code, message)


def _identity(clients: Clients) -> str:
    clients.connection.credential.get_token(clients.connection.token_scope)
    return "a token was issued"


def _subscription(clients: Clients) -> str:
    found = clients.get_json("", "2022-12-01")
    if found.get("state") != "Enabled":
        raise _not_ok("SubscriptionState", f"{found.get('displayName')} is {found.get('state')}")
    return f"{found.get('displayName')} is enabled"


def _permissions(clients: Clients) -> Check:
    name = "permissions"
    try:
        granted = clients.get_json("/providers/Microsoft.Authorization/permissions", "2022-04-01")["value"]
    except Exception as exc:
        found = classify(exc)
        detail = f"they cannot be read: {found.message}"
        return Check(name=name, ok=None, detail=detail, next_step="Compare the role with docs/vendors/azure.md.")
    missing = [action for action in NEEDED if not allowed(action, granted)]
    if missing:
        return Check(
            name=name,
            ok=False,
            detail=f"missing: {', '.join(missing)}",
            next_step="Assign the role in deployments/policies/azure-controller.json.",
        )
    return Check(name=name, ok=True, detail=f"all {len(NEEDED)} that are needed are granted")


def allowed(action: str, granted: Iterable[Mapping[str, Any]]) -> bool:
    """Whether one of the roles has it among its actions and not among its exceptions; * stands for anything."""
    return any(
        _any_matches(role.get("actions") or (), action) and not _any_matches(role.get("notActions") or (), action)
        for role in granted
    )


def _any_matches(patterns: Iterable[str], action: str) -> bool:
    return any(re.fullmatch(re.escape(p).replace(r"\*", ".*"), action, re.IGNORECASE) for p in patterns)


def _providers(clients: Clients) -> Check:
    name = "resource providers"
    try:
        listed = clients.get_json("/providers", "2021-04-01")["value"]
    except Exception as exc:
        return Check(name=name, ok=None, detail=classify(exc).message)
    registered = {p["namespace"] for p in listed if p.get("registrationState") == "Registered"}
    missing = [provider for provider in _PROVIDERS if provider not in registered]
    if missing:
        commands = "; ".join(f"az provider register --namespace {provider}" for provider in missing)
        return Check(name=name, ok=False, detail=f"not registered: {', '.join(missing)}", next_step=f"Run {commands}.")
    return Check(name=name, ok=True, detail=", ".join(_PROVIDERS))


def _prices(clients: Clients, region: str, now_unix_s: float) -> str:
    return f"{len(prices.read(clients, region, now_unix_s).on_demand)} sizes have a price in {region}"


def _quota(clients: Clients, region: str) -> Check:
    name = f"quota in {region}"
    try:
        cores = {u.name.value: (u.current_value, u.limit) for u in clients.compute.usage.list(region)}
        addresses = {u.name.value: (u.current_value, u.limit) for u in clients.network.usages.list(region)}
    except Exception as exc:
        return Check(name=name, ok=None, detail=classify(exc).message)
    left: dict[str, int] = {}
    for key, (used, limit) in (cores | addresses).items():
        if key in _QUOTAS:
            left[_QUOTAS[key]] = min(left.get(_QUOTAS[key], limit - used), limit - used)
    detail = ", ".join(f"{n} {what} left" for what, n in left.items())
    if left.get("cores", 0) < 1 or left.get("public addresses", 1) < 1:
        return Check(name=name, ok=False, detail=detail, next_step="Ask for more: https://portal.azure.com, Quotas.")
    return Check(name=name, ok=True, detail=detail)


def _images(clients: Clients, region: str) -> str:
    wanted = [(*bodies.CANONICAL, sku) for sku in ("server", "server-arm64", "server-gen1")] + [bodies.HPC]
    found = []
    for publisher, offer, sku in wanted:
        versions = clients.compute.virtual_machine_images.list(region, publisher, offer, sku, top=1)
        if not versions:
            raise _not_ok("NoImage", f"{publisher}:{offer}:{sku} has no version in {region}")
        found.append(sku)
    return f"{', '.join(found)} are there"
