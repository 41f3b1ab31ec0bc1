"""The state folder: one directory per server, and the locks that keep creates, deletes and listings apart.

    <state>/vms/<name>/server.json   the record; there before anything else is made, gone after everything else is
    <state>/vms/<name>/deleting      a delete has begun: whatever is still starting must give up
    <state>/vms/<name>/disk/         the server's disk
    <state>/vms/.new-*, .gone-*      a directory before it has its name, and after

A record appears and changes by rename alone, so that no instant of a kill leaves half of one. Locks are flocks on
the directories themselves: they end with their holder, and leave no file behind.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tasks.domain.errors import CleanupError, ConfigError

LOCK_TIMEOUT_S = 60.0
RECORD = "server.json"
DELETING = "deleting"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One server as its create described it. init_pid 0: its first process was never heard of."""

    id: str
    name: str
    token: str
    server_type: str
    isolation: str
    cpus: tuple[int, ...]
    created_unix_s: float
    deadline_unix_s: float
    tags: dict[str, str] = field(default_factory=dict)
    address: str = ""
    ssh_port: int = 0
    username: str = ""
    init_pid: int = 0
    init_start_ticks: int = 0
    boot_id: str = ""

    @classmethod
    def from_json(cls, text: str) -> Record:
        data: dict[str, Any] = json.loads(text)
        known = {f.name for f in fields(cls)}
        data = {key: value for key, value in data.items() if key in known}
        return cls(**{**data, "cpus": tuple(data["cpus"])})


def default_state_dir() -> Path:
    """$TOKENSWEEP_LOCAL_STATE, else a folder of the system (root) or of the user."""
    configured = os.environ.get("TOKENSWEEP_LOCAL_STATE")
    if configured:
        return Path(configured)
    if os.geteuid() == 0:
        return Path("/var/lib/tokensweep/local")
    return Path.home() / ".local/state/tokensweep/local"


