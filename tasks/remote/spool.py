"""The controller's own copy of a server's event log, so that what was measured outlives both ends.

One JSON line per event, appended and flushed at once; results also reach the disk before `append` returns.
A process that dies in the middle of a line loses that line only, and the server is asked for it again.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from tasks.domain.errors import LandingError
from tasks.remote.tail import FINISHED

DURABLE_KINDS = frozenset({"BenchRow", FINISHED})


class Spool:
    """Opening makes the file and its directory, cuts off a half-written last line, and continues after the rest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._cut_half_line()
            _sync_directory(path.parent)
        except OSError as exc:
            self.close()
            raise self._error("opened", exc) from exc
        self._last_seq = _last_in_sequence(self.read_all())

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def last_seq(self) -> int:
        """The last event up to which none is missing; 0 when there is none."""
        return self._last_seq

    def append(self, event: dict[str, Any]) -> None:
        """Write one event. One that is there already is not written again. Raises LandingError."""
        seq = event["seq"]
        if seq <= self._last_seq:
            return
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes were written; the disk may be full")
            if event["kind"] in DURABLE_KINDS:
                os.fsync(self._fd)
        except OSError as exc:
            with contextlib.suppress(OSError):
                self._cut_half_line()
            raise self._error("written", exc) from exc
        if seq == self._last_seq + 1:
            self._last_seq = seq

    def read_all(self) -> list[dict[str, Any]]:
        """Every whole event, each once, in order of seq. Damaged lines are left out."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError as exc:
            raise self._error("read", exc) from exc
        events = (event for line in lines if (event := _event(line)) is not None)
        return [event for _, event in sorted({event["seq"]: event for event in events}.items())]

    def close(self) -> None:
        """A second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _cut_half_line(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._fd, whole)

    def _error(self, what: str, exc: OSError) -> LandingError:
        return LandingError(
            f"The local copy of the event log, {self.path}, cannot be {what}: {exc}.",
            reason="spool",
            next_step="Make room or permit writing there; events that are not in it are read from the server again.",
        )


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(event, dict) and type(event.get("seq")) is int and isinstance(event.get("kind"), str)
    return event if whole else None


def _last_in_sequence(events: list[dict[str, Any]]) -> int:
    last = 0
    for event in events:
        if event["seq"] != last + 1:
            break
        last = event["seq"]
    return last


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
