"""The event log: numbered JSON lines, appended and never rewritten.

One line is `{"seq": 7, "unix_s": ..., "kind": "BenchRow", "t_s": ..., ...}`, `seq` first, so that a reader
can number lines without parsing them. A line without its newline was never written, for every reader.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

EVENTS_FILE = "events.jsonl"
SYNCED_KINDS = frozenset({"AgentStarted", "BenchRow", "AgentError", "Finished"})
TAIL_BLOCK_BYTES = 65536


def seq_of(line: bytes) -> int:
    """The number of a line, or 0 when it is not a line of an event log."""
    if not line.startswith(b'{"seq":'):
        return 0
    number = line[7 : line.find(b",", 7)]
    return int(number) if number.isdigit() else 0


def read_events(path: Path) -> list[dict[str, Any]]:
    """Every complete line of a log as values; none where there is no log."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if seq_of(line)]


def _finite(value: Any) -> Any:
    """The value with null for every number that JSON has not."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _last_good_line(path: Path) -> tuple[int, int]:
    """Where the last complete numbered line ends, and its number; (0, 0) where there is none."""
    with path.open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        data = b""
        start = end
        while start > 0:
            step = min(TAIL_BLOCK_BYTES, start)
            start -= step
            log.seek(start)
            data = log.read(step) + data
            stop = data.rfind(b"\n") + 1
            while stop > 0:
                begin = data.rfind(b"\n", 0, stop - 1) + 1
                if begin == 0 and start > 0:
                    break  # the line begins in an earlier block
                seq = seq_of(data[begin:stop])
                if seq:
                    return start + stop, seq
                stop = begin
    return 0, 0


class EventLog:
    """Appends lines to RUN_DIR/events.jsonl. Opening a log again continues its numbers.

    What an interrupted writer left after the last complete line is cut off: no reader has seen it.
    """

    def __init__(self, path: Path) -> None:
        path.touch(exist_ok=True)
        end, self.last_seq = _last_good_line(path)
        os.truncate(path, end)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._sync_wanted = threading.Event()
        self._closing = False
        self._syncer = threading.Thread(target=self._sync_loop, name="eventlog-sync", daemon=True)
        self._syncer.start()

    def append(self, kind: str, values: dict[str, Any]) -> int:
        """Write one line and return its number. Important kinds reach the disk soon after; `close` waits for that."""
        seq = self.last_seq + 1
        head = {"seq": seq, "unix_s": round(time.time(), 6), "kind": kind}
        try:
            line = json.dumps({**head, **values}, separators=(",", ":"), allow_nan=False, default=str)
        except ValueError:
            line = json.dumps({**head, **_finite(values)}, separators=(",", ":"), default=str)
        data = line.encode() + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]
        self.last_seq = seq
        if kind in SYNCED_KINDS:
            self._sync_wanted.set()
        return seq

    def close(self) -> None:
        self._closing = True
        self._sync_wanted.set()
        self._syncer.join()
        os.fsync(self._fd)
        os.close(self._fd)

    def _sync_loop(self) -> None:
        """fsync apart from the event loop: a slow disk must not delay the time stamps of repeats."""
        while not self._closing:
            self._sync_wanted.wait()
            self._sync_wanted.clear()
            os.fsync(self._fd)
