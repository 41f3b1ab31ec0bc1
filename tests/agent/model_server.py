"""A real HTTP server for model files, with the faults that real ones have."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

Fault = Callable[["_Handler", "Served", int, int], bool]
"""Handles one request for bytes [first, end) of a file; False lets the normal answer follow."""


def gguf_like(n_bytes: int, seed: int = 1) -> bytes:
    """Bytes that begin as a GGUF file does."""
    return b"GGUF" + random.Random(seed).randbytes(n_bytes - 4)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Served:
    """bytes_per_s: of each connection, 0 for as fast as it goes."""

    data: bytes
    etag: str = '"v1"'
    ranges: bool = True
    bytes_per_s: float = 0.0
    redirect_to: str = ""
    faults: deque[Fault] = field(default_factory=deque)
    max_open: int = 0
    n_open: int = 0
    most_open: int = 0


def status(code: int, **headers: str) -> Fault:
    """Answer with an error."""

    def handle(handler: _Handler, _file: Served, _first: int, _end: int) -> bool:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    return handle


def cut_after(n_bytes: int) -> Fault:
    """Close the connection after part of the body."""

    def handle(handler: _Handler, file: Served, first: int, end: int) -> bool:
        handler.send_head(file, first, end)
        handler.wfile.write(file.data[first : min(end, first + n_bytes)])
        return True

    return handle


def silent_after(n_bytes: int) -> Fault:
    """Send part of the body, then nothing, with the connection open."""

    def handle(handler: _Handler, file: Served, first: int, end: int) -> bool:
        handler.send_head(file, first, end)
        handler.wfile.write(file.data[first : min(end, first + n_bytes)])
        handler.wfile.flush()
        handler.model_server.closing.wait(60)
        return True

    return handle


def wrong_start(shift: int) -> Fault:
    """Answer with another range than was asked for."""

    def handle(handler: _Handler, file: Served, first: int, end: int) -> bool:
        handler.send_head(file, first + shift, end)
        handler.wfile.write(file.data[first + shift : end])
        return True

    return handle


class ModelServer:
    """`put` files, append to their `faults`, read `requests` (path, Range, If-Range)."""

    def __init__(self, key: Path | None = None, certificate: Path | None = None) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.connections: set[socket.socket] = set()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.model_server = self
        self._scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
            self._scheme = "https"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def put(self, path: str, data: bytes, *faults: Fault, **options: object) -> str:
        self.files[path] = Served(data, faults=deque(faults), **options)  # type: ignore[arg-type]
        return self.url(path)

    def url(self, path: str) -> str:
        return f"{self._scheme}://127.0.0.1:{self._http.server_address[1]}{path}"

    def drop_connections(self) -> None:
        """Reset every open connection."""
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> ModelServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    model_server: ModelServer

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    @property
    def model_server(self) -> ModelServer:
        return self.server.model_server

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.close_connection = True
        path = self.path.split("?")[0]
        wanted = self.headers.get("Range", "")
        self.model_server.requests.append((path, wanted, self.headers.get("If-Range", "")))
        file = self.model_server.files.get(path)
        if file is None:
            status(404)(self, Served(b""), 0, 0)
            return
        if file.redirect_to:
            status(302, Location=file.redirect_to)(self, file, 0, 0)
            return
        first, end = self._range(file, wanted)
        with self.model_server.lock:
            file.n_open += 1
            self.model_server.connections.add(self.connection)
            file.most_open = max(file.most_open, file.n_open)
            refused = bool(file.max_open) and file.n_open > file.max_open
            fault = file.faults.popleft() if file.faults else None
        try:
            if refused:
                status(429)(self, file, first, end)
            elif fault is None or not fault(self, file, first, end):
                self._send(file, first, end)
        except OSError:
            pass
        finally:
            with self.model_server.lock:
                file.n_open -= 1
                self.model_server.connections.discard(self.connection)
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def _range(self, file: Served, wanted: str) -> tuple[int, int]:
        total = len(file.data)
        version = self.headers.get("If-Range")
        if not file.ranges or not wanted.startswith("bytes=") or (version and version != file.etag):
            return 0, total
        first, _, last = wanted[6:].partition("-")
        return int(first), min(total, int(last) + 1 if last else total)

    def send_head(self, file: Served, first: int, end: int) -> None:
        partial = file.ranges and self.headers.get("Range") and not (first == 0 and end == len(file.data))
        partial = partial or (file.ranges and self.headers.get("Range") and not self.headers.get("If-Range"))
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(file.data)}")
        self.send_header("ETag", file.etag)
        self.send_header("Content-Length", str(end - first))
        self.end_headers()

    def _send(self, file: Served, first: int, end: int) -> None:
        self.send_head(file, first, end)
        step = int(file.bytes_per_s / 50) or end - first
        for at in range(first, end, step or 1):
            self.wfile.write(file.data[at : min(end, at + step)])
            if file.bytes_per_s:
                time.sleep(step / file.bytes_per_s)
