"""Put the agent on a server, start it, and follow what it does. Blocking code beside the event loop."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.domain.errors import AgentError
from tasks.domain.run_plan import RunPlan
from tasks.engine import Engine
from tasks.provision import Reach
from tasks.remote.session import Session
from tasks.remote.spool import Spool
from tasks.remote.tail import follow_events
from tasks.threads import in_thread

RUN_DIR = "tokensweep"  # in the home folder of the login user
AGENT_FILE = "agent.pyz"


@dataclass(frozen=True)
class Started:
    """When the agent was started (unix seconds) and how many bytes had to be sent for it."""

    agent_started_unix_s: float
    bytes_sent: int


async def upload_and_start(session: Session, plan: RunPlan, engine: Engine, work_dir: str) -> Started:
    """One archive, one command: agent, runtime and plan are unpacked and the agent started, detached."""
    return await in_thread(_upload_and_start, session, plan, engine, work_dir)


def _upload_and_start(session: Session, plan: RunPlan, engine: Engine, work_dir: str) -> Started:
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
    reach: Reach,
    work_dir: str,
    spool: Spool,
    on_event: Callable[[dict[str, Any]], None],
    *,
    give_up_s: float,
    cancel: threading.Event,
    on_lost: Callable[[Exception], None],
) -> None:
    """Copy the agent's numbered events into the spool until the run has finished, over as many connections as it takes.

    Every event is in the spool before `on_event` hears of it. Takes up after the spool's last number, so a second
    call after an error loses and repeats nothing.
    """

    def argv_for(seq: int) -> list[str]:
        return ["python3", f"{work_dir}/{AGENT_FILE}", "tail", "--dir", work_dir, "--after", str(seq), "--follow"]

    events = follow_events(
        reach.connect,
        argv_for,
        after=spool.last_seq,
        give_up_s=give_up_s,
        on_lost=on_lost,
        sleep=reach.sleep,
    )
    for event in events:
        spool.append(event)
        on_event(event)
        if cancel.is_set():
            return
