"""A way to Prefect's API that loses answers and goes away: plain TCP, so that everything else passes as it is."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

CREATE = b"/create_flow_run"
CHUNK_BYTES = 1 << 16


class LossyApi:
    """Listens on a port of its own. `lose`: numbers of the creates, from 1, that are carried out and whose answer is
    lost with its connection; `stall`: whose answer never comes while the connection stands. create: what stands in the
    first line of a request that is one."""

    def __init__(
        self, port: int, *, lose: tuple[int, ...] = (), stall: tuple[int, ...] = (), create: bytes = CREATE
    ) -> None:
        self._to, self._lose, self._stall, self._create = port, lose, stall, create
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._away = False
        self.n_creates = self.n_answered = self.n_refused = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def away(self) -> None:
        """Cut every connection, and every new one, until `back`."""
        with self._lock:
            self._away = True
            cut, self._open = list(self._open), set()
        for connection in cut:
            _close(connection)

    def back(self) -> None:
        with self._lock:
            self._away = False

    def close(self) -> None:
        self.away()
        _close(self._listener)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                away = self._away
                self.n_refused += away
            if away:
                _close(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                _close(client)
                continue
            with self._lock:
                self._open |= {client, server}
            fate: list[str] = []
            threading.Thread(target=self._requests, args=(client, server, fate), daemon=True).start()
            threading.Thread(target=self._answers, args=(server, client, fate), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, fate: list[str]) -> None:
        with suppress(OSError):
            while data := client.recv(CHUNK_BYTES):
                if self._create in data.split(b"\r\n", 1)[0]:
                    with self._lock:
                        self.n_creates += 1
                        number = self.n_creates
                    if number in self._lose:
                        fate.append("lose")
                    elif number in self._stall:
                        fate.append("stall")
                server.sendall(data)
        _close(server)

    def _answers(self, server: socket.socket, client: socket.socket, fate: list[str]) -> None:
        with suppress(OSError):
            while data := server.recv(CHUNK_BYTES):
                if "lose" in fate:
                    break
                if "stall" in fate:
                    with self._lock:
                        self.n_answered += 1
                    continue
                client.sendall(data)
        _close(client)
        _close(server)


def _close(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
