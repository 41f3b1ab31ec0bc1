"""What tests of local servers need: specs with fresh keys, paramiko with a pinned host key, a look at the machine."""

from __future__ import annotations

import base64
import io
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.clouds.base import CreateSpec, Resource
from tasks.clouds.local import LocalCloud

PATIENCE_S = 30.0


def new_keys() -> tuple[str, str]:
    """A private and a public key as OpenSSH writes them."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.OpenSSH, ser.NoEncryption()).decode()
    return private, key.public_key().public_bytes(ser.Encoding.OpenSSH, ser.PublicFormat.OpenSSH).decode()


class Order:
    """A spec, and the private key that fits it."""

    def __init__(self, server_type: str = "cpu1-mem256m-400mbit", *, name: str = "", ttl_s: float = 300.0) -> None:
        host_private, host_public = new_keys()
        self.client_private, client_public = new_keys()
        name = name or f"test-{uuid.uuid4().hex[:12]}"
        self.spec = CreateSpec(
            intent_id=f"intent-of-{name}",
            name=name,
            token=f"token-of-{name}",
            server_type=server_type,
            place="localhost",
            deadline_unix_s=time.time() + ttl_s,
            sweep_id="sweep-1",
            server_run_id="run-1",
            client_public_key=client_public,
            host_private_key=host_private,
            host_public_key=host_public,
            tags={"tokensweep-controller": "test"},
        )

    @contextmanager
    def connect(self, server: Resource, *, host_public_key: str = "") -> Iterator[paramiko.SSHClient]:
        """Only the host key of the spec is accepted, or the other one that is given."""
        kind, blob = (host_public_key or self.spec.host_public_key).split()[:2]
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        host = server.address if server.ssh_port == 22 else f"[{server.address}]:{server.ssh_port}"
        client.get_host_keys().add(host, kind, paramiko.Ed25519Key(data=base64.b64decode(blob)))
        try:
            client.connect(
                server.address,
                server.ssh_port,
                server.username,
                pkey=paramiko.Ed25519Key.from_private_key(io.StringIO(self.client_private)),
                allow_agent=False,
                look_for_keys=False,
                timeout=PATIENCE_S,
                banner_timeout=PATIENCE_S,
                auth_timeout=PATIENCE_S,
            )
            yield client
        finally:
            client.close()


def run(client: paramiko.SSHClient, command: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    stdin, stdout, stderr = client.exec_command(command, timeout=PATIENCE_S)
    stdin.close()
    out, err = stdout.read().decode(), stderr.read().decode()
    return stdout.channel.recv_exit_status(), out, err


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE_S} s in vain: {what}"
        time.sleep(0.02)


def processes_with(text: str) -> list[str]:
    """Every process of the machine whose environment, command line or working folder has the text."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            shown = [
                (entry / "environ").read_bytes(),
                (entry / "cmdline").read_bytes(),
                bytes((entry / "cwd").readlink()),
            ]
        except OSError:
            continue  # a zombie, or somebody else's
        if any(os.fsencode(text) in part for part in shown):
            found.append(f"{entry.name} {shown[1].decode(errors='replace')}")
    return found


def traces(cloud: LocalCloud, tag: str) -> list[str]:
    """All that is on the machine of a state folder, found without the product's own listing."""
    found = processes_with(tag) + processes_with(str(cloud.state_dir))
    found += [f"interface {name}" for _, name in socket.if_nameindex() if tag in name]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/*{tag}*")]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(cloud.state_dir) in line]
    found += [str(path) for path in (cloud.state_dir / "vms").glob("*")]
    found += [str(path) for path in (cloud.state_dir / "vms").glob(".*")]
    return found
