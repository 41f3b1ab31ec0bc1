"""Every process of local servers, found by what it inherited and can hardly shed.

Three signs, each enough: the mark (a resource limit, see `server_init.put_mark`), $TOKENSWEEP_VM in the environment it
was started with (a process that has not marked itself yet), and descent from a process with one of these.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.clouds.local.server_init import ENV_MARK, MARK_BASE, MARK_VM_BITS, mark_of
from tasks.domain.errors import CleanupError

KILL_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Process:
    """pid and start_ticks together name one process for ever; a pid alone may be another's by the time it is used."""

    pid: int
    start_ticks: int
    mark: int
    command: str


@dataclass(frozen=True)
class _Stat:
    parent: int
    start_ticks: int
    command: str


def vm_mark(tag: str, name: str) -> int:
    """The mark of one server. tag: of its state folder, 8 hex digits."""
    digest = hashlib.sha256(f"{tag}/{name}".encode()).digest()
    return MARK_BASE | int(tag, 16) << MARK_VM_BITS | int.from_bytes(digest[:4], "big") >> (32 - MARK_VM_BITS)


def env_mark(tag: str, name: str) -> str:
    return f"{tag}-{name}"


def find(tag: str, name: str | None = None) -> list[Process]:
    """The live processes of one server, or of all servers of a state folder."""
    stats = {pid: stat for pid in _pids() if (stat := _read_stat(pid)) is not None}
    marks = {pid: mark for pid in stats if (mark := _own_mark(pid, tag)) != 0}
    for pid in stats:  # a child of a marked process is of the same server
        line: list[int] = []
        ancestor = pid
        while ancestor in stats and ancestor not in marks and len(line) < len(stats):
            line.append(ancestor)
            ancestor = stats[ancestor].parent
        if ancestor in marks:
            marks.update(dict.fromkeys(line, marks[ancestor]))
    wanted = vm_mark(tag, name) if name is not None else None
    return [
        Process(pid, stats[pid].start_ticks, mark, stats[pid].command)
        for pid, mark in sorted(marks.items())
        if wanted is None or mark == wanted
    ]


def is_alive(pid: int, start_ticks: int) -> bool:
    stat = _read_stat(pid)
    return stat is not None and stat.start_ticks == start_ticks


def start_ticks(pid: int) -> int:
    """0 when there is no such process."""
    stat = _read_stat(pid)
    return stat.start_ticks if stat else 0


def started_unix_s(process: Process) -> float:
    booted_unix_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted_unix_s + process.start_ticks / os.sysconf("SC_CLK_TCK")


def boot_id() -> str:
    """Names this boot of the machine: pids of another mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def kill(processes: Iterable[Process]) -> None:
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            handle = os.pidfd_open(process.pid)
            try:
                if is_alive(process.pid, process.start_ticks):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def kill_all(tag: str, name: str) -> None:
    """Kill until two scans in a row find none. Raises CleanupError when some do not die."""
    end = time.monotonic() + KILL_TIMEOUT_S
    empty_scans = 0
    while empty_scans < 2:
        found = find(tag, name)
        empty_scans = 0 if found else empty_scans + 1
        kill(found)
        if not found:
            continue
        if time.monotonic() > end:
            raise still_alive(f"local server {name}", found)
        time.sleep(0.002)


def still_alive(what: str, found: list[Process]) -> CleanupError:
    return CleanupError(
        f"{what}: {len(found)} processes do not die, pid {found[0].pid} ({found[0].command}) among them.",
        reason="process_alive",
        next_step="The delete is tried again at the next reap.",
    )


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read_stat(pid: int) -> _Stat | None:
    """None for a zombie too: nothing of it is left but its exit status."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    head, _, tail = text.rpartition(")")
    columns = tail.split()
    if columns[0] in "ZX" and columns[17] == "1":  # with other threads alive, only its first one is dead
        return None
    return _Stat(parent=int(columns[1]), start_ticks=int(columns[19]), command=head.partition("(")[2])


def _own_mark(pid: int, tag: str) -> int:
    mark = mark_of(pid)
    if mark:
        return mark if mark >> MARK_VM_BITS == MARK_BASE >> MARK_VM_BITS | int(tag, 16) else 0
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return 0
    prefix = f"{ENV_MARK}={tag}-".encode()
    for variable in environment.split(b"\0"):
        if variable.startswith(prefix):
            return vm_mark(tag, variable[len(prefix) :].decode(errors="replace"))
    return 0
