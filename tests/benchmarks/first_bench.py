"""How long from "SSH ready" to the first llama-bench on a local server, the download left out, and where it goes.

The product's own path: create, connect with pinned keys, upload, start the agent, follow its event log.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from tasks.benchmark import SshHost, follow
from tasks.clouds.local import microvm
from tasks.domain.cells import TG
from tasks.domain.run_plan import ModelSpec, RunPlan
from tasks.domain.stats import median
from tasks.ledger import RunState
from tasks.maintenance import pass_of_the_reaper
from tasks.models.serve import ModelServer
from tasks.provision import Order, ServerKeys, create, reach, tear_down_now
from tasks.remote.spool import Spool
from tasks.settings import Settings
from tasks.wiring import Services
from tests.benchmarks.result import Result, Table
from tests.benchmarks.spread import spread
from tests.benchmarks.workbench import Workbench, fixed_plan, ladder, of_kind

MODEL = "tiny-15m"
LEAST_TURNS = 5
TARGET_S = 3.0
PREDECESSOR = "a 7 GB image, median 101 s"
STEPS = ("upload the runtime", "upload and start the agent", "probe", "read the header", "start llama-bench")


@dataclass(frozen=True)
class Start:
    """Seconds by step; download_s is the part of the whole that is left out."""

    steps_s: dict[str, float]
    download_s: float
    bytes_sent: int

    @property
    def total_s(self) -> float:
        return sum(self.steps_s.values())


def run(bench: Workbench) -> Result:
    isolations = ["loopback"] if microvm.why_not() else ["microvm", "loopback"]
    seen: dict[str, list[Start]] = defaultdict(list)
    began, n_turns = time.monotonic(), 0
    least = 1 if bench.quick else LEAST_TURNS
    opened = {
        name: Services(Settings(home=bench.folder(name), cache=bench.cache_dir, local_isolation=name))  # type: ignore[arg-type]
        for name in isolations
    }
    for services in opened.values():
        pass_of_the_reaper(services)  # nothing is created without its heartbeat
    while n_turns < least or (time.monotonic() - began) * (n_turns + 1) / n_turns < bench.seconds:
        for name, services in opened.items():
            local = services.local()
            # The link of a loopback server is shaped where models are served, not where the runtime is uploaded.
            types = local.default_server_types() if name == "microvm" else local.default_server_types()[-1:]
            try:
                with ModelServer(bench.models_dir, local.model_host()) as files:
                    for server_type in types:
                        seen[f"{name}: {server_type}"].append(_one_start(bench, services, files, server_type, n_turns))
            finally:
                local.close()
        n_turns += 1
    return _result(bench, seen)


def _one_start(bench: Workbench, services: Services, files: ModelServer, server_type: str, turn: int) -> Start:
    model = bench.model(MODEL)
    run_id = f"{server_type}.{turn}"
    plan = fixed_plan([replace(model, urls=(files.url(model.file),))], ladder((TG, 8)), 1)
    spool_path = bench.folder("spool") / "events.jsonl"
    ledger = services.ledger
    ledger.begin_run(run_id, sweep_id="benchmark", server=server_type, vendor="local", spool_path=str(spool_path))
    try:
        ssh_ready_unix_s, started, events = asyncio.run(_start(bench, services, plan, server_type, run_id, spool_path))
    finally:
        tear_down_now(run_id, services)
        ledger.end_run(run_id, RunState.LANDED)
    return _split(ssh_ready_unix_s, started.agent_started_unix_s, started.bytes_sent, events)


async def _start(
    bench: Workbench, services: Services, plan: RunPlan, server_type: str, run_id: str, spool_path: Any
) -> tuple[float, Any, list[dict[str, Any]]]:
    keys, cancel = ServerKeys(), threading.Event()
    kind, deadline_unix_s = services.local().server_type(server_type), time.time() + 300.0
    order = Order("benchmark", run_id, kind, deadline_unix_s, Decimal(1), Decimal(1))
    how = reach(await create(order, services, keys, cancel), keys, services, cancel)
    host = SshHost(how, bench.engine, give_up_s=60.0)
    host.connect()
    ssh_ready_unix_s = time.time()
    started = host.start(plan)
    events: list[dict[str, Any]] = []
    with Spool(spool_path) as spool:
        follow(host, spool, events.append, cancel=cancel, on_lost=lambda _: None)
    return ssh_ready_unix_s, started, events


def _split(ssh_ready_unix_s: float, agent_sent_unix_s: float, bytes_sent: int, events: list[dict[str, Any]]) -> Start:
    """By the clock on the wall, which a local server shares with its controller."""

    def at(kind: str) -> float:
        return float(of_kind(events, kind)[0]["unix_s"])

    edges = {
        "upload the runtime": (ssh_ready_unix_s, agent_sent_unix_s),
        "upload and start the agent": (agent_sent_unix_s, at("AgentStarted")),
        "probe": (at("AgentStarted"), at("Probed")),
        "read the header": (at("Probed"), at("HeaderRead")),
        "start llama-bench": (at("DownloadFinished"), at("BenchStarted")),
    }
    steps_s = {step: end - start for step, (start, end) in edges.items()}
    return Start(steps_s, at("DownloadFinished") - at("HeaderRead"), bytes_sent)


def _result(bench: Workbench, seen: dict[str, list[Start]]) -> Result:
    model: ModelSpec = bench.model(MODEL)
    result = Result("first_bench", {"runtime": bench.engine.runtime_id, "model": model.name})
    table = Table("seconds, medians", ["server", "n", "all", *STEPS, "(download)", "MB sent"], [])
    for server, starts in seen.items():
        total = spread([s.total_s for s in starts])
        sent_mb = median([s.bytes_sent / 1e6 for s in starts])
        steps = [f"{median([s.steps_s[step] for s in starts]):.2f}" for step in STEPS]
        download = f"{median([s.download_s for s in starts]):.2f}"
        table.rows.append([server, str(len(starts)), total.seconds(), *steps, download, f"{sent_mb:.2f}"])
        result.raw[server] = [{**s.steps_s, "download": s.download_s, "bytes_sent": s.bytes_sent} for s in starts]
        verdict = "at most" if total.median <= TARGET_S else "NOT at most"
        result.findings.append(
            f"{server}: {total.seconds()} s, {verdict} {TARGET_S:.0f} s; {sent_mb:.1f} MB sent "
            f"(the predecessor: {PREDECESSOR})"
        )
    result.tables.append(table)
    return result
