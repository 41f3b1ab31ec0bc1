"""The process that reads one model's GGUF header by ranged requests, and nothing more of the file."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from agent.http_range import HttpFailure, open_range
from agent.mirrors import Mirrors
from tasks.domain.gguf import NeedMoreBytes, NotGguf, parse_header

FIRST_BYTES = 512 * 1024


class _Prefix:
    """The file's first bytes as far as they were asked for; grows, never reads a byte twice from one mirror."""

    def __init__(self, mirrors: Mirrors, total_bytes: int, stall_s: float, dead_s: float) -> None:
        self.data = b""
        self._mirrors = mirrors
        self.total_bytes = total_bytes
        self._stall_s = stall_s
        self._until_s = time.monotonic() + dead_s

    def grow(self, n: int) -> dict[str, Any] | None:
        """Have at least `n` bytes; None, or the failure as values."""
        while len(self.data) < self._bounded(n):
            now_s = time.monotonic()
            chosen = self._mirrors.choose(now_s)
            if chosen is None:
                return _failed("download_failed", f"no mirror serves the file: {self._mirrors.gone_details()}")
            mirror, wait_s = chosen
            if now_s + wait_s > self._until_s:
                last = self._mirrors.last_failure
                return _failed("download_dead", f"the header did not arrive; last failure: {last}")
            time.sleep(wait_s)
            try:
                self._read(mirror.url, n)
            except HttpFailure as failure:
                self._mirrors.failed(mirror, failure, time.monotonic())
        return None

    def _bounded(self, n: int) -> int:
        return min(n, self.total_bytes) if self.total_bytes else n

    def _read(self, url: str, n: int) -> None:
        reply = open_range(url, len(self.data), self._bounded(n), timeout_s=self._stall_s)
        try:
            self.total_bytes = self.total_bytes or reply.total_bytes or 0
            n = self._bounded(n)
            if not reply.ranged:
                self.data = b""
            buffer = memoryview(bytearray(n - len(self.data)))
            while len(self.data) < n:
                got = reply.read_into(buffer[: n - len(self.data)])
                if got == 0:
                    raise HttpFailure("broken", f"the body ended {n - len(self.data)} bytes early")
                self.data += buffer[:got]
        finally:
            reply.close()


def _failed(reason: str, detail: str) -> dict[str, Any]:
    return {"kind": "header_failed", "reason": reason, "detail": detail}


def read_header(urls: tuple[str, ...], total_bytes: int, stall_s: float = 10.0, dead_s: float = 60.0) -> dict[str, Any]:
    """`{"kind": "header", "header": ...}`, or `header_failed` with reason and detail. total_bytes: 0 where unknown."""
    prefix = _Prefix(Mirrors(urls), total_bytes, stall_s, dead_s)
    wanted = FIRST_BYTES
    while True:
        failure = prefix.grow(wanted)
        if failure is not None:
            return failure
        try:
            return {"kind": "header", "header": parse_header(prefix.data, prefix.total_bytes or None).to_dict()}
        except NeedMoreBytes as more:
            if 0 < prefix.total_bytes <= len(prefix.data):
                return _failed("not_gguf", f"the header does not end within {len(prefix.data)} bytes")
            wanted = more.n
        except NotGguf as exc:
            return _failed("not_gguf", str(exc))


def main() -> int:
    """Read what stdin asks for; one JSON line to stdout."""
    os.nice(19)
    raw = json.load(sys.stdin)
    values = read_header(**{**raw, "urls": tuple(raw["urls"])})
    sys.stdout.write(json.dumps(values) + "\n")
    return 0
