"""tokensweep as a fleet runs it: PostgreSQL, a Prefect server on it, the deployments, workers; each killed and started
again as often as a test likes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from flows.embedded import start_server, wait_until_healthy
from tests.e2e.product import CHECKOUT, Product
from tests.flows.deploying import prefect_command
from tests.flows.postgres import Postgres
from tests.flows.prefect_rest import Prefect

SERVER_SETTINGS = {
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE": "20",
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_MAX_OVERFLOW": "20",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
"""As in deployments/compose.yaml."""


class Installation:
    """Everything in one folder. `product` is the controller's part: commands, ledger, lake."""

    def __init__(self, folder: Path, cache: Path, settings: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.postgres = Postgres("prefect", "ledger")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.server: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        environment = {
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_CLIENT_MAX_RETRIES": "8",
            "TOKENSWEEP_LEDGER_URL": self.postgres.url("psycopg", "ledger"),
            "TOKENSWEEP_CHECKOUT": str(CHECKOUT),
        }
        self.product = Product(folder / "home", cache, environment | (settings or {}))
        self.prefect = Prefect(environment["PREFECT_API_URL"])

    def start_server(self) -> None:
        """The Prefect server, on its port, with its database; waits until it answers."""
        settings = SERVER_SETTINGS | {
            "PREFECT_HOME": str(self.folder / "prefect-server"),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.postgres.url("asyncpg", "prefect"),
        }
        log_path = self.folder / "server.log"
        with _environment(settings):
            self.server = start_server(self.port, log_path, dies_with_us=True)
        wait_until_healthy(self.server, self.port, log_path)

    def deploy(self) -> None:
        """All of prefect.yaml, into a pool of processes."""
        self.prefect.post("/work_pools/", {"name": "tokensweep", "type": "process"})
        done = prefect_command(self.product, "--no-prompt", "deploy", "--all")
        if done.rc != 0:
            raise RuntimeError(str(done))

    def start_worker(self, limit: int) -> subprocess.Popen[bytes]:
        """In a session of its own, so that it can be killed with what it runs."""
        log = (self.folder / f"worker-{len(self.workers) + 1}.log").open("ab")
        command = ["prefect", "worker", "start", "--pool", "tokensweep", "--type", "process", "--limit", str(limit)]
        with log:
            worker = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=self.product.env() | {"PREFECT_WORKER_QUERY_SECONDS": "2"},
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def kill_server(self) -> None:
        if self.server is not None:
            kill_tree(self.server)

    def close(self) -> None:
        """End everything that was started here."""
        for worker in self.workers:
            kill_tree(worker)
        self.kill_server()
        self.prefect.close()
        self.postgres.remove()


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and to all that it has started. A worker's flow runs are in sessions of their own."""
    with suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
