"""Who may reach the servers: SSH from given networks, and nothing else.

The default network of a project lets the whole world in on port 22. Two rules of higher priority, for servers with our
network tags only, change that: one denies everything, one allows SSH from the networks that were asked for. They are
shared by all servers, cost nothing, and stay.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Sequence
from contextlib import suppress

from google.api_core.exceptions import Conflict, NotFound
from google.cloud import compute_v1

from tasks.clouds.gcp.clients import Clients
from tasks.domain.errors import ConfigError

NETWORK_TAG = "tokensweep"
ALLOW_RULE = "tokensweep-ssh"
DENY_RULE = "tokensweep-deny-ingress"
ANYWHERE = "0.0.0.0/0"


def allowed_networks(ssh_sources: Iterable[str]) -> list[str]:
    """The IPv4 networks among the sources; servers have no other address. Raises ConfigError when there are none."""
    try:
        networks = {ipaddress.ip_network(source, strict=False) for source in ssh_sources}
    except ValueError as exc:
        raise ConfigError(f"gcp: {exc}.", next_step="Mend TOKENSWEEP_SSH_SOURCES.") from exc
    ours = sorted(str(network) for network in networks if network.version == 4)
    if networks and not ours:
        raise ConfigError(
            f"gcp: servers have IPv4 addresses, and none of {', '.join(map(str, sorted(networks, key=str)))} is IPv4.",
            next_step="Name an IPv4 network in TOKENSWEEP_SSH_SOURCES.",
        )
    return ours or [ANYWHERE]


def allow_rule_name(ssh_sources: Sequence[str]) -> str:
    """One rule for every set of networks, so that two controllers do not widen or cut off each other's."""
    if not ssh_sources:
        return ALLOW_RULE
    return f"{ALLOW_RULE}-{hashlib.sha256(','.join(allowed_networks(ssh_sources)).encode()).hexdigest()[:8]}"


def network_tags(ssh_sources: Sequence[str]) -> list[str]:
    return [NETWORK_TAG, allow_rule_name(ssh_sources)]


class Firewall:
    """Makes the rules that are missing. Keeps nothing in mind: somebody may delete a rule in the middle of a sweep."""

    def __init__(self, clients: Clients, project: str, network: str) -> None:
        self._clients, self._project, self._network = clients, project, network

    def ensure(self, ssh_sources: Sequence[str]) -> None:
        """Ask for what is missing. Does not wait for it: that takes seconds, and the server takes longer."""
        for rule in (self.deny_rule(), self.allow_rule(ssh_sources)):
            if not self._exists(rule.name):
                self._insert(rule)

    def allow_rule(self, ssh_sources: Sequence[str]) -> compute_v1.Firewall:
        name = allow_rule_name(ssh_sources)
        return compute_v1.Firewall(
            name=name,
            description="tokensweep: SSH to its servers",
            network=f"global/networks/{self._network}",
            direction="INGRESS",
            priority=1000,
            allowed=[compute_v1.Allowed(I_p_protocol="tcp", ports=["22"])],
            source_ranges=allowed_networks(ssh_sources),
            target_tags=[name],
        )

    def deny_rule(self) -> compute_v1.Firewall:
        return compute_v1.Firewall(
            name=DENY_RULE,
            description="tokensweep: nothing else to its servers",
            network=f"global/networks/{self._network}",
            direction="INGRESS",
            priority=65_000,  # before default-allow-ssh and its like, which have 65534
            denied=[compute_v1.Denied(I_p_protocol="all")],
            source_ranges=[ANYWHERE],
            target_tags=[NETWORK_TAG],
        )

    def _exists(self, name: str) -> bool:
        try:
            self._clients.firewalls.get(project=self._project, firewall=name, **self._clients.call)
        except NotFound:
            return False
        return True

    def _insert(self, rule: compute_v1.Firewall) -> None:
        with suppress(Conflict):  # somebody else has just made it
            self._clients.firewalls.insert_unary(project=self._project, firewall_resource=rule, **self._clients.call)
