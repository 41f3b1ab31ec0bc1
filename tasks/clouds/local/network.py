"""The network of micro-VMs: one bridge with a /24 of 10.77.0.0/16 per state folder, one veth pair per server.

The kernel is the only record: which addresses are taken is read from the interfaces that exist, and whose a veth is
from its alias. All changes are made under a lock that belongs to the network namespace itself, so that two state
folders, or two users' views of the file system, cannot choose the same subnet.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tasks.domain.errors import CleanupError, ProviderError

MTU_BYTES = 1500
COMMAND_TIMEOUT_S = 20.0
GONE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Attached:
    """A server's end of its link."""

    address: str
    gateway: str
    interface: str


@dataclass(frozen=True)
class Interface:
    """One interface of ours on the host. server: whose it is, "" for a bridge or when that is not known."""

    name: str
    server: str
    is_bridge: bool


def find_tool(name: str) -> str | None:
    """Ordinary users' PATH lacks the folders where ip, tc and sshd are."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")


def bridge_name(tag: str) -> str:
    return f"ts{tag}br"


def veth_name(tag: str, index: int) -> str:
    return f"ts{tag}v{index:02x}"


@contextmanager
def lock() -> Iterator[None]:
    handle = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def ensure_bridge(tag: str) -> str:
    """The bridge's address; makes the bridge when there is none. Call it under `lock`."""
    bridge = bridge_name(tag)
    addresses = _ip_json("-4", "addr", "show")
    for interface in addresses:
        if interface["ifname"] == bridge:
            for info in interface["addr_info"]:
                return str(info["local"])
            _ip(f"link del {bridge}\n")  # half-made: its maker was killed before it had an address
    subnet = _free_subnet(tag, addresses)
    _ip(
        f"link add {bridge} address {_mac(tag, 1)} type bridge forward_delay 0 stp_state 0\n"
        f"link set {bridge} addrgenmode none mtu {MTU_BYTES}\n"
        f"addr add {subnet[1]}/24 dev {bridge}\n"
        f"link set {bridge} up\n"
    )
    return str(subnet[1])


def attach(tag: str, server: str, pid: int, link_bytes_per_s: float) -> Attached:
    """Give the network namespace of `pid` an interface eth0, shaped towards it."""
    with lock():
        gateway = ensure_bridge(tag)
        taken = {name for _, name in socket.if_nameindex()}
        index = next((i for i in range(2, 255) if veth_name(tag, i) not in taken), None)
        if index is None:
            raise ProviderError("253 local servers share the bridge, and it holds no more.", reason="subnet_full")
        veth = veth_name(tag, index)
        peer = f"eth0 address {_mac(tag, index)} mtu {MTU_BYTES} netns {pid}"
        _ip(
            f"link add {veth} mtu {MTU_BYTES} type veth peer name {peer}\n"
            f"link set {veth} alias {server}\n"
            f"link set {veth} addrgenmode none master {bridge_name(tag)} up\n"
        )
    _run(["tc", "-batch", "-"], _shape(veth, link_bytes_per_s))
    return Attached(address=gateway.rpartition(".")[0] + f".{index}", gateway=gateway, interface=veth)


def inside_commands(attached: Attached, link_bytes_per_s: float) -> list[dict[str, Any]]:
    """What the server runs to configure its end, and to shape what it sends."""
    ip_lines = (
        "link set lo up\nlink set eth0 addrgenmode none\n"
        f"addr add {attached.address}/24 dev eth0\nlink set eth0 up\n"
        f"route add default via {attached.gateway}\n"
    )
    return [
        {"argv": [_tool("ip"), "-batch", "-"], "stdin": ip_lines},
        {"argv": [_tool("tc"), "-batch", "-"], "stdin": _shape("eth0", link_bytes_per_s)},
    ]


def probe_commands() -> list[dict[str, Any]]:
    """One of each thing that is needed, for a namespace that is thrown away."""
    ip_lines = (
        "link add probe0 type bridge forward_delay 0 stp_state 0\n"
        "link add probe1 type veth peer name probe2\n"
        "link set probe1 alias probe master probe0\n"
    )
    return [
        {"argv": [_tool("ip"), "-batch", "-"], "stdin": ip_lines},
        {"argv": [_tool("tc"), "-batch", "-"], "stdin": _shape("probe1", 1e6)},
    ]


