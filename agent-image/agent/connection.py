"""One connection of a download: a thread that fetches spans one after another."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from agent.http_range import BROKEN, CHANGED, GONE, HttpFailure, RangeReply, open_range
from agent.mirrors import Mirror
from agent.segments import Span

if TYPE_CHECKING:
    from agent.download import Download

READ_BYTES = 1 << 20
WAIT_STEP_S = 0.1
GGUF_MAGIC = b"GGUF"


class Connection(threading.Thread):
    """Ends when nothing is left for it, when it is told to leave, or when the download has its verdict."""

    def __init__(self, download: Download, number: int) -> None:
        super().__init__(name=f"connection-{number}", daemon=True)
        self.leave = threading.Event()
        self._download = download
        self._number = number
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._last_byte_s = download.clock.now_s

    def run(self) -> None:
        download = self._download
        try:
            while not self._ending():
                span = download.claim(self._number)
                if span is None:
                    return
                try:
                    self._fetch(span)
                finally:
                    download.part.segments.release(span)
        except OSError as exc:
            download.disk_failed(exc)
        except Exception as exc:  # a thread must not die in silence
            download.fail("download_failed", f"unexpected {exc!r}")
        finally:
            download.connection_ended(self._number)

    def _ending(self) -> bool:
        return self.leave.is_set() or self._download.ended.is_set()

    def _fetch(self, span: Span) -> None:
        download = self._download
        chosen = download.mirrors.choose(download.clock.now_s)
        if chosen is None:
            download.all_mirrors_gone()
            return
        mirror, wait_s = chosen
        if wait_s > 0:
            download.ended.wait(min(wait_s, WAIT_STEP_S))
            return
        before = span.pos
        self._last_byte_s = download.clock.now_s
        try:
            self._transfer(span, mirror)
        except HttpFailure as failure:
            if failure.kind == CHANGED and not download.mirrors.others_left(mirror):
                download.restart(failure.detail)  # what is there cannot be continued from any mirror
                return
            quiet_s = download.clock.now_s - self._last_byte_s
            if failure.timed_out and quiet_s < 0.8 * download.spec.stall_s:
                return  # the silence was our own: the process was stopped. A new connection, and no failure
            if self._number > 0 and span.pos == before:
                self.leave.set()  # the server does not want so many connections
            download.mirrors.failed(mirror, failure, download.clock.now_s)

    def _transfer(self, span: Span, mirror: Mirror) -> None:
        download = self._download
        validator = download.part.validators.get(mirror.url, "")
        reply = open_range(mirror.url, span.pos, span.end, validator=validator, timeout_s=download.spec.stall_s)
        try:
            self._check_size(reply, span, mirror)
            if not reply.ranged:
                download.ranges_work = False
                if span.pos > 0:
                    raise HttpFailure(CHANGED, f"the server sent the whole file when asked from byte {span.pos}")
            download.part.validators.setdefault(mirror.url, reply.validator)
            while span.left > 0 and not self._ending():
                n = self._read(reply, span, mirror)
                download.part.write(span, self._buffer[:n])
                self._last_byte_s = download.clock.now_s
                mirror.failures = 0
                if span.left > 0:
                    reply.let_bytes_gather()
        finally:
            reply.close()

    def _check_size(self, reply: RangeReply, span: Span, mirror: Mirror) -> None:
        expected = self._download.spec.bytes
        if reply.total_bytes is None or reply.total_bytes == expected:
            return
        detail = f"the file has {reply.total_bytes} bytes, expected {expected}"
        head = memoryview(bytearray(len(GGUF_MAGIC)))
        if reply.first_byte == 0 and reply.read_into(head) == len(head) and bytes(head) != GGUF_MAGIC:
            self._download.saw_no_gguf = True
            detail += f", and begins with {bytes(head)!r} instead of {GGUF_MAGIC!r}"
        raise HttpFailure(GONE, detail)

    def _read(self, reply: RangeReply, span: Span, mirror: Mirror) -> int:
        limit = min(READ_BYTES, span.left)
        n = reply.read_into(self._buffer[:limit])
        while span.pos == 0 and 0 < n < min(len(GGUF_MAGIC), limit):
            more = reply.read_into(self._buffer[n:limit])
            if more == 0:
                break
            n += more
        if n == 0:
            raise HttpFailure(BROKEN, f"the body ended {span.left} bytes early")
        if span.pos == 0 and bytes(self._buffer[: min(n, 4)]) != GGUF_MAGIC:
            self._download.fail("not_gguf", f"{mirror.url} begins with {bytes(self._buffer[: min(n, 16)])!r}")
        return n
