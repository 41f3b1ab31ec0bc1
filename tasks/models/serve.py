"""An HTTP server for model files, with Range and with links of a chosen speed.

`/<file>` is as fast as the machine; `/link/<name>/<file>` shares the speed of the link `name` among all of its
connections, so a local server type can have the network of a real one. The server takes CPU from benchmarks on the same
machine, so it reads and sends in large chunks: 0.3 CPU seconds per GB at full speed, 1.5 % of a CPU at 25 MB/s.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tasks.domain.errors import ConfigError, TokensweepError
from tasks.models.ranged_file import Link, RangedFileResponse

IP_FREEBIND = 15  # Linux; the socket module does not name it
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0


def model_app(directory: Path, links: Mapping[str, float] | None = None) -> Starlette:
    """The ASGI application that serves the plain files of `directory`. links: name -> bytes per second."""
    shaped = {name: Link(bytes_per_s) for name, bytes_per_s in (links or {}).items()}

    async def unshaped_file(request: Request) -> Response:
        return _file_response(request, directory, None)

    async def shaped_file(request: Request) -> Response:
        link = shaped.get(request.path_params["link"])
        if link is None:
            return PlainTextResponse(f"no such link; links: {', '.join(sorted(shaped))}\n", status_code=404)
        return _file_response(request, directory, link)

    return Starlette(
        routes=[
            Route("/link/{link}/{file}", shaped_file, methods=["GET", "HEAD"]),
            Route("/{file}", unshaped_file, methods=["GET", "HEAD"]),
        ]
    )


def _file_response(request: Request, directory: Path, link: Link | None) -> Response:
    name = request.path_params["file"]
    path = directory / name
    if name.startswith(".") or "/" in name or "\0" in name or not path.is_file():
        return PlainTextResponse("no such file\n", status_code=404)
    return RangedFileResponse.of(path, request.headers, link)


class ModelServer:
    """Serves a folder from a background thread until `stop`, or as a context manager.

    The address need not exist yet (Linux): a bridge may be made later. `wrap` puts ASGI middleware around the
    application. Raises ConfigError when the address cannot be bound.
    """

    def __init__(
        self,
        directory: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        links: Mapping[str, float] | None = None,
        wrap: Callable[[ASGIApp], ASGIApp] | None = None,
    ) -> None:
        self.directory = directory
        self.host = host
        self.links = dict(links or {})
        app: ASGIApp = model_app(directory, self.links)
        self._config = uvicorn.Config(
            wrap(app) if wrap else app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(self._config)
        self._wanted_port = port
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()

    @property
    def port(self) -> int:
        if self._socket is None:
            raise ConfigError("The model server has no port before it is started.")
        return int(self._socket.getsockname()[1])

    def url(self, file: str, link: str | None = None) -> str:
        """Where `file` is, at full speed or over a link. Raises ConfigError for a link that was not declared."""
        if link is not None and link not in self.links:
            raise ConfigError(
                f"The model server has no link {link!r}.",
                next_step=f"Links: {', '.join(sorted(self.links)) or 'none'}.",
            )
        path = quote(file) if link is None else f"link/{quote(link)}/{quote(file)}"
        return f"http://{self.host}:{self.port}/{path}"

    def start(self) -> Self:
        """Bind and serve; returns when connections are accepted."""
        if self._thread is not None:
            return self
        self._socket = _bound_socket(self.host, self._wanted_port)
        self._server = uvicorn.Server(self._config)
        self._started.clear()
        serve = self._serve_until_told(self._socket)
        self._thread = threading.Thread(target=asyncio.run, args=(serve,), name="model-server", daemon=True)
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S) or not self._server.started:
            self.stop()
            raise TokensweepError(f"The model server at {self.host} did not start.", reason="model_server")
        return self

    def stop(self) -> None:
        """Stop serving and cut open downloads. A second call does nothing."""
        if self._thread is None or self._socket is None:
            return
        self._server.should_exit = True
        self._thread.join(STOP_TIMEOUT_S)
        self._socket.close()
        self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _serve_until_told(self, bound: socket.socket) -> None:
        serving = asyncio.ensure_future(self._server.serve(sockets=[bound]))
        while not self._server.started and not serving.done():
            await asyncio.sleep(0.002)
        self._started.set()
        await serving


def _bound_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if os.uname().sysname == "Linux":
        bound.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    try:
        bound.bind((host, port))
    except OSError as exc:
        bound.close()
        raise ConfigError(
            f"The model server cannot listen at {host}:{port}: {exc.strerror or exc}.",
            next_step="Choose another address, or port 0 for any free port.",
        ) from exc
    return bound