class StateDir:
    """All servers of one state folder. `tag` is in the name of everything they bring, so that folders do not mix."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        if set(str(self.root)) & set('"\n%'):
            raise ConfigError(
                f"the state folder {str(self.root)!r} has a quote, a percent sign or a line break in its name, which "
                "the configuration of sshd cannot carry.",
                next_step="Choose another with TOKENSWEEP_LOCAL_STATE.",
            )
        self.vms = self.root / "vms"
        self.tag = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]

    # -- records --

    def directory(self, name: str) -> Path:
        return self.vms / name

    def names(self) -> list[str]:
        """Names of all servers, whether or not their record can be read."""
        return sorted(entry for entry in self._entries() if _is_name(entry))

    def leftovers(self) -> list[str]:
        """Directories without a name that a killed create or delete left. Call it under `lock`."""
        return sorted(entry for entry in self._entries() if entry.startswith(".") and not self._is_locked(entry))

    def read(self, name: str) -> Record | None:
        """None when there is no such server. Raises ValueError when its record cannot be understood."""
        if not _is_name(name):
            return None
        try:
            text = (self.directory(name) / RECORD).read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return Record.from_json(text)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"{self.directory(name) / RECORD} is not a server record: {exc}") from exc

    @contextmanager
    def add(self, record: Record) -> Iterator[None]:
        """Make the server's directory, and hold its lock. Call it under `lock`, when the name is free."""
        self.vms.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self.vms / f".new-{uuid.uuid4().hex}"
        new.mkdir(mode=0o700)
        handle = _open_directory(new)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            (new / "disk").mkdir(mode=0o700)
            _write_atomically(new / RECORD, record)
            new.rename(self.directory(record.name))
            yield
        finally:
            os.close(handle)

    def update(self, record: Record) -> None:
        """Replace the record. Call it under the server's lock."""
        _write_atomically(self.directory(record.name) / RECORD, record)

    # -- deletion --

    def mark_deleting(self, name: str) -> None:
        with suppress(FileNotFoundError):
            (self.directory(name) / DELETING).touch()

    def is_deleting(self, name: str) -> bool:
        return (self.directory(name) / DELETING).exists()

    def bury(self, name: str) -> None:
        """Remove the directory: out of sight first, so that the name is free, and its record last of all."""
        gone = self.vms / f".gone-{uuid.uuid4().hex}"
        try:
            self.directory(name).rename(gone)
        except FileNotFoundError:
            return
        self.remove_leftover(gone.name)

    def remove_leftover(self, entry: str) -> None:
        """Remove a directory that `leftovers` named; silent when it is gone already."""
        if not entry.startswith((".new-", ".gone-")) or "/" in entry:
            raise CleanupError(f"{entry!r} is not a leftover of {self.vms}; nothing was removed.")
        directory = self.vms / entry
        try:
            children = sorted(directory.iterdir(), key=lambda child: child.name == RECORD)
        except FileNotFoundError:
            return
        for child in children:
            if child.is_dir() and not child.is_symlink():
                _remove_tree(child)
            else:
                child.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            directory.rmdir()

    # -- locks --

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other creates, and listings of what lies around, out; held for milliseconds."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = _open_directory(self.root)
        try:
            _flock(handle, fcntl.LOCK_EX, f"the state folder {self.root}")
            yield
        finally:
            os.close(handle)

    @contextmanager
    def lock_server(self, name: str) -> Iterator[bool]:
        """Hold one server's lock; yields False when there is no such server (any more)."""
        try:
            handle = _open_directory(self.directory(name)) if _is_name(name) else -1
        except FileNotFoundError:
            handle = -1
        if handle < 0:
            yield False
            return
        try:
            _flock(handle, fcntl.LOCK_EX, f"local server {name}")
            yield self._is_still(handle, self.directory(name))
        finally:
            os.close(handle)

    def lease_network(self) -> int:
        """A file descriptor that keeps the network up until it is closed, or its process ends."""
        self.vms.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = _open_directory(self.vms)
        _flock(handle, fcntl.LOCK_SH, f"the network of {self.root}")
        return handle

    def network_is_leased(self) -> bool:
        """Whether a live process holds a lease. Call it under the network's lock: two callers disturb each other."""
        return self._is_locked(".", fcntl.LOCK_EX)

    def is_busy(self, name: str) -> bool:
        """Whether somebody is creating or deleting the server right now."""
        return self._is_locked(name)

    def _is_locked(self, entry: str, how: int = fcntl.LOCK_SH) -> bool:
        try:
            handle = _open_directory(self.vms / entry)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def _entries(self) -> list[str]:
        try:
            return [entry.name for entry in self.vms.iterdir()]
        except FileNotFoundError:
            return []

    @staticmethod
    def _is_still(handle: int, directory: Path) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), directory.stat())
        except FileNotFoundError:
            return False


def _is_name(name: str) -> bool:
    """Whether it can be a directory of a server: a path, or the directory itself, cannot."""
    return bool(name) and "/" not in name and not name.startswith(".")


def _open_directory(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY)


def _flock(handle: int, how: int, what: str) -> None:
    end = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise CleanupError(
                    f"{what} has been locked by another process for {LOCK_TIMEOUT_S:.0f} s.",
                    reason="locked",
                    next_step="See which one with fuser, then try again.",
                ) from None
            time.sleep(0.005)


def _write_atomically(path: Path, record: Record) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(asdict(record), indent=1) + "\n")
    temporary.replace(path)


def _remove_tree(top: Path) -> None:
    try:
        shutil.rmtree(top)
    except PermissionError:  # a server may leave folders that their own owner cannot enter
        top.chmod(stat.S_IRWXU)
        for folder, below, _ in os.walk(top):
            for path in (Path(folder, name) for name in below):
                if not path.is_symlink():
                    path.chmod(stat.S_IRWXU)
        shutil.rmtree(top)
