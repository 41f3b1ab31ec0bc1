"""What the emulated object stores share: containers of objects, uploads in parts, paged listings, and serving.

An emulated store answers what tokensweep's client sends and refuses all else: a request that it does not know, a
signature that is wrong, a part that is too small.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

from werkzeug.serving import WSGIRequestHandler, make_server

from tests.emulators.base import StartResponse

_REASONS = {200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content", 400: "Bad Request",
            401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 411: "Length Required",
            416: "Range Not Satisfiable", 501: "Not Implemented"}  # fmt: skip


@dataclass(frozen=True)
class StoredObject:
    """One object; generation: counts the writes of the whole store."""

    data: bytes
    generation: int
    modified_s: float

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.data, usedforsecurity=False).hexdigest()}-{self.generation}"'

    @property
    def modified_http(self) -> str:
        return formatdate(self.modified_s, usegmt=True)

    @property
    def modified_iso(self) -> str:
        return datetime.fromtimestamp(self.modified_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


@dataclass
class Container:
    """A bucket or container. uploads: parts by upload id."""

    objects: dict[str, StoredObject] = field(default_factory=dict)
    uploads: dict[str, dict[str, bytes]] = field(default_factory=dict)
    _writes: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def put(self, name: str, data: bytes) -> StoredObject:
        self.objects[name] = StoredObject(data, next(self._writes), time.time())
        return self.objects[name]

    def page(self, prefix: str, after: str, size: int) -> tuple[list[tuple[str, StoredObject]], str]:
        """The next objects in the order of their names, and the name to go on after, "" at the end."""
        names = sorted(name for name in self.objects if name.startswith(prefix) and name > after)
        shown = names[:size]
        return [(name, self.objects[name]) for name in shown], shown[-1] if len(names) > size else ""


@dataclass(frozen=True)
class Call:
    """One request. raw_path: as it came, percent-encoded; headers: lower case."""

    method: str
    raw_path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def names(self) -> tuple[str, str]:
        """First segment of the path and the rest, decoded."""
        first, _, rest = self.raw_path.lstrip("/").partition("/")
        return unquote(first), unquote(rest)


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class RefusedCall(Exception):
    """The store refuses, in its own words."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Store(Protocol):
    """One emulated store. calls: method and query names of each request so far."""

    calls: list[str]

    def answer(self, call: Call) -> Answer:
        """Answer one call, or raise RefusedCall."""
        ...


def ranged(found: StoredObject, call: Call, headers: Mapping[str, str]) -> Answer:
    """The object, or the part of it that a Range asks for."""
    asked = call.headers.get("range")
    if asked is None:
        return Answer(200, found.data, headers)
    first, _, last = asked.removeprefix("bytes=").partition("-")
    if not asked.startswith("bytes=") or not first.isdigit() or int(first) >= len(found.data):
        raise RefusedCall(416, "InvalidRange", f"The range {asked} cannot be satisfied.")
    end = min(int(last), len(found.data) - 1) if last else len(found.data) - 1
    span = f"bytes {first}-{end}/{len(found.data)}"
    return Answer(206, found.data[int(first) : end + 1], {**headers, "Content-Range": span})


def only(call: Call, known: Iterable[str]) -> None:
    """Refuse parameters that the emulator does not know: the client speaks more than is emulated."""
    unknown = sorted(set(call.query) - set(known))
    if unknown:
        raise RefusedCall(501, "NotImplemented", f"Parameters that are not emulated: {', '.join(unknown)}")


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        return None


@contextmanager
def serving(store: Store) -> Iterator[str]:
    """Serve it from a thread of this process; gives the base URL."""
    lock = threading.Lock()

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        call = _call_of(environ)
        with lock:
            store.calls.append(" ".join([call.method, *sorted(call.query)]))
            try:
                answer = store.answer(call)
            except RefusedCall as exc:
                text = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{exc.code}</Code>'
                text += f"<Message>{exc.message}</Message></Error>"
                answer = Answer(exc.status, text.encode(), {"x-ms-error-code": exc.code})
        headers = {"Content-Type": "application/xml", "Content-Length": str(len(answer.body)), **answer.headers}
        start_response(f"{answer.status} {_REASONS[answer.status]}", list(headers.items()))
        return [b"" if call.method == "HEAD" else answer.body]

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def _call_of(environ: Mapping[str, Any]) -> Call:
    headers = {k[5:].replace("_", "-").lower(): v for k, v in environ.items() if k.startswith("HTTP_")}
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    query = dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
    return Call(environ["REQUEST_METHOD"], environ["RAW_URI"].partition("?")[0], query, headers, body)
