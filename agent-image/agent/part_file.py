"""The file while it is being downloaded: `NAME.part`, and `NAME.part.json` with what is there already."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

from agent.segments import Segments, Span

HASH_READ_BYTES = 1 << 20


def boot_id() -> str:
    """Changes with every boot; after one, bytes that were never forced to disk may be gone."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def free_bytes(folder: Path) -> int:
    """Bytes that an ordinary user may still write in a folder."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


class PartFile:
    """Takes bytes in any order, remembers which are there, hashes them in order, and becomes the file.

    What a killed download left is taken up when it was for the same file and the same boot; up to a second
    of its bytes is fetched again.
    """

    def __init__(self, path: Path, total_bytes: int, expected_sha256: str) -> None:
        self.path = path
        self.total_bytes = total_bytes
        self.validators: dict[str, str] = {}
        self._part = path.with_name(path.name + ".part")
        self._state = path.with_name(path.name + ".part.json")
        self._identity = {"bytes": total_bytes, "sha256": expected_sha256, "boot_id": boot_id()}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.segments = self._load() or Segments(total_bytes)
        self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o644)
        if self.segments.bytes_done() == 0:
            os.ftruncate(self._fd, 0)
        self._digest = hashlib.sha256()
        self._hashed_bytes = 0
        self._writeback: threading.Thread | None = None

    def _load(self) -> Segments | None:
        try:
            raw = json.loads(self._state.read_text(encoding="utf-8"))
            if raw["identity"] != self._identity:
                return None
            segments = Segments.from_list(self.total_bytes, raw["spans"])
            if self._part.stat().st_size < segments.last_byte():
                return None
            self.validators = dict(raw["validators"])
            return segments
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self) -> None:
        """Record what is there. Bytes are written before they are recorded, so a kill loses none that counts."""
        state = {"identity": self._identity, "validators": self.validators, "spans": self.segments.to_list()}
        temporary = self._state.with_name(self._state.name + ".new")
        temporary.write_text(json.dumps(state), encoding="utf-8")
        os.replace(temporary, self._state)

    def missing_on_disk_bytes(self) -> int:
        """Disk space that the rest of the file still needs."""
        return max(0, self.total_bytes - os.fstat(self._fd).st_blocks * 512)

    def write(self, span: Span, data: memoryview) -> None:
        """Put bytes at the span's position and move it on. Raises OSError."""
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], span.pos + done)
        self.segments.advance(span, done)

    def start_writeback(self) -> None:
        """Let the disk keep up while bytes arrive, so that the last fsync is short."""
        if self._writeback is None or not self._writeback.is_alive():
            self._writeback = threading.Thread(target=os.fdatasync, args=(self._fd,), daemon=True)
            self._writeback.start()

    def complete(self) -> bool:
        return self.segments.bytes_done() == self.total_bytes

    def hashed_all(self) -> bool:
        return self._hashed_bytes == self.total_bytes

    def hash_some(self, limit_bytes: int) -> None:
        """Hash on from where the last call stopped, as far as the file is there without a gap."""
        end = min(self.segments.prefix_bytes(), self._hashed_bytes + limit_bytes)
        while self._hashed_bytes < end:
            block = os.pread(self._fd, min(HASH_READ_BYTES, end - self._hashed_bytes), self._hashed_bytes)
            if not block:
                raise OSError(f"{self._part} is shorter than what was written to it")
            self._digest.update(block)
            self._hashed_bytes += len(block)

    def sha256(self) -> str:
        return self._digest.hexdigest()

    def finish(self) -> None:
        """Force the bytes to disk and give the file its name. Raises OSError."""
        os.fsync(self._fd)
        os.replace(self._part, self.path)
        self._state.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what is there. A connection that still writes does so into a file that has no name any more."""
        self._part.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)
