"""One ranged HTTP GET: redirects followed, the answer's range checked, every failure given a kind."""

from __future__ import annotations

import http.client
import re
import select
import socket
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

if TYPE_CHECKING:
    import ssl

MAX_REDIRECTS = 6
CONNECT_TIMEOUT_S = 10.0
GATHER_S = 0.01
USER_AGENT = "tokensweep-agent"
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)$")

BROKEN = "broken"  # connection lost, refused, timed out, truncated, 5xx: try again
BUSY = "busy"  # 429 or 503: try again, not before retry_after_s
GONE = "gone"  # 4xx: this mirror will not serve the file
CHANGED = "changed"  # the mirror's file is another one than before


class HttpFailure(Exception):
    def __init__(self, kind: str, detail: str, *, retry_after_s: float = 0.0, timed_out: bool = False) -> None:
        self.kind = kind
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.timed_out = timed_out
        super().__init__(f"{kind}: {detail}")


@dataclass
class RangeReply:
    """An open answer. `first_byte` is where the body begins; `total_bytes` is the file's size, None when not told.

    `validator` names this version of the file (strong ETag, else Last-Modified), "" where there is none.
    """

    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse
    first_byte: int
    total_bytes: int | None
    ranged: bool
    validator: str
    _body_left: int | None = field(init=False)

    def __post_init__(self) -> None:
        self._body_left = self.response.length

    def read_into(self, view: memoryview) -> int:
        """Bytes put into `view` by one read, 0 at the end. Raises HttpFailure."""
        try:
            if self._body_left is None:  # chunked
                data = self.response.read1(len(view))
                view[: len(data)] = data
                return len(data)
            # One read straight into our buffer; HTTPResponse.readinto would wait until the buffer is full.
            n = int(self.response.fp.readinto1(view[: self._body_left])) if self._body_left else 0
            self._body_left -= n
            return n
        except socket.timeout as exc:
            raise HttpFailure(BROKEN, "no byte arrived in time", timed_out=True) from exc
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as exc:
            raise HttpFailure(BROKEN, f"connection lost: {exc!r}") from exc

    def let_bytes_gather(self) -> None:
        """Wait a little when all that has arrived was read: one large read costs less processor than many small ones.

        The kernel's buffer holds megabytes, so nothing is lost at any rate.
        """
        sock = self.connection.sock or getattr(self.response.fp.raw, "_sock", None)
        if sock is None or getattr(sock, "pending", int)():
            return
        try:
            if not select.select([sock], [], [], 0)[0]:
                time.sleep(GATHER_S)
        except (OSError, ValueError):
            return  # the next read tells what is wrong

    def close(self) -> None:
        self.response.close()
        self.connection.close()


def open_range(url: str, first: int, end: int | None, *, validator: str = "", timeout_s: float = 10.0) -> RangeReply:
    """GET bytes [first, end) of a file; `end` None asks for the rest. Raises HttpFailure.

    With a validator a changed file is never spliced: the server then sends it whole, and that raises CHANGED.
    A server that ignores ranges answers with first_byte 0 and ranged False, which the caller must check.
    """
    headers = {
        "User-Agent": USER_AGENT,
        "Accept-Encoding": "identity",
        "Range": f"bytes={first}-" + ("" if end is None else str(end - 1)),
    }
    if validator and first > 0:
        headers["If-Range"] = validator
    for _ in range(MAX_REDIRECTS):
        connection, response = _get(url, headers, timeout_s)
        if response.status in (301, 302, 303, 307, 308) and response.headers.get("Location"):
            url = urljoin(url, response.headers["Location"])
            response.close()
            connection.close()
            continue
        try:
            return _checked(connection, response, first, validator)
        except BaseException:
            response.close()
            connection.close()
            raise
    raise HttpFailure(GONE, f"more than {MAX_REDIRECTS} redirects")


def _get(
    url: str, headers: dict[str, str], timeout_s: float
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise HttpFailure(GONE, f"{url!r} is not an http or https address")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connect_s = min(CONNECT_TIMEOUT_S, timeout_s)
    try:
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=connect_s, context=_tls_context()
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=connect_s)
    except (ValueError, http.client.InvalidURL) as exc:
        raise HttpFailure(GONE, f"{url!r} is not a usable address: {exc}") from exc
    try:
        connection.connect()
        connection.sock.settimeout(timeout_s)
        connection.request("GET", target, headers=headers)
        return connection, connection.getresponse()
    except socket.timeout as exc:
        connection.close()
        raise HttpFailure(BROKEN, f"{parts.netloc} did not answer in time", timed_out=True) from exc
    except (OSError, http.client.HTTPException, ValueError) as exc:
        connection.close()
        kind = GONE if hasattr(exc, "verify_code") else BROKEN  # a certificate does not heal by asking again
        raise HttpFailure(kind, f"{parts.netloc}: {exc!r}") from exc


@lru_cache(maxsize=1)
def _tls_context() -> ssl.SSLContext:
    """Made once: reading the certificates of the system costs more than a handshake."""
    import ssl

    return ssl.create_default_context()


def _checked(
    connection: http.client.HTTPConnection, response: http.client.HTTPResponse, first: int, validator: str
) -> RangeReply:
    status = response.status
    headers = response.headers
    if status in (200, 206):
        found = _validator(headers.get("ETag", ""), headers.get("Last-Modified", ""))
        if validator and found and found != validator:
            raise HttpFailure(CHANGED, f"the file changed from version {validator} to {found}")
        if status == 200:
            return RangeReply(connection, response, 0, response.length, False, found)
        match = CONTENT_RANGE.match(headers.get("Content-Range", ""))
        if not match:
            raise HttpFailure(BROKEN, f"unusable Content-Range {headers.get('Content-Range')!r}")
        if int(match.group(1)) != first:
            raise HttpFailure(BROKEN, f"asked for byte {first}, was sent {match.group(0)!r}")
        total = None if match.group(3) == "*" else int(match.group(3))
        return RangeReply(connection, response, first, total, True, found)
    detail = f"HTTP {status} {response.reason}"
    if status == 416:
        raise HttpFailure(CHANGED, f"{detail}: the file ends before byte {first}")
    if status in (429, 503):
        raise HttpFailure(BUSY, detail, retry_after_s=_retry_after_s(headers.get("Retry-After", "")))
    if 400 <= status < 500 and status != 408:
        raise HttpFailure(GONE, detail)
    raise HttpFailure(BROKEN, detail)


def _validator(etag: str, last_modified: str) -> str:
    return last_modified if not etag or etag.startswith("W/") else etag


def _retry_after_s(value: str) -> float:
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, IndexError):
        return 0.0
