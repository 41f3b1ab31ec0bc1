"""Download one file: resumable, retried over mirrors, watched for stalls, hashed while it arrives.

Runs as a process of its own (`fetch_command`), so that it can be stopped and continued by signals and gets
only processor time that nobody else wants. All its timers count awake seconds: a stopped process does not age.
"""

from __future__ import annotations

import errno
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable

from agent.connection import Connection
from agent.http_range import GONE, HttpFailure, open_range
from agent.mirrors import Mirrors
from agent.part_file import PartFile, free_bytes
from agent.segments import MIN_SPLIT_BYTES, Span

HASH_SLICE_BYTES = 16 << 20
TICK_S = 0.1
WRITEBACK_EVERY_S = 2.0
PIECE_S = 8.0
MAX_PIECE_BYTES = 256 << 20
KEEP_GAIN = 1.2
MAX_RESTARTS = 3
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RESTART = "restart"

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class FetchSpec:
    """What to fetch and how patiently.

    bytes: exact size, 0 where it is not known. stall_s: silence after which a connection is replaced. dead_s:
    seconds without any progress after which the download is dead. While one connection stays below
    slow_bytes_per_s for trial_s, another is tried, and kept if it adds at least a fifth. scheduling: "nice" takes
    at most about a tenth of a CPU from a busy machine, "idle" nothing, "normal" an equal share.
    """

    urls: tuple[str, ...]
    path: str
    bytes: int
    sha256: str = ""
    stall_s: float = 10.0
    dead_s: float = 60.0
    slow_bytes_per_s: float = 50e6
    trial_s: float = 2.0
    max_connections: int = 4
    min_split_bytes: int = MIN_SPLIT_BYTES
    progress_s: float = 1.0
    scheduling: str = "nice"


