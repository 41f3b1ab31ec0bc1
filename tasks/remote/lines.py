"""The lines of a command that keeps printing."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType

import paramiko

from tasks.domain.errors import CommandFailedError, UnreachableError
from tasks.remote.command import Command, ConnectionDead

LINE_MAX_BYTES = 16 << 20


class LineStream(Iterator[str]):
    """Each line without its line end, as it comes. After the last one `rc` tells how the command ended.

    Iterating raises UnreachableError when the connection dies (reason `connection_lost`) or when nothing at all,
    not even an empty line, came for `silence_s` (reason `silent`). A line cut short by that is not given out.
    """

    def __init__(
        self,
        command: Command,
        *,
        label: str,
        silence_s: float | None,
        lost: Callable[[BaseException | None], UnreachableError],
    ) -> None:
        self.label = label
        self.rc: int | None = None
        self._command = command
        self._silence_s = silence_s
        self._lost = lost
        self._ready: deque[bytes] = deque()
        self._rest = bytearray()

    def __enter__(self) -> LineStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def stderr(self) -> str:
        """The last 64 KiB of the command's stderr so far."""
        return self._command.stderr

    def __next__(self) -> str:
        while not self._ready:
            if self.rc is not None:
                raise StopIteration
            self._fill()
        return self._ready.popleft().decode(errors="replace")

    def close(self) -> None:
        """Stop listening. The command meets a closed pipe when it next prints. A second call does nothing."""
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._command.close()

    def _fill(self) -> None:
        try:
            piece = self._command.read(self._silence_s)
        except TimeoutError as exc:
            raise UnreachableError(
                f"Nothing came from {self.label} for {self._silence_s:g} s.", reason="silent"
            ) from exc
        except ConnectionDead as exc:
            raise self._lost(exc.__cause__) from exc
        if not piece:
            self._finish()
            return
        *lines, rest = (self._rest + piece).split(b"\n")
        self._ready.extend(bytes(line.removesuffix(b"\r")) for line in lines)
        if len(rest) > LINE_MAX_BYTES:
            raise CommandFailedError(
                f"{self.label} printed a line of more than {LINE_MAX_BYTES >> 20} MiB.", reason="output_too_large"
            )
        self._rest = rest

    def _finish(self) -> None:
        try:
            self.rc = self._command.status()
        except ConnectionDead as exc:
            raise self._lost(None) from exc
        if self._rest:
            self._ready.append(bytes(self._rest))
            self._rest.clear()
