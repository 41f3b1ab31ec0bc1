"""What may be created here: with which isolation, under which name, and on which CPUs."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence

from tasks.clouds.base import CreateSpec, ErrorKind
from tasks.clouds.local import loopback, microvm
from tasks.clouds.local.server_types import MIB, Machine, Shape, parse
from tasks.clouds.local.state import Record
from tasks.domain.errors import ConfigError

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")


class LocalCloudError(Exception):
    """What this machine answered to a create; `LocalCloud.classify` says what it means."""

    def __init__(self, kind: ErrorKind, message: str, *, may_exist: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.may_exist = may_exist


def choose_isolation(wanted: str) -> tuple[str, str]:
    """The isolation that is used, and why. Raises ConfigError when micro-VMs are wanted and cannot be had."""
    if sys.platform != "linux":
        raise ConfigError(
            f"local servers need Linux, and this is {sys.platform}.",
            next_step="Use another vendor, or a Linux machine.",
        )
    if wanted == loopback.ISOLATION:
        return wanted, "asked for"
    why_not = microvm.why_not()
    if not why_not:
        return microvm.ISOLATION, "root, with namespaces, cgroups, iproute2 and sshd"
    if wanted == microvm.ISOLATION:
        raise ConfigError(
            f"micro-VMs cannot be made here: {why_not}.",
            reason="no_microvm",
            next_step="Choose isolation loopback or auto, or provide what is missing.",
        )
    return loopback.ISOLATION, why_not


def check_spec(spec: CreateSpec) -> None:
    """Raises ConfigError for what no server here can be made from."""
    if not _NAME.fullmatch(spec.name):
        raise ConfigError(
            f"{spec.name!r} cannot be the name of a local server.",
            next_step="Use up to 63 lower-case letters, digits and hyphens, a letter first.",
        )
    if spec.deadline_unix_s <= time.time():
        raise ConfigError(f"the deadline of local server {spec.name} has passed.", next_step="Plan it again.")


def allocate(shape: Shape, machine: Machine, live: Sequence[Record]) -> tuple[int, ...]:
    """The lowest CPUs that no live server holds. Raises LocalCloudError (capacity) when CPUs or memory do not suffice.

    Call it under the lock of the state folder, so that two creates do not get the same CPU.
    """
    held = {cpu: record.name for record in live for cpu in record.cpus}
    free = [cpu for cpu in machine.cpus if cpu not in held]
    if len(free) < shape.n_cpus:
        holders = ", ".join(sorted(set(held.values())))
        raise LocalCloudError(
            ErrorKind.CAPACITY, f"{shape.name} takes {shape.n_cpus} CPUs, and {len(free)} are free beside {holders}"
        )
    left_bytes = machine.memory_bytes - sum(parse(record.server_type).memory_bytes for record in live)
    if left_bytes < shape.memory_bytes:
        raise LocalCloudError(
            ErrorKind.CAPACITY,
            f"{shape.name}: of this machine's memory, {max(0, left_bytes) // MIB} MiB are promised to no server",
        )
    return tuple(free[: shape.n_cpus])
