"""Follow an event log: complete lines after a number, in order, each once."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Iterator

from agent.eventlog import EVENTS_FILE, seq_of
from agent.lifecycle import live_pid

POLL_S = 0.1
HEARTBEAT_S = 5.0
LIVENESS_S = 1.0
READ_BYTES = 1 << 20
EXIT_AGENT_DEAD = 3


class LogReader:
    """Yields the complete lines that were appended since the last call.

    An incomplete line is read again from its beginning next time: a restarted agent cuts it off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._offset = 0

    def lines(self) -> Iterator[bytes]:
        if self._fd is None:
            try:
                self._fd = os.open(self._path, os.O_RDONLY)
            except FileNotFoundError:
                return
        size = READ_BYTES
        while True:
            block = os.pread(self._fd, size, self._offset)
            complete = block.rfind(b"\n") + 1
            if complete == 0 and len(block) < size:
                return
            if complete == 0:
                size *= 2
                continue
            self._offset += complete
            yield from block[:complete].splitlines(keepends=True)


def _send(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def _copy_new_lines(reader: LogReader, after: int) -> tuple[int, bool]:
    """Print what is new; the last number printed, and whether the run's last line was among it."""
    batch = []
    finished = False
    for line in reader.lines():
        seq = seq_of(line)
        if seq > after:
            after = seq
            batch.append(line)
        finished = finished or b'"kind":"Finished"' in line[:120]
    _send(b"".join(batch))
    return after, finished


def tail(run_dir: Path, after: int, follow: bool) -> int:
    """Print lines with a number above `after`; with `follow`, until the Finished line.

    Returns 0 at the end of a run (or of the log, without `follow`), and 3 when the agent died without
    finishing. An empty line every 5 s of silence lets a broken connection be noticed.
    """
    reader = LogReader(run_dir / EVENTS_FILE)
    alive = True
    checked = sent = time.monotonic()
    try:
        while True:
            seen = after
            after, finished = _copy_new_lines(reader, after)
            if finished or not follow:
                return 0
            if not alive:
                return EXIT_AGENT_DEAD
            now = time.monotonic()
            if after != seen:
                sent = now
            if now - sent >= HEARTBEAT_S:
                _send(b"\n")
                sent = now
            if now - checked >= LIVENESS_S or seen == after == 0:
                alive = live_pid(run_dir) is not None  # when dead, what it wrote last is still copied once
                checked = now
            if alive:
                time.sleep(POLL_S)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