class FetchFailed(Exception):
    """`reason` is a value of tasks.domain.cells.Reason, or RESTART."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


class AwakeClock:
    """Seconds during which this process could run: being stopped for an hour counts as `longest_gap_s`."""

    def __init__(self, longest_gap_s: float = 0.5) -> None:
        self.now_s = 0.0
        self._longest_gap_s = longest_gap_s
        self._last = time.monotonic()

    def tick(self) -> None:
        now = time.monotonic()
        self.now_s += min(now - self._last, self._longest_gap_s)
        self._last = now


class Download:
    """One attempt to get the whole file. `run` is the supervising thread; the rest is called by connections."""

    def __init__(self, spec: FetchSpec, mirrors: Mirrors, report: Report) -> None:
        self.spec = spec
        self.mirrors = mirrors
        self.part = PartFile(Path(spec.path), spec.bytes, spec.sha256)
        self.clock = AwakeClock()
        self.ended = threading.Event()
        self.ranges_work = True
        self.saw_no_gguf = False
        self._report = report
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[int, Connection] = {}
        self._n_connections_made = 0
        self._verdict: FetchFailed | None = None
        self._piece_bytes = spec.min_split_bytes

    def run(self) -> str:
        """Fetch, check, and give the file its name; returns its sha256. Raises FetchFailed."""
        done = self.part.segments.bytes_done()
        self._report({"kind": "started", "bytes_total": self.spec.bytes, "bytes_resumed": done})
        needed, free = self.part.missing_on_disk_bytes(), free_bytes(self.part.path.parent)
        if needed > free:
            raise FetchFailed("disk_full", f"{needed} bytes are needed at {self.spec.path}, {free} are free")
        try:
            self._supervise()
        except OSError as exc:
            self.disk_failed(exc)
        finally:
            self.ended.set()
        if self._verdict is not None:
            raise self._verdict
        return self._finish()

    def _supervise(self) -> None:
        trial = ConnectionTrial(self)
        writeback_s = progress_s = self.clock.now_s
        reported = (
            time.monotonic()
        )  # on the clock on the wall: reports come steadily even where processor time does not
        progress_bytes = self.part.segments.bytes_done()
        while self._verdict is None and not self.part.hashed_all():
            self.clock.tick()
            now_s, done = self.clock.now_s, self.part.segments.bytes_done()
            if time.monotonic() - reported >= self.spec.progress_s:
                reported = time.monotonic()
                self.part.save()
                self._report({"kind": "progress", "bytes_done": done, "n_connections": len(self._connections)})
            if now_s - writeback_s >= WRITEBACK_EVERY_S:
                writeback_s = now_s
                self.part.start_writeback()
            if done != progress_bytes:
                progress_bytes, progress_s = done, now_s
            if done < self.spec.bytes:
                if now_s - progress_s >= self.spec.dead_s:
                    last = self.mirrors.last_failure
                    self.fail("download_dead", f"no byte arrived for {self.spec.dead_s:.0f} s; last failure: {last}")
                if not self._connections:
                    self.add_connection()
                trial.tick(now_s, done)
                self._wake.wait(TICK_S)
                self._wake.clear()
            self.part.hash_some(HASH_SLICE_BYTES)

    def _finish(self) -> str:
        sha256 = self.part.sha256()
        if self.spec.sha256 and sha256 != self.spec.sha256:
            raise FetchFailed("checksum", f"sha256 of {self.spec.path} is {sha256}, expected {self.spec.sha256}")
        self._report({"kind": "progress", "bytes_done": self.spec.bytes, "n_connections": 0})
        try:
            self.part.finish()
        except OSError as exc:
            self.disk_failed(exc)
        if self._verdict is not None:
            raise self._verdict
        return sha256

    def add_connection(self) -> bool:
        with self._lock:
            if self.ended.is_set() or len(self._connections) >= self.spec.max_connections:
                return False
            # The only connection is number 0, whatever came before: it must not give up.
            number = self._n_connections_made if self._connections else 0
            self._n_connections_made = number + 1
            connection = self._connections[number] = Connection(self, number)
        connection.start()
        return True

    def drop_connection(self) -> None:
        with self._lock:
            if len(self._connections) > 1:
                self._connections[max(self._connections)].leave.set()

    def set_rate(self, bytes_per_s: float) -> None:
        """Size the pieces for several connections by the rate: a new request about every 8 s."""
        piece = int(bytes_per_s * PIECE_S / max(1, len(self._connections)))
        self._piece_bytes = max(self.spec.min_split_bytes, min(MAX_PIECE_BYTES, piece))

    # ---- called by connections -----------------------------------------------------------------------

    def claim(self, number: int) -> Span | None:
        with self._lock:
            alone = len(self._connections) <= 1
        if alone or not self.ranges_work:
            return self.part.segments.claim(number, None, self.spec.min_split_bytes)
        return self.part.segments.claim(number, self._piece_bytes, self.spec.min_split_bytes)

    def connection_ended(self, number: int) -> None:
        with self._lock:
            self._connections.pop(number, None)
        self._wake.set()

    def fail(self, reason: str, detail: str) -> None:
        """End the download; the first verdict stands."""
        with self._lock:
            if self._verdict is None:
                self._verdict = FetchFailed(reason, detail)
        self.ended.set()
        self._wake.set()

    def restart(self, detail: str) -> None:
        self.fail(RESTART, detail)

    def all_mirrors_gone(self) -> None:
        reason = "not_gguf" if self.saw_no_gguf else "download_failed"
        self.fail(reason, f"no mirror serves the file: {self.mirrors.gone_details()}")

    def disk_failed(self, exc: OSError) -> None:
        self.fail("disk_full" if exc.errno in NO_SPACE else "download_failed", f"writing {self.spec.path}: {exc}")


class ConnectionTrial:
    """Adds a connection where the ones at work are slow, and keeps it only if it pays."""

    def __init__(self, download: Download) -> None:
        self._download = download
        self._settled = download.spec.max_connections <= 1
        self._rate_before: float | None = None
        self._since_s = download.clock.now_s
        self._since_bytes = download.part.segments.bytes_done()

    def tick(self, now_s: float, bytes_done: int) -> None:
        download, spec = self._download, self._download.spec
        elapsed_s = now_s - self._since_s
        if self._settled or elapsed_s < spec.trial_s:
            return
        rate = (bytes_done - self._since_bytes) / elapsed_s
        self._since_s, self._since_bytes = now_s, bytes_done
        if rate <= 0 or not download.ranges_work:
            return
        download.set_rate(rate)
        if self._rate_before is not None and rate < KEEP_GAIN * self._rate_before:
            download.drop_connection()
            self._settled = True
            return
        left = spec.bytes - bytes_done
        worth_it = left > 2 * max(spec.min_split_bytes, rate * spec.trial_s)
        added = rate < spec.slow_bytes_per_s and worth_it and download.add_connection()
        self._rate_before = rate if added else None


def size_at_mirrors(mirrors: Mirrors, stall_s: float, dead_s: float) -> int:
    """The file's size as the first mirror that answers tells it. Raises FetchFailed."""
    clock = AwakeClock(longest_gap_s=stall_s)
    while True:
        clock.tick()
        chosen = mirrors.choose(clock.now_s)
        if chosen is None:
            raise FetchFailed("download_failed", f"no mirror serves the file: {mirrors.gone_details()}")
        mirror, wait_s = chosen
        if clock.now_s >= dead_s:
            raise FetchFailed("download_dead", f"no mirror answered; last failure: {mirrors.last_failure}")
        if wait_s > 0:
            time.sleep(min(wait_s, TICK_S))
            continue
        try:
            reply = open_range(mirror.url, 0, 1, timeout_s=stall_s)
            reply.close()
            if reply.total_bytes:
                return reply.total_bytes
            raise HttpFailure(GONE, "the server does not tell how long the file is")
        except HttpFailure as failure:
            clock.tick()
            mirrors.failed(mirror, failure, clock.now_s)


def fetch(spec: FetchSpec, report: Report) -> None:
    """Download a file and report `started`, `progress`, and last `finished` or `failed`.

    A file whose checksum is wrong is fetched once more, from the next mirror; one that changed at the server,
    or that cannot be continued, is begun anew up to three times.
    """
    mirrors = Mirrors(spec.urls)
    restarts = checksums = 0
    if spec.bytes <= 0:
        try:
            spec = replace(spec, bytes=size_at_mirrors(mirrors, spec.stall_s, spec.dead_s))
        except FetchFailed as failure:
            report({"kind": "failed", "reason": failure.reason, "detail": failure.detail})
            return
    while True:
        download = Download(spec, mirrors, report)
        try:
            sha256 = download.run()
            break
        except FetchFailed as failure:
            download.part.discard()
            checksums += failure.reason == "checksum"
            restarts += failure.reason == RESTART
            if failure.reason == "checksum" and checksums == 1:
                mirrors.move_on()
            elif failure.reason != RESTART or restarts > MAX_RESTARTS:
                reason = "download_failed" if failure.reason == RESTART else failure.reason
                report({"kind": "failed", "reason": reason, "detail": failure.detail})
                return
    n_retries = mirrors.n_failures + restarts + checksums
    report({"kind": "finished", "bytes": spec.bytes, "sha256": sha256, "n_retries": n_retries})