def _shape(interface: str, bytes_per_s: float) -> str:
    # 5 ms of traffic may go at once, and never less than the largest segment that TCP hands to the link in one piece;
    # 50 ms may queue, far more than a path within one machine needs to fill the link.
    burst = max(128 * 1024, int(bytes_per_s * 0.005))
    return f"qdisc add dev {interface} root tbf rate {int(bytes_per_s * 8)}bit burst {burst} latency 50ms\n"


def interfaces(tag: str) -> list[Interface]:
    """All interfaces of a state folder."""
    ours = {name for _, name in socket.if_nameindex() if name.startswith(f"ts{tag}")}
    if not ours:
        return []
    return [
        Interface(link["ifname"], link.get("ifalias", ""), link["ifname"] == bridge_name(tag))
        for link in _ip_json("link", "show")
        if link["ifname"] in ours
    ]


def detach(tag: str, server: str) -> None:
    """Remove a server's veths. Silent when there are none; raises CleanupError when one stays."""
    for interface in interfaces(tag):
        if interface.server == server:
            remove(tag, interface.name)


def remove(tag: str, interface: str) -> None:
    """Remove one interface of this state folder; silent when it is gone."""
    if not interface.startswith(f"ts{tag}"):
        raise CleanupError(f"interface {interface} is not of this state folder; it was not removed.")
    end = time.monotonic() + GONE_TIMEOUT_S
    while exists(interface):
        # The kernel removes the veths of a dead namespace by itself, and may be just about to.
        done = _run(["ip", "link", "del", interface], check=False)
        if time.monotonic() > end:
            raise CleanupError(f"interface {interface} cannot be removed: {done.stderr.strip()}")
        if done.returncode != 0:
            time.sleep(0.005)


def exists(interface: str) -> bool:
    return any(name == interface for _, name in socket.if_nameindex())


def bridge_is_idle(tag: str) -> bool:
    """Whether the bridge exists without any veth on it. Call it under `lock`."""
    names = {name for _, name in socket.if_nameindex() if name.startswith(f"ts{tag}")}
    return names == {bridge_name(tag)}


def _mac(tag: str, index: int) -> str:
    """One address, one MAC, for ever: neighbours remember those of a server that is gone for half a minute."""
    return ":".join(["02", *(tag[i : i + 2] for i in range(0, 8, 2)), f"{index:02x}"])


def _free_subnet(tag: str, addresses: list[dict[str, Any]]) -> ipaddress.IPv4Network:
    taken = []
    for interface in addresses:
        for info in interface["addr_info"]:
            taken.append(ipaddress.ip_network(f"{info['local']}/{info['prefixlen']}", strict=False))
    for route in _ip_json("-4", "route", "show"):
        if route["dst"] != "default":
            taken.append(ipaddress.ip_network(str(route["dst"]), strict=False))
    first = int(tag, 16) % 256
    for offset in range(256):
        subnet = ipaddress.IPv4Network(f"10.77.{(first + offset) % 256}.0/24")
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise ProviderError(
        "every subnet of 10.77.0.0/16 is in use on this machine.",
        reason="no_subnet",
        next_step="Use TOKENSWEEP_LOCAL_ISOLATION=loopback, which needs none.",
    )


def _tool(name: str) -> str:
    path = find_tool(name)
    if path is None:
        raise ProviderError(f"{name} is missing.", reason="tool_missing", next_step="Install iproute2.")
    return path


def _ip(batch: str) -> None:
    _run(["ip", "-batch", "-"], batch)


def _ip_json(*arguments: str) -> list[dict[str, Any]]:
    text = _run(["ip", "-json", *arguments]).stdout
    parsed: list[dict[str, Any]] = json.loads(text or "[]")
    return [entry for entry in parsed if entry]  # -4 leaves {} for interfaces without an address


def _run(argv: list[str], stdin: str = "", *, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [_tool(argv[0]), *argv[1:]],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    if check and done.returncode != 0:
        raise ProviderError(
            f"{' '.join(argv)} failed: {done.stderr.strip() or done.returncode}. It was given: {stdin.strip()!r}.",
            reason="network_failed",
        )
    return done
