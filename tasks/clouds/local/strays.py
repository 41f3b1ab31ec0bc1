"""What is of this state folder and of none of its servers: left by a kill, or after a record was lost.

Each kind has a cloud_id of its own, `<kind>:<what>`, so that a reaper can delete it like a server. A thing counts as
a stray only when its record, which is always written before it and removed after it, is missing.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from tasks.clouds.base import OWNER, OWNER_TAG, Ref, Resource
from tasks.clouds.local import microvm, network, processes
from tasks.clouds.local.processes import Process
from tasks.clouds.local.server_types import PLACE, VENDOR
from tasks.clouds.local.state import StateDir

SERVER_DIRECTORY = "directory"
_KINDS = ("process", "cgroup", "interface", "bridge", "leftover")


@dataclass(frozen=True)
class Seen:
    """What is on the machine, whether or not it is of a server."""

    processes: list[Process]
    cgroups: list[tuple[str, Path]]
    interfaces: list[network.Interface]


def look(state: StateDir) -> Seen:
    """Look before the records are read: whatever is made later has its record by then."""
    with network.lock():  # an interface has no alias for a moment
        interfaces = network.interfaces(state.tag)
    return Seen(processes.find(state.tag), microvm.stray_cgroups(state), interfaces)


def without_server(state: StateDir, seen: Seen) -> list[Resource]:
    with state.lock() if state.root.exists() else nullcontext():
        names = set(state.names())
        leftovers = state.leftovers()
    marks = {processes.vm_mark(state.tag, name) for name in names}
    found = [
        _resource("process", f"{p.pid}:{p.start_ticks}", f"process-{p.pid}", processes.started_unix_s(p))
        for p in seen.processes
        if p.mark not in marks and processes.is_alive(p.pid, p.start_ticks)
    ]
    for name, folder in seen.cgroups:
        if name not in names and folder.exists():
            found.append(_resource("cgroup", name, name, folder.stat().st_ctime))
    for interface in seen.interfaces:
        if not interface.is_bridge and interface.server not in names and network.exists(interface.name):
            found.append(_resource("interface", interface.name, interface.server or interface.name))
    if not names and any(interface.is_bridge for interface in seen.interfaces) and microvm.bridge_is_stray(state):
        bridge = network.bridge_name(state.tag)
        found.append(_resource("bridge", bridge, bridge))
    found += [_resource("leftover", entry, entry) for entry in leftovers]
    return found


def directory(server: str, what: str, tags: dict[str, str], created_unix_s: float = 0.0) -> Resource:
    """The directory, cgroups and interface of a server that has ended or cannot be read; what: its id or its name."""
    return _resource(SERVER_DIRECTORY, what, server, created_unix_s, tags)


def is_stray(cloud_id: str) -> bool:
    return cloud_id.partition(":")[0] in _KINDS


def server_id(cloud_id: str) -> str:
    """The id that a Ref to a server, or to the directory of one, asks for; "" for any."""
    return cloud_id.removeprefix(f"{SERVER_DIRECTORY}:")


def remove(state: StateDir, ref: Ref) -> None:
    """Remove one stray; silent when it is gone, or a server's after all."""
    kind, _, what = ref.cloud_id.partition(":")
    names = set(state.names())
    if kind == "process":
        pid, _, start_ticks = what.partition(":")
        _end_process(state, names, int(pid), int(start_ticks))
    elif kind == "cgroup" and what not in names:
        processes.kill_all(state.tag, what)
        microvm.remove_traces(state, what)
    elif kind == "interface" and ref.name not in names:
        network.remove(state.tag, what)
        microvm.remove_idle_bridge(state)
    elif kind == "bridge":
        microvm.remove_idle_bridge(state)
    elif kind == "leftover":
        with state.lock():
            is_left = what in state.leftovers()
        if is_left:
            state.remove_leftover(what)


def _end_process(state: StateDir, names: set[str], pid: int, start_ticks: int) -> None:
    marks = {processes.vm_mark(state.tag, name) for name in names}
    targets = [p for p in processes.find(state.tag) if (p.pid, p.start_ticks) == (pid, start_ticks)]
    targets = [p for p in targets if p.mark not in marks]
    end = time.monotonic() + processes.KILL_TIMEOUT_S
    processes.kill(targets)
    while targets and processes.is_alive(pid, start_ticks):
        if time.monotonic() > end:
            raise processes.still_alive(f"stray process {pid}", targets)
        time.sleep(0.002)


def _resource(
    kind: str, what: str, name: str, created_unix_s: float = 0.0, tags: dict[str, str] | None = None
) -> Resource:
    return Resource(
        vendor=VENDOR,
        place=PLACE,
        name=name,
        cloud_id=f"{kind}:{what}",
        kind=kind,
        state="stopped",
        tags={OWNER_TAG: OWNER} if tags is None else tags,
        created_unix_s=created_unix_s,
    )
