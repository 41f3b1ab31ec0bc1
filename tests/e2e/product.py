"""The product as people have it: `tokensweep` in a process of its own, with a home of its own, and real servers.

Nothing of ours runs inside the test's process but what looks at the result: the lake, and the machine itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from tasks.clouds.local import LocalCloud
from tasks.clouds.local.state import StateDir
from tasks.lake import open_lake, query
from tasks.leaks import leaks
from tasks.settings import Settings
from tasks.wiring import open_services
from tests.local_servers import processes_with, traces

CHECKOUT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240.0
"""No command of these tests takes longer, however loaded the machine is."""

SERVER = "cpu1-mem512m-1000mbit"
TINY: dict[str, Any] = {
    "vendor": "local",
    "servers": [SERVER],
    "models": ["tiny-15m"],
    "pp": [16],
    "tg": [16],
    "max_usd": 1.0,
    "max_usd_per_server": 0.1,
    "deadline_s": 600,
}
TINY_MODEL = "tiny-15m.random-1.Q4_K_M.gguf"


def command() -> list[str]:
    """As an installed script, found beside the interpreter that runs the tests."""
    script = shutil.which("tokensweep", path=str(Path(sys.executable).parent))
    return [script] if script else [sys.executable, "-m", "flows.cli"]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    rc: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def __str__(self) -> str:
        return f"rc {self.rc}\n{self.out}\n{self.err}"


class Running:
    """A command under way: its lines of stderr as they come, its death, its end."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            argv,
            env=dict(environment),
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a process group of its own, as a shell gives it
        )
        self._said: dict[str, list[str]] = {"out": [], "err": []}
        self._news = threading.Condition()
        streams = {"out": self.process.stdout, "err": self.process.stderr}
        self._readers = [threading.Thread(target=self._read, args=item, daemon=True) for item in streams.items()]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: IO[str]) -> None:
        for line in stream:
            with self._news:
                self._said[name].append(line)
                self._news.notify_all()
        stream.close()
        with self._news:
            self._news.notify_all()

    @property
    def err(self) -> str:
        with self._news:
            return "".join(self._said["err"])

    def wait_for(self, text: str, *, n: int = 1) -> None:
        """Until `text` has been said n times on stderr."""
        self._wait(lambda: sum(text in line for line in self._said["err"]) >= n, f"{text!r} {n} times")

    def wait_for_output(self, text: str) -> None:
        """Until `text` has been said on stdout."""
        self._wait(lambda: any(text in line for line in self._said["out"]), f"{text!r} on stdout")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        with self._news:
            while not condition():
                ended = self.process.poll() is not None and not any(r.is_alive() for r in self._readers)
                assert not ended and time.monotonic() < end, f"never came: {what}\n{''.join(self._said['err'])}"
                self._news.wait(0.2)

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        if group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def end(self, timeout_s: float = PATIENCE_S) -> Done:
        """Wait for its end; a test fails when it does not come."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it did not end in {timeout_s:.0f} s; it had said:\n{self.err}") from None
        for reader in self._readers:
            reader.join(5.0)  # what it left running may hold its pipes open: that is found by `remains`
        with self._news:
            return Done(self.process.returncode, "".join(self._said["out"]), "".join(self._said["err"]))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Product:
    """One home with its lake, ledger and servers. `cache` holds the runtime and the models."""

    home: Path
    cache: Path
    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()

    def env(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TOKENSWEEP_", "PREFECT_"))}
        ours = {"TOKENSWEEP_HOME": str(self.home), "TOKENSWEEP_CACHE": str(self.cache)}
        return inherited | ours | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"} | self.environment

    def start(self, *arguments: str) -> Running:
        return Running([*self.prefix, *command(), *arguments], self.env())

    def run(self, *arguments: str) -> Done:
        return self.start(*arguments).end()

    def preset(self, name: str = "tiny", **changes: Any) -> str:
        """Write a preset beside the home; its path is what commands take."""
        path = self.home.parent / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**TINY, **changes}))
        return str(path)

    def query(self, sql: str) -> list[dict[str, Any]]:
        return query(open_lake(str(self.home / "lake")), sql).to_dicts()

    def cells(self) -> dict[tuple[str, str, str, int], tuple[str, str]]:
        """Outcome and reason of every cell, by server, model, task and length; the one of the whole sweep."""
        rows = self.query("SELECT server, model, task, n_tokens, outcome, reason FROM v_sweep_cells")
        found = {(r["server"], r["model"], r["task"], r["n_tokens"]): (r["outcome"], r["reason"]) for r in rows}
        assert len(found) == len(rows), "a cell has two outcomes"
        return found

    def samples(self) -> dict[tuple[str, str, str, int], list[float]]:
        """Seconds of the repeats of each measured cell, from the run that measured it."""
        sql = """
            SELECT s.server, s.model, s.task, s.n_tokens, list(s.duration_s ORDER BY s.k) AS seconds
            FROM v_sweep_cells AS c JOIN samples AS s USING (server_run_id, model, task, n_tokens)
            WHERE c.outcome = 'measured' GROUP BY ALL
        """
        return {(r["server"], r["model"], r["task"], r["n_tokens"]): r["seconds"] for r in self.query(sql)}

    @property
    def tag(self) -> str:
        """What is in the name of everything that the servers of this home bring."""
        return StateDir(self.home / "local").tag

    def servers(self) -> list[str]:
        """Names of the servers that exist now."""
        return StateDir(self.home / "local").names()

    def remains(self) -> list[str]:
        """All that is on this machine of this home, found without the product's own listing: processes (servers,
        controllers, Prefect), interfaces, cgroups, mounts, folders of servers, spools."""
        found = traces(LocalCloud(self.home / "local"), self.tag) + processes_with(str(self.home))
        found += [str(path) for path in (self.home / "spool").glob("*")]
        return [trace.replace("\0", " ")[:200] for trace in dict.fromkeys(found)]

    def assert_nothing_is_left(self) -> None:
        """By the product's own proof, and by looking."""
        services = open_services(Settings(home=self.home))
        report = leaks(services.clouds(), services.ledger, time.time)
        assert report.clean and not report.in_use, report
        end = time.monotonic() + 20.0
        while (remains := self.remains()) and time.monotonic() < end:
            time.sleep(0.1)  # the kernel takes a moment to bury namespaces
        assert remains == []


def clean(product: Product) -> None:
    """After a failed test too: end what it left, so that the next one has the machine for itself."""
    for trace in product.remains():
        pid = trace.split(" ")[0]
        if pid.isdigit():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    cloud = LocalCloud(product.home / "local")
    for resource in cloud.list_owned().resources:
        cloud.delete(resource.ref())
