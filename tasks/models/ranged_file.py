"""A response that sends a file or one range of it, at most as fast as a link."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tasks.domain.errors import ConfigError

CHUNK_BYTES = 1024 * 1024
"""Measured: 0.25 to 0.35 CPU seconds per GB, against 0.37 to 0.41 with 256 KiB and 0.62 with 64 KiB."""

MIN_CHUNK_BYTES = 4 * 1024
CHUNK_S = 0.05
"""On a link, a chunk is at most what the link carries in this time, so that its speed is even."""

BURST_S = 0.05
"""What a link that was idle may carry at once."""

_ONE_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Link:
    """A token bucket that all connections of one link share. Raises ConfigError for a speed that is not above 0."""

    def __init__(self, bytes_per_s: float) -> None:
        if not bytes_per_s > 0:
            raise ConfigError(f"A link of {bytes_per_s} bytes/s carries nothing.", next_step="Give it a speed above 0.")
        self.bytes_per_s = bytes_per_s
        self.chunk_bytes = max(MIN_CHUNK_BYTES, min(CHUNK_BYTES, int(bytes_per_s * CHUNK_S)))
        self._free_at_s = 0.0

    async def carry(self, n_bytes: int) -> None:
        """Return when the link has carried n_bytes more. Connections take turns in the order in which they ask."""
        now_s = asyncio.get_running_loop().time()
        self._free_at_s = max(self._free_at_s, now_s - BURST_S) + n_bytes / self.bytes_per_s
        wait_s = self._free_at_s - now_s
        if wait_s > 0:
            await asyncio.sleep(wait_s)


class RangedFileResponse(Response):
    """Sends bytes `start` to `end` (exclusive) of an open file; use `of`."""

    def __init__(self, fd: int, start: int, end: int, status_code: int, headers: Mapping[str, str], link: Link | None):
        super().__init__(status_code=status_code, headers=headers, media_type="application/octet-stream")
        self.headers["content-length"] = str(end - start)
        self.fd, self.start, self.end, self.link = fd, start, end, link

    @classmethod
    def of(cls, path: Path, request_headers: Mapping[str, str], link: Link | None) -> Response:
        """The response to a GET or HEAD of `path`: 200, 206, or 416 for a range outside the file."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            os.close(fd)
            return Response("not a file\n", status_code=404)
        size = info.st_size
        etag = f'"{size:x}-{info.st_mtime_ns:x}"'
        headers = {"accept-ranges": "bytes", "etag": etag}
        wanted = request_headers.get("range", "")
        if request_headers.get("if-range", etag) != etag:
            wanted = ""  # another version of the file: the caller gets the whole of this one
        bounds = _bounds(wanted, size)
        if bounds is None:
            return cls(fd, 0, size, 200, headers, link)
        start, end = bounds
        if start >= end:
            os.close(fd)
            return Response(status_code=416, headers={**headers, "content-range": f"bytes */{size}"})
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
        return cls(fd, start, end, 206, headers, link)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        disconnected = asyncio.ensure_future(_disconnect(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                await self._send_range(send, disconnected)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            disconnected.cancel()
            os.close(self.fd)

    async def _send_range(self, send: Send, disconnected: asyncio.Future[None]) -> None:
        chunk_bytes = self.link.chunk_bytes if self.link else CHUNK_BYTES
        at = self.start
        # `send` says nothing when the client is gone, and while the socket takes everything it never yields: without
        # the pause, this loop would shut out other connections and never hear of the disconnect.
        while at < self.end and not disconnected.done():
            chunk = os.pread(self.fd, min(chunk_bytes, self.end - at), at)
            if not chunk:
                raise OSError("the file was cut short while it was sent")
            if self.link:
                await self.link.carry(len(chunk))
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            at += len(chunk)
            await asyncio.sleep(0)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _bounds(value: str, size: int) -> tuple[int, int] | None:
    """(start, end) of a single byte range; None where the whole file is meant; start >= end where there is nothing."""
    match = _ONE_RANGE.fullmatch(value.replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    start = int(first)
    end = min(size, int(last) + 1) if last else size
    if last and int(last) < start:
        return None
    return start, end
