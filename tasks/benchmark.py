"""Put the agent on a server, start it, and follow what it does. Blocking code beside the event loop."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tasks.clouds.hosts import BringsHosts, Host, Started
from tasks.clouds.request import LiveServer
from tasks.domain.errors import AgentError
from tasks.domain.run_plan import RunPlan
from tasks.engine import Engine
from tasks.provision import Reach, ServerKeys, reach, sleeper
from tasks.remote.session import Session
from tasks.remote.spool import Spool
from tasks.remote.tail import follow_events
from tasks.wiring import Services

RUN_DIR = "tokensweep"  # in the home folder of the login user
AGENT_FILE = "agent.pyz"


class SshHost:
    """A server over SSH: one connection from `connect` to `start`, then as many as following takes."""

    def __init__(self, reach: Reach, engine: Engine, give_up_s: float) -> None:
        self._reach, self._engine, self._give_up_s = reach, engine, give_up_s
        self._session: Session | None = None

    def connect(self) -> None:
        self._session = self._reach.connect()

    def start(self, plan: RunPlan) -> Started:
        session, self._session = self._session or self._reach.connect(), None
        with session:
            return upload_and_start(session, plan, self._engine, RUN_DIR)

    def events(self, after: int, on_lost: Callable[[Exception], None]) -> Iterator[dict[str, Any]]:
        def argv_for(seq: int) -> list[str]:
            return ["python3", f"{RUN_DIR}/{AGENT_FILE}", "tail", "--dir", RUN_DIR, "--after", str(seq), "--follow"]

        return follow_events(
            self._reach.connect,
            argv_for,
            after=after,
            give_up_s=self._give_up_s,
            on_lost=on_lost,
            sleep=self._reach.sleep,
        )


def open_host(
    server: LiveServer, keys: ServerKeys, services: Services, engine: Engine, cancel: threading.Event
) -> Host:
    """How this server is used: as its vendor module says, else over SSH."""
    settings = services.settings
    cloud = services.cloud(server.row.vendor)
    if not isinstance(cloud, BringsHosts):
        return SshHost(reach(server, keys, services, cancel), engine, settings.reconnect_give_up_s)
    return cloud.host(
        server.resource,
        host_public_key=keys.host.public,
        connect_timeout_s=settings.connect_timeout_s,
        give_up_s=settings.reconnect_give_up_s,
        sleep=sleeper(services.clock(server.row.vendor), cancel),
    )


def upload_and_start(session: Session, plan: RunPlan, engine: Engine, work_dir: str) -> Started:
    """One archive, one command: agent, runtime and plan are unpacked and the agent started, detached."""
    before = session.bytes_sent
    # The runtime is compressed already, once; the agent and the plan travel in a small archive of their own.
    session.put_tar(engine.runtime_tarball, f"{work_dir}/runtime")
    started_unix_s = time.time()
    then = ["python3", f"{work_dir}/{AGENT_FILE}", "start", "--dir", work_dir]
    answer = session.put_tar(_small_archive(plan, engine.agent), work_dir, then=then)
    try:
        json.loads(answer.stdout.strip().splitlines()[-1])["pid"]
    except (ValueError, KeyError, IndexError) as exc:
        raise AgentError(
            f"The agent on {plan.server} did not start: {answer.stdout.strip() or answer.stderr.strip()}",
            next_step="See agent.out in its run directory while the server lives.",
        ) from exc
    return Started(started_unix_s, session.bytes_sent - before)


def _small_archive(plan: RunPlan, agent: Path) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in ((AGENT_FILE, agent.read_bytes()), ("plan.json", plan.to_json().encode())):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(content), 0o644, int(time.time())
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), compresslevel=1)


def follow(
    host: Host,
    spool: Spool,
    on_event: Callable[[dict[str, Any]], None],
    *,
    cancel: threading.Event,
    on_lost: Callable[[Exception], None],
) -> None:
    """Copy the agent's numbered events into the spool until the run has finished.

    Every event is in the spool before `on_event` hears of it. Takes up after the spool's last number, so a second
    call after an error loses and repeats nothing.
    """
    for event in host.events(spool.last_seq, on_lost):
        spool.append(event)
        on_event(event)
        if cancel.is_set():
            return
