"""Real SSH servers on loopback for tests, and a TCP proxy that cuts, freezes or refuses connections on demand.

`Sshd` is OpenSSH's sshd with a configuration of its own, as root or as any user. Where it is not installed,
`AsyncsshServer` takes its place; both run real commands in a real shell and serve real files.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh

from tasks.remote.keys import new_client_key, new_host_key
from tasks.remote.ssh import Endpoint

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """What both kinds have in common: a port, a home directory, and the keys that fit."""

    def __init__(self, directory: Path, port: int = 0) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.host_key, self.client_key = new_host_key(), new_client_key()
        self.authorized_keys = directory / "authorized_keys"
        self.authorized_keys.write_text(self.client_key.public + "\n")

    def endpoint(self, **changes: Any) -> Endpoint:
        values = {
            "address": "127.0.0.1",
            "port": self.port,
            "username": getpass.getuser(),
            "host_public_key": self.host_key.public,
            "client_private_key": self.client_key.private,
        }
        return Endpoint(**{**values, **changes})

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError


class Sshd(Server):
    """`more` is added to sshd_config; `host_key_files` replaces the one ed25519 key."""

    def __init__(
        self, directory: Path, *, port: int = 0, more: str = "", host_key_files: tuple[Path, ...] = ()
    ) -> None:
        super().__init__(directory, port)
        self.log = directory / "sshd.log"
        self.process: subprocess.Popen[bytes] | None = None
        if not host_key_files:
            host_key_files = (directory / "host_key",)
            write_private(host_key_files[0], self.host_key.private)
        self.config = directory / "sshd_config"
        lines = [
            f"ListenAddress 127.0.0.1:{self.port}",
            *(f"HostKey {file}" for file in host_key_files),
            f"AuthorizedKeysFile {self.authorized_keys}",
            f"SetEnv HOME={self.home}",  # the shell must not read the .bashrc of whoever runs the tests
            "UsePAM no",
            "StrictModes no",
            "PidFile none",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "PrintMotd no",
            "MaxStartups 200",
            "LogLevel VERBOSE",
            "Subsystem sftp internal-sftp",
            more,
        ]
        self.config.write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        assert SSHD is not None
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        # Newer versions shut out an address after refused logins, which some tests bring about on purpose.
        lenient = [SSHD, "-f", str(self.config), "-o", "PerSourcePenalties=no"]
        known = subprocess.run([*lenient, "-t"], capture_output=True, check=False).returncode == 0
        argv = lenient if known else lenient[:3]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*argv, "-D", "-e"], stdout=log, stderr=log)
        wait_for_port(self.port, lambda: self.log.read_text())

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None


class AsyncsshServer(Server):
    """An event loop in a thread; the commands are real processes of a real shell."""

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._unlisten(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> None:
        self._acceptor = await asyncssh.listen(
            "127.0.0.1",
            self.port,
            server_host_keys=[asyncssh.import_private_key(self.host_key.private)],
            authorized_client_keys=str(self.authorized_keys),
            process_factory=self._serve,
            sftp_factory=True,
            encoding=None,
        )

    async def _unlisten(self) -> None:
        self._acceptor.close()
        await self._acceptor.wait_closed()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, process: Any) -> None:
        child = await asyncio.create_subprocess_shell(
            process.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            executable=shutil.which("bash"),  # replaced by a single command, so that its signal shows
            env={**os.environ, "HOME": str(self.home)},
        )

        async def feed() -> None:
            with contextlib.suppress(OSError):
                while data := await process.stdin.read(65536):
                    child.stdin.write(data)
                    await child.stdin.drain()
                child.stdin.close()

        async def pump(source: Any, sink: Any) -> None:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()

        feeding = asyncio.create_task(feed())
        try:
            await asyncio.gather(pump(child.stdout, process.stdout), pump(child.stderr, process.stderr))
            rc = await child.wait()
            process.exit(rc) if rc >= 0 else process.exit_with_signal("KILL")
        except (OSError, asyncssh.Error):
            process.close()  # the client has gone; an error here would cost it its other commands, too
        finally:
            feeding.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child._transport.close()


@contextlib.contextmanager
def running(server: Server) -> Iterator[Any]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def any_server(directory: Path) -> Server:
    """OpenSSH where it is installed."""
    return Sshd(directory) if SSHD else AsyncsshServer(directory)


def write_private(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


def wait_for_port(port: int, explain: Any) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.01)
    raise AssertionError(f"nothing listens on {port}: {explain()}")


class Proxy:
    """Forwards TCP to a port of this machine. Counters and cuts concern what is open at that moment.

    narrow: hold little on the way, so that a sender meets a freeze soon.
    """

    def __init__(self, target_port: int, *, narrow: bool = False) -> None:
        self.narrow = narrow
        self.target_port = target_port
        self.port = free_port()
        self.n_connections = 0
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._cut_down_after: int | None = None
        self._cut_up_after: int | None = None
        self._listener: socket.socket | None = None
        self.up()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Take connections (again)."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        if self.narrow:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def down(self) -> None:
        """Cut everything and refuse new connections."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self._flowing.set()
        self.cut()

    def cut(self) -> None:
        """Reset every open connection on both sides."""
        with self._lock:
            doomed, self._open = self._open, []
        for sock in doomed:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def cut_after(self, *, down_bytes: int | None = None, up_bytes: int | None = None) -> None:
        """Cut once, as soon as so many more bytes have come from the server (down) or gone to it (up)."""
        self._cut_down_after, self._cut_up_after = down_bytes, up_bytes

    def freeze(self) -> None:
        """Forward nothing more, new connections included, and keep everything open."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target_port))
            except OSError:
                return
            with self._lock:
                self.n_connections += 1
                self._open += [client, server]
            for source, sink, down in ((client, server, False), (server, client, True)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(source, sink, down), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                self._flowing.wait()
                sink.sendall(data)
                if self._reached(len(data), down):
                    self.cut()
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _reached(self, n_bytes: int, down: bool) -> bool:
        name = "_cut_down_after" if down else "_cut_up_after"
        left = getattr(self, name)
        if left is None:
            return False
        setattr(self, name, left - n_bytes if left > n_bytes else None)
        return bool(left <= n_bytes)
