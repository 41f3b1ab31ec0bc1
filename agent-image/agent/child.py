"""Child processes of the agent: this same program with another command, and what every child is given."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, Callable, Mapping, Sequence

import agent

PR_SET_PDEATHSIG = 1
READ_BYTES = 65536
OOM_FIRST = "1000"
KILL_PATIENCE_S = 120.0
"""To give back some hundred GB of pinned memory takes a kernel the better part of a minute."""
END_PATIENCE_S = 20.0


def agent_command(command: str) -> tuple[list[str], dict[str, str]]:
    """How to run this program again, from its archive or from the source tree; arguments and environment."""
    package = Path(agent.__file__).resolve().parent
    if package.parent.is_file():
        return [sys.executable, "-I", "-S", str(package.parent), command], dict(os.environ)
    import tasks

    roots = [str(package.parent), str(Path(str(tasks.__file__)).resolve().parent.parent)]
    return [sys.executable, "-S", "-m", "agent", command], {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}


def child_setup() -> Callable[[], None]:
    """What a child does before its program starts: die with the agent, and be the first to go when memory ends."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def setup() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        try:
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                file.write(OOM_FIRST)
        except OSError:
            pass

    return setup


def start_program(
    argv: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    stdin: int = subprocess.DEVNULL,
    stderr: int = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    """A child with its output in pipes and a session of its own, so that it can be killed with all it starts.

    environment: None for the agent's own. Raises OSError when it cannot be started.
    """
    return subprocess.Popen(
        argv,
        env=environment,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        bufsize=0,
        start_new_session=True,
        preexec_fn=child_setup(),
    )


class Kill:
    """What became of a SIGKILL to a program and all that it started.

    One that waits in the driver of a GPU which is lost takes no signal, so nobody may wait for its end either.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._sent_s: float | None = None

    def send(self) -> None:
        """Silent when it has ended."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._sent_s = time.monotonic() if self._sent_s is None else self._sent_s

    @property
    def in_vain(self) -> bool:
        """Whether it still runs although it was killed long ago."""
        sent_s = self._sent_s
        return sent_s is not None and time.monotonic() - sent_s > KILL_PATIENCE_S and self._process.poll() is None

    def works(self) -> bool:
        """Wait for a while for the end of what was killed; False when it does not end."""
        try:
            self._process.wait(END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return False
        return True


class OutputPipe:
    """The reading end of a child's pipe, without blocking. `ended` is true once the other end is closed."""

    def __init__(self, file: IO[bytes] | None) -> None:
        if file is None:
            raise ValueError("the child was started without this pipe")
        self._file = file
        self.ended = False
        os.set_blocking(file.fileno(), False)

    def fileno(self) -> int:
        return self._file.fileno()

    def read(self) -> bytes:
        """What is in the pipe now."""
        blocks = []
        while not self.ended:
            try:
                block = os.read(self._file.fileno(), READ_BYTES)
            except BlockingIOError:
                break
            self.ended = not block
            blocks.append(block)
        return b"".join(blocks)

    def close(self) -> None:
        self.ended = True
        self._file.close()


def exit_status(returncode: int) -> int:
    """As a shell counts: 128+n after signal n."""
    return returncode if returncode >= 0 else 128 - returncode


class Child:
    """This program with another command: values to its stdin, JSON lines from its stdout, text from its stderr."""

    def __init__(self, command: str, values: dict[str, Any]) -> None:
        argv, environment = agent_command(command)
        self.process = start_program(argv, environment, stdin=subprocess.PIPE)
        self.stdout = OutputPipe(self.process.stdout)
        self._stderr_pipe = OutputPipe(self.process.stderr)
        self._rest = b""
        self._stderr = b""
        try:
            if self.process.stdin is not None:
                self.process.stdin.write(json.dumps(values).encode())
                self.process.stdin.close()
        except BrokenPipeError:
            pass  # its end is noticed like any other

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def lines(self) -> list[dict[str, Any]]:
        """The complete lines that arrived since the last call."""
        *lines, self._rest = (self._rest + self.stdout.read()).split(b"\n")
        self._stderr = (self._stderr + self._stderr_pipe.read())[-2000:]
        return [json.loads(line) for line in lines if line]

    def stderr_tail(self) -> str:
        return self._stderr.decode(errors="replace")[-500:]

    def send(self, number: int) -> None:
        """Signal the child; silent when it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def close(self) -> None:
        """Kill it if it lives, and let go of its pipes."""
        self.send(signal.SIGKILL)
        self.process.wait()
        self.stdout.close()
        self._stderr_pipe.close()
