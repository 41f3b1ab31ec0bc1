"""Serves an emulator over HTTP or TLS, with the faults that do not depend on the vendor."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server

from tests.emulators.base import Emulator, Fault, StartResponse

_HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        return None


@dataclass
class FaultyApp:
    """The emulator's application behind a network and a gateway that fail as planted."""

    emulator: Emulator

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        fault = self.emulator.faults.take(self.emulator.operation(environ))
        if fault is None:
            return self.emulator.app(environ, start_response)
        if fault.how == "code":
            return self.emulator.error(fault.code, environ, start_response)
        if not fault.after:
            return _fail(fault, b"{}", environ, start_response)
        told: list[Any] = []
        body = b"".join(self.emulator.app(environ, lambda *answer: told.append(answer)))
        return _fail(fault, body, environ, start_response)


def _fail(fault: Fault, body: bytes, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    connection: socket.socket = environ["werkzeug.socket"]
    if fault.how == "hang":
        select.select([connection], [], [], fault.seconds)  # until the client has had enough, and closes
    if fault.how == "html_502":
        start_response("502 Bad Gateway", [("Content-Type", "text/html"), ("Content-Length", str(len(_HTML)))])
        return [_HTML]
    if fault.how == "truncated":
        cut = body[: len(body) // 2]
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(cut)))])
        return [cut]
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


@contextmanager
def served(
    emulator: Emulator, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Serve it from a thread of this process; gives the base URL."""
    server = make_server(host, port, FaultyApp(emulator), threaded=True, request_handler=_Quiet, ssl_context=tls)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
