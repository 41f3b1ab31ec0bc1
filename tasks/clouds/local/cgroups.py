"""Memory, CPU and process limits of micro-VMs: one cgroup per server, under one per state folder.

Both cgroup versions: 1 has a hierarchy per controller, 2 has one for all. Everything sits at the top of the
hierarchy, because a later process, in whatever cgroup of its own, must find it again.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.domain.errors import CleanupError, UnsupportedError

CONTROLLERS = ("memory", "cpuset", "pids")
MAX_PIDS = 4096
REMOVE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Hierarchy:
    """Where cgroups are made. mounts: by controller for version 1; of version 2 all three are the same."""

    version: int
    mounts: dict[str, Path]

    def folder(self, controller: str, tag: str) -> Path:
        return self.mounts[controller] / f"tokensweep-{tag}"

    def folders(self, tag: str) -> list[Path]:
        return list(dict.fromkeys(self.folder(controller, tag) for controller in CONTROLLERS))

    def make(self, tag: str, name: str, memory_bytes: int, cpus: Sequence[int]) -> None:
        """Make a server's cgroup with its limits. Call it under the lock of the state folder."""
        for folder in self.folders(tag):
            folder.mkdir(exist_ok=True)
            self._open_to_children(folder)
            (folder / name).mkdir(exist_ok=True)
        memory, cpuset, pids = (self.folder(controller, tag) / name for controller in CONTROLLERS)
        cpu_list = ",".join(map(str, cpus))
        if self.version == 1:
            (memory / "memory.limit_in_bytes").write_text(str(memory_bytes))
            (cpuset / "cpuset.mems").write_text((cpuset.parent / "cpuset.mems").read_text())
        else:
            (memory / "memory.max").write_text(str(memory_bytes))
            if (memory / "memory.swap.max").exists():
                (memory / "memory.swap.max").write_text("0")
        (cpuset / "cpuset.cpus").write_text(cpu_list)
        (pids / "pids.max").write_text(str(MAX_PIDS))

    def procs_files(self, tag: str, name: str) -> list[str]:
        """The files that a process writes its pid to in order to come under the limits."""
        return [str(folder / name / "cgroup.procs") for folder in self.folders(tag)]

    def views(self, tag: str, name: str) -> dict[str, str]:
        """The server's own cgroup at the paths where a container sees its own: path inside -> folder here."""
        if self.version == 2:
            return {"/sys/fs/cgroup": str(self.folder("memory", tag) / name)}
        return {f"/sys/fs/cgroup/{c}": str(self.folder(c, tag) / name) for c in CONTROLLERS}

    def names(self, tag: str) -> list[str]:
        """Servers of which there is a cgroup."""
        found: set[str] = set()
        for folder in self.folders(tag):
            with suppress(FileNotFoundError):
                found |= {entry.name for entry in folder.iterdir() if entry.is_dir()}
        return sorted(found)

    def remove(self, tag: str, name: str) -> None:
        """Remove a server's cgroup, whose processes are dead; silent when it is gone. Raises CleanupError."""
        end = time.monotonic() + REMOVE_TIMEOUT_S
        for folder in self.folders(tag):
            while not _remove_folder(folder / name):
                if time.monotonic() > end:
                    raise CleanupError(
                        f"cgroup {folder / name} still has processes: {_first_line(folder / name / 'cgroup.procs')}.",
                        reason="cgroup_busy",
                        next_step="The delete is tried again at the next reap.",
                    )
                time.sleep(0.005)

    def remove_folder_if_empty(self, tag: str) -> None:
        """Call it under the lock of the state folder."""
        for folder in self.folders(tag):
            with suppress(OSError):
                folder.rmdir()

    def folder_exists(self, tag: str) -> bool:
        return any(folder.exists() for folder in self.folders(tag))

    def _open_to_children(self, folder: Path) -> None:
        """What the kernel wants of a parent before its children may have limits."""
        if self.version == 1:
            for setting in ("cpuset.cpus", "cpuset.mems"):
                own = folder / setting
                if own.exists() and not own.read_text().strip():
                    effective = folder.parent / setting.replace("cpuset.", "cpuset.effective_")
                    own.write_text(effective.read_text())
            return
        _delegate(folder.parent)
        _delegate(folder)


class NoCgroupsError(UnsupportedError):
    """This machine has no cgroups of the kinds that are needed."""


def find(mounts_text: str | None = None) -> Hierarchy:
    """The hierarchy of this machine, from its table of mounts. Raises NoCgroupsError."""
    text = Path("/proc/self/mounts").read_text() if mounts_text is None else mounts_text
    version_1: dict[str, Path] = {}
    version_2: Path | None = None
    for line in text.splitlines():
        _, mount_point, fstype, options, *_ = line.split()
        if fstype == "cgroup":
            version_1 |= {c: Path(mount_point) for c in CONTROLLERS if c in options.split(",")}
        elif fstype == "cgroup2":
            version_2 = version_2 or Path(mount_point)
    if len(version_1) == len(CONTROLLERS):
        return Hierarchy(1, version_1)
    if version_1:
        raise NoCgroupsError(f"cgroup controllers {', '.join(sorted(set(CONTROLLERS) - set(version_1)))} are missing")
    if version_2 is None:
        raise NoCgroupsError("no cgroups are mounted")
    return Hierarchy(2, dict.fromkeys(CONTROLLERS, version_2))


def why_unusable() -> str:
    """Why this process may not make cgroups with limits, or "" when it may. Makes none."""
    try:
        hierarchy = find()
        for mount in hierarchy.mounts.values():
            if not os.access(mount, os.W_OK):
                return f"{mount} cannot be written to"
        if hierarchy.version == 2:
            _delegate(hierarchy.mounts["memory"])
    except NoCgroupsError as exc:
        return exc.message
    except OSError as exc:
        return f"the cgroup controllers {', '.join(CONTROLLERS)} cannot be used: {exc.strerror}"
    return ""


def _delegate(folder: Path) -> None:
    """Version 2: let the children of a cgroup have limits."""
    control = folder / "cgroup.subtree_control"
    missing = set(CONTROLLERS) - set(control.read_text().split())
    if missing:
        control.write_text(" ".join(f"+{controller}" for controller in sorted(missing)))


def _remove_folder(folder: Path) -> bool:
    """True when it is gone."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as exc:
        if exc.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
        return False
    return True


def _first_line(path: Path) -> str:
    try:
        return "pid " + path.read_text().split("\n", 1)[0]
    except OSError:
        return "none that can be read"
