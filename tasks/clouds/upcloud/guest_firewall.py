"""SSH from the given networks and nothing else, kept by the guest itself.

UpCloud's own firewall is stateless, takes a minute or two, and is billed per server
(upcloud.com/docs/guides/managing-firewall): the guest's is better in all three. Ubuntu brings nftables.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

import yaml

from tasks.clouds.guest import HEADER
from tasks.domain.errors import ConfigError

_TABLE = "inet tokensweep"


def with_firewall(user_data: str, ssh_sources: Sequence[str]) -> str:
    """The cloud-init document with a first command that closes all ports but 22, and that to all but these networks.

    As it is for no networks: then anybody may knock, and only our key opens. Raises ConfigError for what is no
    network.
    """
    if not ssh_sources:
        return user_data
    document = yaml.safe_load(user_data)
    # A boot command runs at every boot, and before the network's services are up.
    document["bootcmd"] = [["sh", "-c", f"nft '{ruleset(ssh_sources)}' || true"], *document.get("bootcmd", [])]
    return HEADER + yaml.safe_dump(document, sort_keys=False, width=10_000)


def ruleset(ssh_sources: Sequence[str]) -> str:
    """In nftables' language. Naming the table, deleting it and making it anew also works the second time."""
    try:
        networks = sorted({ip_network(source, strict=False) for source in ssh_sources}, key=str)
    except ValueError as exc:
        raise ConfigError(f"upcloud: {exc}; SSH sources are networks like 198.51.100.7/32.") from exc
    rules = [
        "type filter hook input priority 0; policy drop",
        "ct state established,related accept",
        "iif lo accept",
        "meta l4proto { icmp, ipv6-icmp } accept",
        "udp dport { 68, 546 } accept",
    ]
    for family, version in (("ip", 4), ("ip6", 6)):
        sources = ", ".join(str(network) for network in networks if network.version == version)
        if sources:
            rules.append(f"{family} saddr {{ {sources} }} tcp dport 22 accept")
    return f"table {_TABLE} {{}}; delete table {_TABLE}; table {_TABLE} {{ chain input {{ {'; '.join(rules)}; }}; }}"
