"""An sshd for a share of a fleet's simulated servers, and what the fleet did with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks.result import Result
from tests.sshd import Sshd, running, write_private


class FleetSshd:
    """settings: what the fleet's processes are told. pids: of sshd, whose children are the servers' agents."""

    def __init__(self, folder: Path, share: float) -> None:
        self._sshd = Sshd(folder, more="MaxSessions 4")
        where = folder / "endpoint.json"
        write_private(where, json.dumps(asdict(self._sshd.endpoint())))
        self.settings = {"TOKENSWEEP_SIM_SSH": str(where), "TOKENSWEEP_SIM_SSH_SHARE": str(share)}

    @contextmanager
    def running(self) -> Iterator[None]:
        with running(self._sshd):
            yield

    def pids(self) -> list[int]:
        return [self._sshd.process.pid] if self._sshd.process else []

    def tell(self, result: Result) -> list[str]:
        """A server is followed by one command, and by one more after each connection that was lost."""
        log = self._sshd.log.read_text(errors="replace")
        n_logins = log.count("Accepted publickey")
        n_sessions = log.count("Starting session: command")
        result.findings.append(f"over SSH: {n_logins} logins, {n_sessions} agents followed")
        return [] if n_sessions else ["SSH: no server was reached over it"]
