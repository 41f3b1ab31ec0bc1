"""Micro-VMs: namespaces, limits and a shaped link of their own, on the kernel and the programs of the host."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tasks.clouds.base import CreateSpec
from tasks.clouds.local import cgroups, microvm_root, network, processes, server_init, ssh
from tasks.clouds.local.launch import Launch, base_config
from tasks.clouds.local.server_types import Shape
from tasks.clouds.local.state import Record, StateDir

ISOLATION = "microvm"
SSH_PORT = 22
PROBE_TIMEOUT_S = 30.0


@functools.cache
def why_not() -> str:
    """Why this process cannot make micro-VMs, or "" when it can: found by making one of each part they need."""
    if sys.platform != "linux":
        return f"the system is {sys.platform}, not Linux"
    if os.geteuid() != 0:
        return "not root"
    missing = [tool for tool in ("ip", "tc") if network.find_tool(tool) is None]
    if missing:
        return f"iproute2 is missing ({', '.join(missing)})"
    sshd = ssh.find_sshd()
    if sshd is None:
        return "sshd is missing"
    if not any(sshd.startswith(os.path.realpath(path) + "/") for path in microvm_root.PROGRAMS):
        return f"sshd is at {sshd}, outside the system's folders"
    return cgroups.why_unusable() or _why_no_namespaces()


def _why_no_namespaces() -> str:
    config = {"isolation": "probe", "mount_point": "/proc", "commands": network.probe_commands()}
    done = subprocess.run(
        [ssh.controller_python(), "-I", "-S", server_init.__file__],
        input=json.dumps(config) + "\n",
        capture_output=True,
        text=True,
        timeout=PROBE_TIMEOUT_S,
    )
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.strip().splitlines() if line]
    tool_lines = [line for line in lines if line.startswith(("Error", "RTNETLINK", "Cannot", "Command"))]
    return "namespaces or links cannot be made: " + (tool_lines or lines or ["no reason given"])[-1]


def start(state: StateDir, spec: CreateSpec, record: Record, shape: Shape) -> Record:
    """Start the server; returns its record once its SSH port answers. Call it under the server's lock."""
    hierarchy = cgroups.find()
    directory = state.directory(record.name)
    mount_point = directory / "root"
    mount_point.mkdir()
    with state.lock():
        hierarchy.make(state.tag, record.name, shape.memory_bytes, record.cpus)
    mark = processes.env_mark(state.tag, record.name)
    config = {
        **base_config(state, spec, record),
        "isolation": ISOLATION,
        "ssh_port": SSH_PORT,
        "cgroup_procs": hierarchy.procs_files(state.tag, record.name),
        "ssh": {"argv": [ssh.find_sshd(), "-i", "-e", "-f", "/etc/ssh/sshd_config"], "per_connection": True},
        "environment": microvm_root.session_environment(mark),
        "root": microvm_root.plan(
            spec, record, shape, hierarchy, state.tag, str(mount_point), str(directory / "disk"), mark
        ),
    }
    with Launch(state, record) as launch:
        record = launch.fork(config)
        state.update(record)
        attached = network.attach(state.tag, record.name, record.init_pid, shape.link_bytes_per_s)
        record = replace(record, address=attached.address, ssh_port=SSH_PORT, username="root")
        state.update(record)
        launch.go(network.inside_commands(attached, shape.link_bytes_per_s))
    return record


def remove_traces(state: StateDir, name: str) -> None:
    """Remove what the kernel keeps of a server whose processes are dead. Raises CleanupError when something stays."""
    network.detach(state.tag, name)
    with suppress(cgroups.NoCgroupsError):
        hierarchy = cgroups.find()
        hierarchy.remove(state.tag, name)
        with state.lock():
            hierarchy.remove_folder_if_empty(state.tag)
    remove_idle_bridge(state)


def remove_idle_bridge(state: StateDir) -> None:
    """Remove the bridge unless a server is on it or a live process leases it."""
    with network.lock():
        if _bridge_is_unused(state):
            network.remove(state.tag, network.bridge_name(state.tag))


def bridge_is_stray(state: StateDir) -> bool:
    with network.lock():
        return _bridge_is_unused(state)


def _bridge_is_unused(state: StateDir) -> bool:
    return network.bridge_is_idle(state.tag) and not state.network_is_leased()


def bridge_address(state: StateDir) -> str:
    """Where servers reach this machine; makes the bridge when there is none."""
    with network.lock():
        return network.ensure_bridge(state.tag)


def stray_cgroups(state: StateDir) -> list[tuple[str, Path]]:
    """Every cgroup of this state folder: the server's name and one of its folders."""
    try:
        hierarchy = cgroups.find()
    except cgroups.NoCgroupsError:
        return []
    return [(name, hierarchy.folder("pids", state.tag) / name) for name in hierarchy.names(state.tag)]
