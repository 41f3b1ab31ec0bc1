"""An emulator that answers in the same thread, without sockets and TLS: thousands of runs send a million requests.

All five SDKs send through urllib3. What they make of a request and of an answer stays theirs; only the way between is
shortened, from the point at which urllib3 would open a connection.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.connectionpool import HTTPConnectionPool

from tests.contract.world import VendorWorld
from tests.emulators.base import WsgiApp
from tests.emulators.serving import FaultyApp


@contextmanager
def direct(world: VendorWorld) -> Iterator[VendorWorld]:
    """Until the end, every request to the world's emulator is answered without a connection. Worlds that are no
    emulator of an API are left as they are."""
    emulator, address = getattr(world, "emulator", None), urlsplit(getattr(world, "url", ""))
    if emulator is None or address.port is None:
        yield world
        return
    original, app, here = HTTPConnectionPool._make_request, FaultyApp(emulator), address.port

    def make_request(pool: HTTPConnectionPool, conn: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        if pool.port != here:
            return original(pool, conn, method, url, *args, **kwargs)
        body = kwargs.get("body", args[0] if args else None)
        headers = kwargs.get("headers", args[1] if len(args) > 1 else None) or {}
        status, told, content = _call(app, _environ(pool, method, url, _read(body), headers))
        return urllib3.HTTPResponse(
            body=io.BytesIO(content),
            headers=told,
            status=status,
            preload_content=kwargs.get("preload_content", True),
            decode_content=kwargs.get("decode_content", True),
            request_method=method,
            request_url=url,
            retries=kwargs.get("retries"),
        )

    HTTPConnectionPool._make_request = make_request  # type: ignore[method-assign]
    try:
        yield world
    finally:
        HTTPConnectionPool._make_request = original  # type: ignore[method-assign]


def _call(app: WsgiApp, environ: dict[str, Any]) -> tuple[int, list[tuple[str, str]], bytes]:
    answers: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: Iterable[tuple[str, str]], *_: Any) -> Callable[[bytes], None]:
        answers.append((status, [*headers]))
        return lambda data: None

    try:
        content = b"".join(app(environ, start_response))
    except ConnectionAbortedError as exc:
        raise urllib3.exceptions.ProtocolError("Connection aborted.", exc) from exc
    (status, headers) = answers[-1]
    return int(status.split(" ", 1)[0]), headers, content


def _read(body: Any) -> bytes:
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode()
    return bytes(body) if isinstance(body, bytes | bytearray) else bytes(body.read())


def _environ(pool: HTTPConnectionPool, method: str, url: str, body: bytes, headers: Any) -> dict[str, Any]:
    """As a WSGI server gives it (PEP 3333)."""
    parts = urlsplit(url)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote(parts.path, "latin-1"),
        "QUERY_STRING": parts.query,
        "REQUEST_URI": url,
        "RAW_URI": url,
        "SERVER_NAME": pool.host,
        "SERVER_PORT": str(pool.port),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": f"{pool.host}:{pool.port}",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": pool.scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in headers.items():
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        key = str(name.decode() if isinstance(name, bytes) else name).upper().replace("-", "_")
        if key == "CONTENT_TYPE":
            environ[key] = text
        elif key != "CONTENT_LENGTH":
            environ[f"HTTP_{key}"] = text
    return environ
