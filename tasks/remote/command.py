"""One command on one SSH channel: both outputs read as they come, the input fed beside them.

A command that floods stderr while stdout is being read, or that prints before it has read its input, must not
stall; so nothing here waits for one stream alone.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO

import paramiko

READ_BYTES = 1 << 16
SEND_BYTES = 32_704  # what fits OpenSSH's packets of 32 KiB beside their headers
STDERR_KEPT_BYTES = 1 << 16  # a tail is enough to name a failure
SHOWN_CHARACTERS = 200
STDERR_SHOWN_CHARACTERS = 2_000
_STATUS_AFTER_OUTPUT_S = 15.0
_TRANSPORT_ENDS_S = 0.2
_FEEDER_ENDS_S = 1.0


class ConnectionDead(Exception):
    """The transport died before the command had ended."""


class InputUnreadable(Exception):
    """The local file that was being sent as input failed."""


def shown(argv: Sequence[str]) -> str:
    """A command as a message quotes it."""
    line = shlex.join(argv)
    return f"`{line}`" if len(line) <= SHOWN_CHARACTERS else f"`{line[:SHOWN_CHARACTERS]}…`"


def said(stderr: str) -> str:
    """What a failed command printed last, as a sentence."""
    last = stderr.strip()[-STDERR_SHOWN_CHARACTERS:]
    return f"It said: {last}" if last else "It said nothing."


class _Wake(threading.Event):
    """Set by either output. paramiko clears it when one is empty, which says nothing of the other: ignored."""

    def clear(self) -> None:
        pass

    def rearm(self) -> None:
        super().clear()


class Command:
    """`stdin` is sent by a thread of its own; `on_sent(n)` is told of every n bytes that went out."""

    def __init__(self, channel: paramiko.Channel, stdin: BinaryIO | None, on_sent: Callable[[int], None]) -> None:
        self._channel = channel
        self._on_sent = on_sent
        self._stderr = bytearray()
        self._read_error: Exception | None = None
        self._wake = _Wake()
        channel.in_buffer.set_event(self._wake)
        channel.in_stderr_buffer.set_event(self._wake)
        self._feeder = threading.Thread(target=self._feed, args=(stdin,), name="ssh-stdin", daemon=True)
        if stdin is None:
            channel.shutdown_write()
        else:
            self._feeder.start()

    @property
    def sending(self) -> bool:
        """Input is still on its way."""
        return self._feeder.is_alive()

    @property
    def stderr(self) -> str:
        """The last 64 KiB of what it printed there so far."""
        return self._stderr.decode(errors="replace")

    def read(self, timeout_s: float | None) -> bytes:
        """The next piece of stdout, b"" when both outputs have ended.

        Raises TimeoutError when no stdout came for `timeout_s`, whatever came on stderr, and ConnectionDead.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._wake.rearm()  # before looking: what comes from here on wakes the wait below
            ended = bool(self._channel.eof_received) or self._channel.closed  # before what is left
            got_stderr = self._take_stderr()
            if self._channel.recv_ready():
                return self._take(self._channel.recv)
            if ended and not self._channel.recv_stderr_ready():
                return b""
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise TimeoutError
            if not got_stderr and not ended:
                self._wake.wait(left_s)

    def status(self) -> int:
        """The exit status once the output has ended; -1 when a signal ended it.

        Raises ConnectionDead when the transport died first, so that cut output never passes for the whole,
        and InputUnreadable when the input could not be read to its end.
        """
        channel = self._channel
        channel.status_event.wait(_STATUS_AFTER_OUTPUT_S)
        if not channel.eof_received or channel.exit_status == -1:
            transport = channel.get_transport()
            transport.join(_TRANSPORT_ENDS_S)  # its thread closes the channels a moment before it ends
            if not transport.is_active() or not channel.status_event.is_set():
                raise ConnectionDead
        if self._read_error is not None:
            raise InputUnreadable(str(self._read_error)) from self._read_error
        return channel.exit_status

    def close(self) -> None:
        """Raises what paramiko raises on a dying connection. A second call does nothing."""
        self._channel.close()
        if self.sending:
            self._feeder.join(_FEEDER_ENDS_S)  # so that the caller may close what it reads from

    def _take(self, recv: Callable[[int], bytes]) -> bytes:
        try:
            return recv(READ_BYTES)
        except (OSError, EOFError, paramiko.SSHException) as exc:  # it also sends: "there is room again"
            raise ConnectionDead from exc

    def _take_stderr(self) -> bool:
        if not self._channel.recv_stderr_ready():
            return False
        self._stderr += self._take(self._channel.recv_stderr)
        del self._stderr[:-STDERR_KEPT_BYTES]
        return True

    def _feed(self, stdin: BinaryIO) -> None:
        try:
            while piece := self._read_local(stdin):
                while piece:
                    n_bytes = self._channel.send(piece)
                    if n_bytes == 0:
                        return  # it ended without reading all of its input
                    self._on_sent(n_bytes)
                    piece = piece[n_bytes:]
            self._channel.shutdown_write()
        except (OSError, EOFError, paramiko.SSHException):
            return  # the reading side meets the same end and says why

    def _read_local(self, stdin: BinaryIO) -> bytes:
        try:
            return stdin.read(SEND_BYTES)
        except (OSError, ValueError) as exc:
            # Without the end of input the command would take the part for the whole.
            self._read_error = exc
            self._channel.close()
            raise EOFError from exc
