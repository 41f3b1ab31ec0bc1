"""Emulated servers as real micro-VMs: their user data decides who logs in and which host key they show."""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tasks.clouds.base import CreateSpec, ErrorKind, Ref
from tasks.clouds.guest import USERNAME
from tasks.clouds.local import LocalCloud, LocalCloudError
from tests.emulators.base import Guest

LIFETIME_S = 3600.0
POLL_S = 0.3


class MicroVms:
    """Boots each guest as a micro-VM of one CPU; waits while none is free, as a full vendor's queue does.

    link_mbit: what all get. memory_mib: what they really get, whatever was paid for.
    """

    def __init__(self, state_dir: Path, *, link_mbit: int = 400, memory_mib: int = 768) -> None:
        self.cloud = LocalCloud(state_dir, "microvm")
        self.server_type = f"cpu1-mem{memory_mib}m-{link_mbit}mbit"
        self._addresses: dict[str, str] = {}
        self._stopped: set[str] = set()
        self._starting: dict[str, threading.Thread] = {}

    def start(self, guest: Guest) -> None:
        if not guest.user_data:
            return  # somebody else's: it exists and bills, and nobody here looks into it
        thread = threading.Thread(target=self._boot, args=(guest,), daemon=True)
        self._starting[guest.cloud_id] = thread
        thread.start()

    def address(self, cloud_id: str) -> str:
        return self._addresses.get(cloud_id, "")

    def stop(self, cloud_id: str) -> None:
        self._stopped.add(cloud_id)
        self._addresses.pop(cloud_id, None)
        starting = self._starting.pop(cloud_id, None)
        if starting is not None:
            starting.join()
        self.cloud.delete(Ref(vendor="local", place="", name=_name(cloud_id)))

    def close(self) -> None:
        for cloud_id in list(self._starting):
            self.stop(cloud_id)
        self.cloud.close()

    def _boot(self, guest: Guest) -> None:
        spec = self._spec(guest)
        while guest.cloud_id not in self._stopped:
            try:
                server = self.cloud.create(spec)
            except LocalCloudError as exc:
                if exc.kind is not ErrorKind.CAPACITY:
                    raise
                time.sleep(POLL_S)
                continue
            self._addresses[guest.cloud_id] = server.address
            break
        if guest.cloud_id in self._stopped:
            self._addresses.pop(guest.cloud_id, None)

    def _spec(self, guest: Guest) -> CreateSpec:
        """What cloud-init would do with the user data, done by the micro-VM's own means."""
        told = _cloud_config(guest.user_data)
        (user,) = (u for u in told["users"] if u["name"] == USERNAME)
        return CreateSpec(
            intent_id=f"guest-{_name(guest.cloud_id)}",
            name=_name(guest.cloud_id),
            token=guest.cloud_id,
            server_type=self.server_type,
            place="localhost",
            deadline_unix_s=time.time() + LIFETIME_S,
            sweep_id="emulated",
            server_run_id="emulated",
            client_public_key=user["ssh_authorized_keys"][0],
            host_private_key=told["ssh_keys"]["ed25519_private"],
            host_public_key=told["ssh_keys"]["ed25519_public"],
        )


def _cloud_config(user_data: str) -> dict[str, Any]:
    if not user_data.startswith("#cloud-config\n"):
        raise ValueError(f"cloud-init would ignore this user data: {user_data[:40]!r}")
    told: dict[str, Any] = yaml.safe_load(user_data)
    timer = told["bootcmd"][0]
    if timer[:2] != ["sh", "-c"] or "systemctl poweroff" not in timer[2]:
        raise ValueError(f"the first command does not arm the deadline: {timer}")
    with suppress(KeyError):
        if told["ssh_pwauth"]:
            raise ValueError("passwords are allowed")
    return told


def _name(cloud_id: str) -> str:
    """A server name of the micro-VM, whatever the vendor's ids look like."""
    return f"vm-{hashlib.sha256(cloud_id.encode()).hexdigest()[:12]}"
