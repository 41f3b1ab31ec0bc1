"""An SSH server where sshd is missing: asyncssh, with commands, SFTP and nothing else.

Run as a script on an inherited listening socket. A command runs in a session of its own, so what it leaves in the
background outlives its channel and its connection, as it would below sshd.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import asyncssh

CHUNK_BYTES = 65536
BACKGROUND_OUTPUT_S = 1.0
"""How long a channel stays open for what its ended command left running, while that says nothing."""


class OneKeyServer(asyncssh.SSHServer):
    """Lets one user in, with one key."""

    def __init__(self, username: str, key: asyncssh.SSHKey) -> None:
        self._username = username
        self._key = key

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == self._username and key.public_data == self._key.public_data


class Command:
    """One command of one channel: its process, and the pumps of its three streams."""

    def __init__(self, channel: asyncssh.SSHServerProcess[bytes], environment: dict[str, str]) -> None:
        shell = "/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh"
        self._channel = channel
        self._ended = asyncio.Event()
        self._child = subprocess.Popen(
            [shell, "-c", channel.command] if channel.command else [shell],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            cwd=environment["HOME"],
            start_new_session=True,
        )

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        handle = os.pidfd_open(self._child.pid)
        loop.add_reader(handle, self._ended.set)
        try:
            feed = asyncio.create_task(self._feed(cast("IO[bytes]", self._child.stdin)))
            await asyncio.gather(
                self._pump(cast("IO[bytes]", self._child.stdout), self._channel.stdout),
                self._pump(cast("IO[bytes]", self._child.stderr), self._channel.stderr),
            )
            await self._ended.wait()
            feed.cancel()
        finally:
            loop.remove_reader(handle)
            os.close(handle)
        status = self._child.wait()
        with suppress(OSError):
            if status >= 0:
                self._channel.exit(status)
            else:
                self._channel.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))

    async def _feed(self, stdin: IO[bytes]) -> None:
        transport, protocol = await asyncio.get_running_loop().connect_write_pipe(
            asyncio.streams.FlowControlMixin, stdin
        )
        writer = asyncio.StreamWriter(transport, protocol, None, asyncio.get_running_loop())
        try:
            with suppress(OSError, asyncssh.Error):
                while piece := await self._channel.stdin.read(CHUNK_BYTES):
                    writer.write(piece)
                    await writer.drain()
        finally:
            transport.close()

    async def _pump(self, pipe: IO[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
        """Copy until the end; when the channel is gone, let the pipe break."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            with suppress(OSError, asyncssh.Error):
                while piece := await self._next_piece(reader):
                    writer.write(piece)
                    await writer.drain()
        finally:
            transport.close()

    async def _next_piece(self, reader: asyncio.StreamReader) -> bytes:
        """b"" at the end of the pipe, or when the command has ended and nobody says more."""
        read = asyncio.create_task(reader.read(CHUNK_BYTES))
        ended = asyncio.create_task(self._ended.wait())
        await asyncio.wait({read, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        # All that the command wrote is in the pipe by now; what it started may hold the pipe open for ever.
        done, _ = await asyncio.wait({read}, timeout=BACKGROUND_OUTPUT_S)
        if done:
            return read.result()
        read.cancel()
        return b""


async def serve(config: dict[str, Any]) -> None:
    """Serve on the inherited socket until the process is killed."""
    environment: dict[str, str] = config["environment"]
    key = asyncssh.read_public_key(config["authorized_keys"])
    running: set[asyncio.Task[None]] = set()

    def start(channel: asyncssh.SSHServerProcess[bytes]) -> None:
        # Not a task of the connection, which would end it half-way when the connection is lost.
        task = asyncio.create_task(Command(channel, environment).run())
        running.add(task)
        task.add_done_callback(running.discard)

    os.chdir(environment["HOME"])
    server = await asyncssh.listen(
        sock=socket.socket(fileno=config["listen_fd"]),
        server_factory=lambda: OneKeyServer(config["username"], key),
        server_host_keys=[config["host_key"]],
        process_factory=start,
        sftp_factory=True,
        encoding=None,
        line_editor=False,
        allow_pty=False,
        x11_forwarding=False,
        agent_forwarding=False,
        keepalive_interval=15,
        config=None,
    )
    await server.wait_closed()


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    os.set_inheritable(config["listen_fd"], False)
    asyncio.run(serve(config))


if __name__ == "__main__":
    main()
