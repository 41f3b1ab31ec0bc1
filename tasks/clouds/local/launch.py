"""Starts `server_init.py` for one server and talks it through to the open SSH port."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

from tasks.clouds.base import CreateSpec
from tasks.clouds.local import processes, server_init, ssh
from tasks.clouds.local.state import DELETING, RECORD, Record, StateDir
from tasks.domain.errors import ProviderError

ANSWER_TIMEOUT_S = 30.0
CONSOLE = "console.log"


class Launch:
    """One server being started. Use it as a context: leaving it early makes the server end itself."""

    def __init__(self, state: StateDir, record: Record, listen_fd: int | None = None) -> None:
        self.record = record
        self._directory = state.directory(record.name)
        marks = {server_init.ENV_MARK: processes.env_mark(state.tag, record.name)}
        with (self._directory / CONSOLE).open("ab") as console:
            self._init = subprocess.Popen(
                [ssh.controller_python(), "-I", "-S", str(Path(server_init.__file__).resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=console,
                env={"PATH": ssh.SYSTEM_PATH, **marks},
                cwd="/",
                start_new_session=True,  # no Ctrl-C of the controller's terminal ends the server
                pass_fds=[] if listen_fd is None else [listen_fd],
            )
        self._stdin = cast("IO[bytes]", self._init.stdin)
        self._stdout = cast("IO[bytes]", self._init.stdout)
        self._received = b""

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_: object) -> None:
        self._stdin.close()
        self._stdout.close()
        self._init.wait()  # it has forked, or it ends when its stdin does

    def fork(self, config: dict[str, Any]) -> Record:
        """Send the configuration; returns the record with the server's first process in it."""
        self._send(config)
        pid = int(self._receive()["pid"])
        self.record = replace(
            self.record, init_pid=pid, init_start_ticks=processes.start_ticks(pid), boot_id=processes.boot_id()
        )
        return self.record

    def go(self, commands: list[dict[str, Any]]) -> None:
        """Returns when the SSH port answers; from then on the server lives without its creator."""
        self._send({"commands": commands})
        self._receive()

    def wait_for_banner(self) -> None:
        """Raises ProviderError when nobody greets in time."""
        try:
            address = (self.record.address, self.record.ssh_port)
            with socket.create_connection(address, timeout=ANSWER_TIMEOUT_S) as connection:
                if connection.recv(4) == b"SSH-":
                    return
        except OSError:
            pass
        raise self._failed("started, and then nobody greeted on its SSH port")

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._stdin.write(json.dumps(message).encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise self._failed("ended at once") from None

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + ANSWER_TIMEOUT_S
        while b"\n" not in self._received:
            left_s = max(0.0, end - time.monotonic())
            ready, _, _ = select.select([self._stdout], [], [], left_s)
            if not ready:
                raise self._failed(f"said nothing for {ANSWER_TIMEOUT_S:.0f} s")
            piece = os.read(self._stdout.fileno(), 65536)
            if not piece:
                raise self._failed("ended while starting")
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failed(self, what: str) -> ProviderError:
        console = (self._directory / CONSOLE).read_text(errors="replace").strip()
        last_line = console.rpartition("\n")[2] or "nothing"
        return ProviderError(
            f"the first process of local server {self.record.name} {what}; its console says: {last_line}.",
            reason="start_failed",
        )


def base_config(state: StateDir, spec: CreateSpec, record: Record) -> dict[str, Any]:
    """What the first process needs to know in either isolation."""
    directory = state.directory(record.name)
    return {
        "name": record.name,
        "mark": processes.vm_mark(state.tag, record.name),
        "record": str(directory / RECORD),
        "deleting": str(directory / DELETING),
        "deadline_unix_s": spec.deadline_unix_s,
        "cpus": list(record.cpus),
        "cgroup_procs": [],
    }
