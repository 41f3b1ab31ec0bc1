"""Loopback servers, for any user: an SSH server on a port of 127.0.0.1, with CPUs and memory of its own.

What a micro-VM's kernel objects do, plain means do here: CPU affinity and a limit on each process's data for the
CPUs and the memory, an empty HOME for the files. The link is not shaped; whoever serves models has to.
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.clouds.base import CreateSpec
from tasks.clouds.local import microvm_root, processes, ssh
from tasks.clouds.local.launch import Launch, base_config
from tasks.clouds.local.server_init import ENV_MARK
from tasks.clouds.local.server_types import Shape
from tasks.clouds.local.state import Record, StateDir
from tasks.domain.errors import UnsupportedError

ISOLATION = "loopback"
HOST = "127.0.0.1"
_SSH_SERVER = Path(__file__).resolve().with_name("ssh_server.py")  # not imported: asyncssh takes a while
_LOGIN = """\
cd "$HOME" || exit 1
[ -n "$SSH_ORIGINAL_COMMAND" ] || exec {shell}
command=$SSH_ORIGINAL_COMMAND
unset SSH_ORIGINAL_COMMAND
exec {shell} -c "$command"
"""


def check(shape: Shape) -> None:
    """Raises UnsupportedError for what takes a micro-VM."""
    if shape.disk_bytes:
        raise UnsupportedError(
            f"local server type {shape.name!r}: a disk of limited size takes a micro-VM, and servers here are "
            "loopback servers.",
            reason="needs_microvm",
            next_step="Run as root with iproute2 and sshd installed, or leave out -disk.",
        )


def start(state: StateDir, spec: CreateSpec, record: Record, shape: Shape) -> Record:
    """Start the server; returns its record once its SSH port answers. Call it under the server's lock."""
    directory = state.directory(record.name)
    mark = processes.env_mark(state.tag, record.name)
    limits_path = directory / "limits.json"
    limits_path.write_text(json.dumps(microvm_root.limits(shape, record)) + "\n")
    environment = {
        "HOME": str(directory / "disk"),
        "PATH": _path_with_python(directory),
        ENV_MARK: mark,
        "TOKENSWEEP_LIMITS": str(limits_path),
    }
    username = pwd.getpwuid(os.geteuid()).pw_name
    with socket.create_server((HOST, 0), backlog=64) as listener:
        record = replace(record, address=HOST, ssh_port=listener.getsockname()[1], username=username)
        config: dict[str, Any] = {
            **base_config(state, spec, record),
            "isolation": ISOLATION,
            "memory_bytes": shape.memory_bytes,
            "listen_fd": listener.fileno(),
            "environment": environment,
            "ssh": _ssh(directory, spec, username, environment),
        }
        with Launch(state, record, listener.fileno()) as launch:
            record = launch.fork(config)
            state.update(record)
            launch.go([])
            if not config["ssh"]["per_connection"]:  # it listens before the program that answers is up
                launch.wait_for_banner()
    return record


def _path_with_python(directory: Path) -> str:
    if ssh.system_python():
        return ssh.SYSTEM_PATH
    (directory / "bin").mkdir()
    (directory / "bin/python3").symlink_to(ssh.controller_python())
    return f"{directory / 'bin'}:{ssh.SYSTEM_PATH}"


def _ssh(directory: Path, spec: CreateSpec, username: str, environment: dict[str, str]) -> dict[str, object]:
    folder = directory / "ssh"
    folder.mkdir(mode=0o700)
    host_key = _write(folder / "ssh_host_key", spec.host_private_key)
    authorized_keys = _write(folder / "authorized_keys", spec.client_public_key)
    if ssh.why_no_sshd_for_user():
        config = {
            "listen_fd": 3,
            "host_key": str(host_key),
            "authorized_keys": str(authorized_keys),
            "username": username,
            "environment": environment,
        }
        path = _write(folder / "ssh_server.json", json.dumps(config))
        # What this process can import, that one can; -P: the script's folder is not to be imported from.
        python = ["/usr/bin/env", f"PYTHONPATH={os.pathsep.join(filter(None, sys.path))}", sys.executable, "-P"]
        return {"argv": [*python, str(_SSH_SERVER), str(path)], "per_connection": False}
    # In the user's own shell, but with an empty HOME, and from there: no file of the user's own is read.
    login = _write(folder / "login", _LOGIN.format(shell=ssh.session_shell()))
    text = ssh.sshd_config(
        host_key=str(host_key),
        authorized_keys=str(authorized_keys),
        user=username,
        environment=environment,
        sftp=str(ssh.find_sftp_server()),
        force_command=f"exec /bin/sh {shlex.quote(str(login))}",
    )
    return {
        "argv": [ssh.find_sshd(), "-i", "-e", "-f", str(_write(folder / "sshd_config", text))],
        "per_connection": True,
    }


def _write(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text.strip() + "\n")
    return path
