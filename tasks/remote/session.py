"""An open SSH connection: run a command, follow its lines, put files.

Several threads may use one Session at once. `close` may come from any thread and ends whatever the others wait for.
"""

from __future__ import annotations

import contextlib
import io
import secrets
import shlex
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import paramiko

from tasks.domain.errors import CommandFailedError, ConfigError, RemoteError, UnreachableError
from tasks.remote.command import Command, ConnectionDead, InputUnreadable, said, shown
from tasks.remote.lines import LineStream

STDOUT_MAX_BYTES = 64 << 20
CLOSE_S = 2.0
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Completed:
    """A command that ended. rc: exit status, -1 after a signal. stderr: its last 64 KiB."""

    rc: int
    stdout: str
    stderr: str


class Session:
    """Made by `tasks.remote.ssh.connect`. `label` names the server in every message."""

    def __init__(self, client: paramiko.SSHClient, sock: socket.socket, *, label: str, answer_s: float) -> None:
        transport = client.get_transport()
        if transport is None:
            raise UnreachableError(f"The connection to {label} was closed.", reason="connection_lost")
        self.label = label
        self._client, self._transport, self._sock = client, transport, sock
        self._answer_s = answer_s
        self._sftp: paramiko.SFTPClient | None = None
        self._sftp_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._bytes_sent = 0
        self._closed = self._broken = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """False once the connection is known to be gone; a frozen one still counts as alive."""
        return not self._closed and not self._broken and self._transport.is_active()

    @property
    def bytes_sent(self) -> int:
        """Payload sent so far: files, command lines and their input, without SSH's own overhead."""
        return self._bytes_sent

    def close(self) -> None:
        """Ends the connection and all that runs over it. A second call does nothing."""
        self._closed = True
        self._hang_up()

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        check: bool = True,
        stdin: bytes | BinaryIO | None = None,
    ) -> Completed:
        """Run a command and wait until it has ended and closed its outputs.

        Raises CommandFailedError (reason `exit_N`, `signal`, `timeout`, `output_too_large`), RemoteError
        (`not_started`) and UnreachableError. After a timeout the command may still be running on the server.
        """
        deadline = time.monotonic() + timeout_s
        source = io.BytesIO(stdin) if isinstance(stdin, bytes) else stdin
        command = self._start(argv, source)
        try:
            stdout = self._read_all(command, argv, deadline, timeout_s)
            completed = Completed(self._status(command, argv), stdout.decode(errors="replace"), command.stderr)
        finally:
            self._end(command)
        if check and completed.rc != 0:
            raise self._failed(argv, completed)
        return completed

    def stream(self, argv: Sequence[str], *, silence_s: float | None = None) -> LineStream:
        """Start a command and return its lines of stdout as they come; see LineStream for how it ends."""
        return LineStream(self._start(argv, None), label=self.label, silence_s=silence_s, lost=self._lost)

    def put(self, local: Path | bytes, remote: str, mode: int = 0o644, *, timeout_s: float = 300.0) -> int:
        """Copy one file: whole under its name or not at all. Returns the bytes sent.

        The directory must exist. A file of that name is replaced in one step. Raises RemoteError when the server
        refuses (no such directory, disk full, size differs), UnreachableError when the connection is lost.
        """
        source: BinaryIO = io.BytesIO(local) if isinstance(local, bytes) else _open(local)
        part = f"{remote}.{secrets.token_hex(4)}.part"
        with source, self._sftp_lock, self._limit(timeout_s, f"Copying {remote} to {self.label}"):
            try:
                sftp = self._sftp_client()
                n_bytes = sftp.putfo(source, part, confirm=True).st_size or 0  # confirm: the server's size is ours
                sftp.chmod(part, mode)
                sftp.posix_rename(part, remote)
            except (OSError, EOFError, paramiko.SSHException) as exc:
                raise self._put_failed(part, remote, exc) from exc
        self._count(n_bytes)
        return n_bytes

    def put_many(self, files: Iterable[tuple[Path | bytes, str, int]], *, timeout_s: float = 300.0) -> int:
        """`put` for each (local, remote, mode), in order; what went before a failure stays. Returns the bytes sent.

        Each file costs five round trips; where that matters, `put_tar` sends any number of files in three.
        """
        return sum(self.put(local, remote, mode, timeout_s=timeout_s) for local, remote, mode in files)

    def put_tar(
        self,
        archive: bytes | BinaryIO | Path,
        directory: str,
        *,
        then: Sequence[str] = (),
        timeout_s: float = 300.0,
    ) -> Completed:
        """Unpack a .tar.gz into `directory` (made if missing) and, if all of it arrived, become the command `then`.

        One exec for everything: the quickest way from a fresh connection to a started program. gzip is required
        because its checksum is what tells a whole archive from one that a lost connection cut short. A file object
        must be seekable; it is closed.
        """
        with io.BytesIO(archive) if isinstance(archive, bytes) else _open(archive) as source:
            magic = source.read(2)
            if magic != GZIP_MAGIC:
                raise ConfigError(
                    f"The archive for {self.label}:{directory} is no gzip file (it begins with {magic!r}).",
                    next_step="Pack it as .tar.gz.",
                )
            source.seek(0)
            script = 'mkdir -p "$0" && tar -xzof - -C "$0"' + (' && exec "$@" </dev/null' if then else "")
            return self.run(["sh", "-c", script, directory, *then], timeout_s=timeout_s, stdin=source)

    # -- how a command starts, is read and ends --

    def _start(self, argv: Sequence[str], stdin: BinaryIO | None) -> Command:
        # The limit is the connection's, not the command's: a short timeout must not cut a slow line.
        with self._limit(self._answer_s, f"Starting {shown(argv)} on {self.label}"):
            try:
                line = shlex.join(argv)
                channel = self._transport.open_session(timeout=self._answer_s)
                channel.exec_command(line)
                self._count(len(line))
                return Command(channel, stdin, self._count)
            except (OSError, EOFError, paramiko.SSHException) as exc:
                raise self._not_started(argv, exc) from exc

    def _not_started(self, argv: Sequence[str], exc: Exception) -> RemoteError:
        if not self._still_alive():
            return self._lost(exc)
        return RemoteError(
            f"{self.label} did not start {shown(argv)}: {exc}.",
            reason="not_started",
            next_step="sshd runs ten commands at once over one connection (MaxSessions); open another one for more.",
        )

    def _read_all(self, command: Command, argv: Sequence[str], deadline: float, timeout_s: float) -> bytes:
        stdout = bytearray()
        try:
            while piece := command.read(deadline - time.monotonic()):
                stdout += piece
                if len(stdout) > STDOUT_MAX_BYTES:
                    raise CommandFailedError(
                        f"{shown(argv)} on {self.label} printed more than {STDOUT_MAX_BYTES >> 20} MiB.",
                        reason="output_too_large",
                        next_step="Write it to a file there, or use a narrower command.",
                    )
                if time.monotonic() > deadline:
                    raise TimeoutError
        except TimeoutError as exc:
            raise CommandFailedError(
                f"{shown(argv)} on {self.label} had not ended after {timeout_s:g} s. {said(command.stderr)}",
                reason="timeout",
                next_step="It may still be running there; something that it started may hold its output open.",
            ) from exc
        except ConnectionDead as exc:
            raise self._lost(exc.__cause__) from exc
        return bytes(stdout)

    def _status(self, command: Command, argv: Sequence[str]) -> int:
        try:
            return command.status()
        except ConnectionDead as exc:
            raise self._lost(self._transport.get_exception()) from exc
        except InputUnreadable as exc:
            raise ConfigError(f"The input of {shown(argv)} cannot be read: {exc}.") from exc

    def _end(self, command: Command) -> None:
        # Closing a channel has to send, which waits behind input that a frozen server does not take.
        what = f"Ending a command on {self.label}"
        guard = self._limit(CLOSE_S, what) if command.sending else contextlib.nullcontext()
        with guard, contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            command.close()

    def _failed(self, argv: Sequence[str], completed: Completed) -> CommandFailedError:
        how = f"ended with status {completed.rc}" if completed.rc >= 0 else "was ended by a signal"
        return CommandFailedError(
            f"{shown(argv)} on {self.label} {how}. {said(completed.stderr)}",
            reason=f"exit_{completed.rc}" if completed.rc >= 0 else "signal",
        )

    # -- SFTP --

    def _sftp_client(self) -> paramiko.SFTPClient:
        if self._sftp is None:
            self._sftp = paramiko.SFTPClient.from_transport(self._transport)
            if self._sftp is None:
                raise paramiko.SSHException("no SFTP channel")
        return self._sftp

    def _put_failed(self, part: str, remote: str, exc: Exception) -> RemoteError:
        if not self._still_alive():
            return self._lost(exc)
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._sftp_client().remove(part)
        self._sftp = None  # its channel may be what broke
        return RemoteError(
            f"{self.label} did not take the file {remote}: {exc}.",
            reason="put_refused",
            next_step="See that its directory exists, may be written and has room.",
        )

    # -- limits and losses --

    @contextlib.contextmanager
    def _limit(self, limit_s: float, what: str) -> Iterator[None]:
        """Cut the connection when the block takes longer: paramiko waits without limit for some answers."""
        expired = threading.Event()

        def cut() -> None:
            expired.set()
            self.close()

        timer = threading.Timer(limit_s, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except RemoteError as exc:
            if not expired.is_set():
                raise
            message = f"{what} took more than {limit_s:g} s; the connection was cut."
            raise UnreachableError(message, reason="no_answer") from exc
        finally:
            timer.cancel()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes threads that are blocked in a read or a write
        self._client.close()

    def _still_alive(self) -> bool:
        self._transport.join(0.2)  # a dying transport fails its channels a moment before it says that it is gone
        return self.alive

    def _lost(self, cause: BaseException | None) -> UnreachableError:
        if self._closed:
            return UnreachableError(f"The connection to {self.label} was closed here.", reason="closed")
        self._broken = True
        self._hang_up()
        why = f" ({cause})" if cause is not None and str(cause) else ""
        return UnreachableError(f"The connection to {self.label} was lost{why}.", reason="connection_lost")

    def _count(self, n_bytes: int) -> None:
        with self._count_lock:
            self._bytes_sent += n_bytes


def _open(source: Path | BinaryIO) -> BinaryIO:
    if not isinstance(source, Path):
        return source
    try:
        return source.open("rb")
    except OSError as exc:
        raise ConfigError(f"The file to be sent cannot be read: {exc}.") from exc
