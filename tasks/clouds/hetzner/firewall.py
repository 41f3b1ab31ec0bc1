"""The firewall of our servers: SSH from given networks, nothing else. Shared by all servers with the same networks.

It costs nothing and stays for the next server; unused ones are removed when the project's limit is reached. Its label
says that it is shared, not that it is ours to reap: the server that it guards comes and goes, it does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from ipaddress import ip_network

from hcloud import APIException, Client
from hcloud.firewalls import BoundFirewall, Firewall, FirewallRule

from tasks.clouds.hetzner.errors import NOT_FOUND, RESOURCE_IN_USE, RESOURCE_LIMIT, UNIQUENESS, is_code
from tasks.domain.errors import ConfigError

MAX_AGE_S = 600.0
SHARED_LABEL = "tokensweep-shared"
_LABELS = {SHARED_LABEL: "ssh"}
_ANYWHERE = ("0.0.0.0/0", "::/0")
_NETWORKS_PER_RULE = 100  # docs.hetzner.cloud: "You can specify 100 CIDRs at most"


class Firewalls:
    """Remembers for a while what it found, so that a create costs no request more."""

    def __init__(self, client: Client, now: Callable[[], float]) -> None:
        self._client = client
        self._now = now
        self._known: dict[str, tuple[Firewall, float]] = {}

    def ensure(self, ssh_sources: Sequence[str]) -> Firewall:
        """The firewall that lets these networks (none: all) reach port 22; made when there is none, mended when
        changed."""
        networks = _networks(ssh_sources)
        name = "tokensweep-ssh-" + hashlib.sha256(",".join(networks).encode()).hexdigest()[:12]
        firewall, read_unix_s = self._known.get(name, (None, 0.0))
        if firewall is None or not 0 <= self._now() - read_unix_s < MAX_AGE_S:
            firewall = _ensure(self._client, name, _rules(networks))
            self._known[name] = (firewall, self._now())
        return firewall

    def forget(self) -> None:
        self._known.clear()


def _ensure(client: Client, name: str, rules: list[FirewallRule]) -> Firewall:
    found = client.firewalls.get_by_name(name)
    if found is None:
        return _create(client, name, rules)
    if _shape(found.rules or []) != _shape(rules):
        client.firewalls.set_rules(found, rules)
    return found


def _create(client: Client, name: str, rules: list[FirewallRule]) -> BoundFirewall:
    try:
        return _send(client, name, rules)
    except APIException as exc:
        if is_code(exc, UNIQUENESS):  # another server run made it meanwhile
            found = client.firewalls.get_by_name(name)
            if found is not None:
                return found
        if is_code(exc, RESOURCE_LIMIT) and remove_unused(client):
            return _send(client, name, rules)
        raise


def _send(client: Client, name: str, rules: list[FirewallRule]) -> BoundFirewall:
    # The SDK annotates labels as str and passes a dict through.
    return client.firewalls.create(name, rules=rules, labels=_LABELS).firewall  # type: ignore[arg-type]


def remove_unused(client: Client) -> int:
    """Delete our firewalls that guard nothing now; returns how many went."""
    n_removed = 0
    for firewall in client.firewalls.get_all(label_selector=SHARED_LABEL):
        if not firewall.applied_to:
            try:
                client.firewalls.delete(firewall)
                n_removed += 1
            except APIException as exc:
                if exc.code not in (RESOURCE_IN_USE, NOT_FOUND):  # somebody took it or removed it meanwhile
                    raise
    return n_removed


def _networks(sources: Sequence[str]) -> list[str]:
    try:
        return sorted({str(ip_network(source, strict=False)) for source in sources}) or list(_ANYWHERE)
    except ValueError as exc:
        raise ConfigError(f"hetzner: {exc}; SSH sources are networks like 198.51.100.7/32.") from exc


def _rules(networks: Sequence[str]) -> list[FirewallRule]:
    chunks = [list(networks[i : i + _NETWORKS_PER_RULE]) for i in range(0, len(networks), _NETWORKS_PER_RULE)]
    return [
        FirewallRule(direction="in", protocol="tcp", port="22", source_ips=chunk, description="SSH") for chunk in chunks
    ]


def _shape(rules: Sequence[FirewallRule]) -> list[tuple[str, str, str | None, list[str]]]:
    return sorted((rule.direction, rule.protocol, rule.port, sorted(rule.source_ips)) for rule in rules)
