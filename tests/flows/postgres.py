"""A PostgreSQL server of our own, in a folder of our own, on a port of its own; as an unprivileged user where we are
root, because it refuses to run as that."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

NOBODY = 65534
START_TIMEOUT_S = 120
INSTALLED = Path("/usr/lib/postgresql")


def why_not() -> str:
    """Why there can be none here; "" when there can."""
    if _program("initdb") is None or _program("pg_ctl") is None:
        return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "PostgreSQL cannot be started as root without setpriv"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed (uv sync --group postgresql)"
    return ""


def _program(name: str) -> str | None:
    """From the PATH, or where Debian keeps it."""
    own = sorted(INSTALLED.glob(f"*/bin/{name}"), reverse=True)
    return shutil.which(name) or (str(own[0]) if own else None)


class Postgres:
    """Made at once, with these databases. What was committed outlives `stop` and `start`; `remove` ends it."""

    def __init__(self, *databases: str) -> None:
        # Not in pytest's folder, which another session of the same user closes to all others.
        self.folder = Path(tempfile.mkdtemp(prefix="tokensweep-postgres-"))
        self.data = self.folder / "data"
        self.data.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        if os.geteuid() == 0:
            for path in (self.folder, self.data):
                os.chown(path, NOBODY, NOBODY)
        self._run("initdb", "-D", str(self.data), "-U", "tokensweep", "--auth=trust", "--no-sync")
        self.start()
        for database in databases:
            self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "tokensweep", database)

    def url(self, driver: str, database: str) -> str:
        return f"postgresql+{driver}://tokensweep@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self.data), "-o", options, "-l", log, "-t", str(START_TIMEOUT_S), "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        """mode: fast ends sessions in order, immediate is a crash that the next start recovers from."""
        self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-t", str(START_TIMEOUT_S), "-w", "stop")

    def remove(self) -> None:
        with suppress(RuntimeError):
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))

    def _run(self, name: str, *arguments: str) -> None:
        nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
        done = subprocess.run(
            [*nobody, str(_program(name)), *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if name != "pg_ctl" else subprocess.DEVNULL,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{name} ended with rc {done.returncode}: {(done.stderr or b'').decode()[-500:]}")
