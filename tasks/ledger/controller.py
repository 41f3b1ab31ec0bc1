"""Who owns a resource or a server run: one process, named so that its death can be proven later.

The name goes into the ledger and into the resource's tags. A process id alone proves nothing: ids are used again,
and another machine or container has its own. So the name holds machine, boot, process-id namespace, process id and
start time, as hashes and numbers that fit every vendor's tags.
"""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tasks.domain.reaping import Liveness

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # fixed by the kernel (PROC_PID_INIT_INO)


@dataclass(frozen=True, kw_only=True)
class Controller:
    """machine: hash of machine id and host name, "0" in a container, where neither names the machine.

    boot: hash of the kernel's boot id, "0" where there is none (other systems than Linux).
    start_ticks: start of the process in clock ticks since boot, which no change of the clock moves.
    """

    machine: str
    boot: str
    pid_namespace: int
    pid: int
    start_ticks: int

    def tag(self) -> str:
        return f"{self.machine}-{self.boot}-{self.pid_namespace}-{self.pid}-{self.start_ticks}"


def hostname() -> str:
    return socket.gethostname()


def this_process() -> Controller:
    return _identify(os.getpid())


@cache
def _identify(pid: int) -> Controller:
    """Keyed by pid, so that a forked child does not pass for its parent."""
    namespace = _pid_namespace()
    machine_id = _read("/etc/machine-id") if namespace == _INITIAL_PID_NAMESPACE else ""
    return Controller(
        machine=_hash(f"{machine_id}|{hostname()}") if machine_id else "0",
        boot=_hash(boot_id) if (boot_id := _read("/proc/sys/kernel/random/boot_id")) else "0",
        pid_namespace=namespace,
        pid=pid,
        start_ticks=_start_ticks(pid) or 0,
    )


def parse(tag: str) -> Controller | None:
    """Read a controller's name; None when it is not one."""
    try:
        machine, boot, namespace, pid, start_ticks = tag.split("-")
        return Controller(
            machine=machine, boot=boot, pid_namespace=int(namespace), pid=int(pid), start_ticks=int(start_ticks)
        )
    except ValueError:
        return None


def liveness(tag: str) -> Liveness:
    """Whether the named process still runs. UNKNOWN wherever this process cannot see it, so DEAD is a proof.

    DEAD takes the same boot and the same process-id namespace without that process (a zombie is dead), or the same
    machine outside containers after another boot.
    """
    there, here = parse(tag), this_process()
    if there is None or "0" in (there.boot, here.boot) or not here.start_ticks or not there.start_ticks:
        return Liveness.UNKNOWN
    if there.boot != here.boot:
        rebooted = there.machine == here.machine != "0"
        return Liveness.DEAD if rebooted else Liveness.UNKNOWN
    if there.pid_namespace != here.pid_namespace or not here.pid_namespace:
        return Liveness.UNKNOWN
    if _start_ticks(there.pid) == there.start_ticks:
        return Liveness.ALIVE
    return Liveness.UNKNOWN if _hidden(there.pid) else Liveness.DEAD


def _hidden(pid: int) -> bool:
    """Whether a process of that id exists although /proc does not show it (hidepid, another user)."""
    if _read(f"/proc/{pid}/stat"):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return not _read(f"/proc/{pid}/stat")


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); None when there is no such process or only its zombie."""
    stat = _read(f"/proc/{pid}/stat")
    if not stat:
        return None
    state, *fields = stat[stat.rindex(")") + 2 :].split()  # the name before it may hold anything, ")" included
    return None if state in "ZXx" else int(fields[18])


def _pid_namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
