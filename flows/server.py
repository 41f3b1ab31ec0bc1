"""One server run: create, connect, upload, benchmark, tear down, land.

The order of the ends matters. The servers are ended first, in `finally`, because they cost money; landing works
from the spool on this machine's disk, so nothing measured depends on it, and a failure to land leaves no server.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from decimal import Decimal
from functools import cache
from typing import Any

from prefect import flow, get_run_logger
from pydantic import BaseModel

from flows.live_view import LiveView
from flows.stopping import stops_on_signals
from tasks.benchmark import follow, open_host
from tasks.clouds.base import ServerType
from tasks.clouds.hosts import SIMULATED, Host
from tasks.domain.cells import Reason
from tasks.domain.errors import AgentError, CleanupError, ServerGoneError, TokensweepError, UnreachableError
from tasks.domain.lifecycle import LedgerRow
from tasks.domain.run_plan import RunPlan
from tasks.domain.sweep_plan import SETUP_S
from tasks.engine import Engine, engine_for, gpu_model_of
from tasks.ledger import RunState
from tasks.maintenance import ensure_heartbeat
from tasks.planning import known_type
from tasks.progress import say
from tasks.provision import Order, ServerKeys, create, tear_down_now
from tasks.publish import RunRecord, land_now
from tasks.remote.spool import Spool
from tasks.settings import Settings
from tasks.steps import Timeline
from tasks.threads import in_thread, to_its_end
from tasks.wiring import Services, open_services


class StartPlace:
    """One of the places of those that start just now: Prefect's API does not bear more. Given back once, by whoever
    comes first: the subflow's first line, or its parent when it never came so far."""

    def __init__(self, gate: asyncio.Semaphore) -> None:
        self._gate: asyncio.Semaphore | None = gate

    def give_back(self) -> None:
        if self._gate is not None:
            self._gate.release()
            self._gate = None


start_place: ContextVar[StartPlace | None] = ContextVar("start_place", default=None)


class ServerOrder(BaseModel):
    """One server run, small enough to be a flow parameter. `plan` is RunPlan.to_json(). bars: whether its steps are
    shown as task runs."""

    vendor: str
    server: str
    server_run_id: str
    sweep_id: str
    max_usd_sweep: float
    plan: str
    places: tuple[str, ...] = ()
    disk_bytes: int = 0
    spot: bool = False
    bars: bool = True


class ServerReport(BaseModel):
    """How one server run ended. `left_open`: servers whose end is not proven yet; the reaper goes on with them."""

    server: str
    server_run_id: str
    outcome: str
    reason: str = ""
    detail: str = ""
    left_open: int = 0


reports: dict[str, ServerReport] = {}
"""Of the runs of this process that have ended, by server_run_id; known even when Prefect's API is gone."""


@flow(
    name="server",
    flow_run_name="{order.vendor}/{order.server}",
    description="One server: create, connect, benchmark, tear down, land.",
    validate_parameters=True,
)
async def server(order: ServerOrder) -> ServerReport:
    """Run one server to its end. Never raises for what a server can do wrong: that is in the report and the lake."""
    if place := start_place.get():
        place.give_back()
    with stops_on_signals():
        return await run_server(order)


async def run_server(order: ServerOrder) -> ServerReport:
    """The work of the subflow; also runs without Prefect, where that has gone in the middle of a sweep."""
    services = _services_as(Settings().model_dump_json())
    plan = RunPlan.from_json(order.plan)
    kind = await in_thread(known_type, services.cloud(order.vendor), order.server)
    cache_dir, gpu_model = services.settings.cache_dir, gpu_model_of(kind)
    engine = await in_thread(engine_for, plan.models[0].weights, cache_dir, kind.arch, gpu_model)
    return await _Run(order, plan, services, engine, kind).carry_out()


@cache
def _services_as(settings: str) -> Services:
    """One ledger and one client per vendor for all server runs of this process that have the same settings."""
    return open_services()


class _Run:
    def __init__(self, order: ServerOrder, plan: RunPlan, services: Services, engine: Engine, kind: ServerType) -> None:
        self.order, self.plan, self.services, self.engine = order, plan, services, engine
        self.cloud = services.cloud(order.vendor)
        self.clock = services.clock(order.vendor)
        self.server_type = kind
        self.record = RunRecord(
            started_unix_s=self.clock.now(),
            now=self.clock.now,
            engine=SIMULATED if plan.models[0].weights == SIMULATED else "llama.cpp",
            isolation=str(getattr(self.cloud, "isolation", "vm")),
            llama_cpp_commit=engine.llama_cpp_commit,
            agent_version=engine.agent_version,
            spot=order.spot,
            vendor=order.vendor,
        )
        self.cancel = threading.Event()
        self.live: LedgerRow | None = None
        self.spool_path = services.settings.spool_dir / f"{plan.server_run_id}.jsonl"
        self.timeline = Timeline(shown=order.bars)
        self.log = get_run_logger()

    async def carry_out(self) -> ServerReport:
        """Nothing here waits for Prefect: bars are drawn beside the work, and settled when all is over."""
        try:
            await to_its_end(in_thread(self._begin))
        except asyncio.CancelledError:
            with suppress(TokensweepError):
                await in_thread(self.services.ledger.end_run, self.plan.server_run_id, RunState.INTERRUPTED)
            raise
        try:
            try:
                await self._measure()
            finally:
                await to_its_end(self._end_servers())
        except TokensweepError as exc:
            self._failed(exc)
        except asyncio.CancelledError:
            self._cancelled()
            await to_its_end(self._land())
            raise
        except Exception as exc:
            # Nobody foresaw it, but what was measured until then still counts.
            self.log.exception("%s", self.order.server)
            self._failed(AgentError(f"{type(exc).__name__}: {exc}", reason=TokensweepError.usual_reason))
        await to_its_end(self._land())
        reports[self.plan.server_run_id] = self._report()
        await self.timeline.settle()
        return reports[self.plan.server_run_id]

    def _begin(self) -> None:
        """The plan and the spool are on disk before anything is created: what is measured survives this process."""
        self.spool_path.parent.mkdir(parents=True, exist_ok=True)
        self.spool_path.with_suffix(".plan.json").write_text(self.plan.to_json())
        self.record.write_beside(self.spool_path)
        self.services.ledger_of(self.order.vendor).begin_run(
            self.plan.server_run_id,
            sweep_id=self.order.sweep_id,
            server=self.order.server,
            vendor=self.order.vendor,
            spool_path=str(self.spool_path),
        )

    async def _measure(self) -> None:
        keys = ServerKeys()
        order = Order(
            sweep_id=self.order.sweep_id,
            server_run_id=self.plan.server_run_id,
            server_type=self.server_type,
            deadline_unix_s=self.clock.now() + self._longest_s() + SETUP_S,
            cap_usd=_decimal(self.order.max_usd_sweep),
            usd_per_hour=_decimal(self.plan.price_usd_per_hour),
            places=self.order.places,
            disk_bytes=self.order.disk_bytes,
            spot=self.order.spot,
        )
        began = self.clock.now()
        say(self.order.server, "create")
        async with self.timeline.bar(f"create {self.order.server}"):
            await in_thread(ensure_heartbeat, self.services, self.order.vendor)
            live = await create(order, self.services, keys, self.cancel)
        self.live = live.row
        self.record.phase("create", began)
        host = open_host(live, keys, self.services, self.engine, self.cancel)
        began = self.clock.now()
        say(self.order.server, "connect")
        async with self.timeline.bar("connect"):
            await in_thread(host.connect, on_cancel=self.cancel.set)
        self.record.ssh_ready_unix_s = self.clock.now()
        self.record.phase("connect", began)
        began = self.clock.now()
        plan = _with_billed(self.plan, began - (live.row.sent_unix_s or began))
        async with self.timeline.bar("upload agent and runtime"):
            started = await in_thread(host.start, plan, on_cancel=self.cancel.set)
        self.record.agent_started_unix_s, self.record.bytes_sent = started.agent_started_unix_s, started.bytes_sent
        self.record.phase("upload", began)
        await self._follow(host)

    def _longest_s(self) -> float:
        """The run's deadline, or when its money is spent: what is reserved for a dear server is not for an hour."""
        return min(self.plan.deadline_s, self.plan.billing.lifetime_for_s(self.plan.max_usd))

    async def _follow(self, host: Host) -> None:
        """Follow the agent; a copy of every event goes to the live view (tasks and progress in the UI)."""
        loop = asyncio.get_running_loop()
        view = LiveView(self.plan, self.timeline, self.log, cell_lines=self.order.bars)
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        def on_event(event: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, event)

        def on_lost(error: Exception) -> None:
            self.log.warning("connection lost, trying again: %s", error)

        def work() -> None:
            with Spool(self.spool_path) as spool:
                follow(host, spool, on_event, cancel=self.cancel, on_lost=on_lost)

        async def show() -> None:
            while (event := await queue.get()) is not None:
                view.on_event(event)

        shown = asyncio.create_task(show())
        try:
            await in_thread(work, on_cancel=self.cancel.set)
            queue.put_nowait(None)
            await shown
        finally:
            shown.cancel()

    async def _end_servers(self) -> None:
        """A delete that was not taken does not change how the run ended: it is in the ledger, the reaper goes on with
        it, and the report counts it."""
        began = self.clock.now()
        say(self.order.server, "tear down")
        async with self.timeline.bar("tear down"):
            try:
                await in_thread(tear_down_now, self.plan.server_run_id, self.services, self.live)
            except CleanupError as exc:
                self.log.error("%s", exc)
        self.record.phase("teardown", began)

    async def _land(self) -> None:
        say(self.order.server, "land")
        async with self.timeline.bar("land"):
            landing = await in_thread(
                land_now, self.plan, self.spool_path, self.record, self.server_type, self.services
            )
        self.record.outcome, self.record.reason, self.record.detail = landing.outcome, landing.reason, landing.detail
        say(self.order.server, "done" if landing.outcome == "completed" else landing.outcome, 1.0)

    def _cancelled(self) -> None:
        self.record.outcome, self.record.reason = "cancelled", Reason.CANCELLED.value
        self.record.lost_reason = Reason.CANCELLED

    def _failed(self, exc: TokensweepError) -> None:
        if self.cancel.is_set():
            self._cancelled()
            return
        self.record.outcome, self.record.reason, self.record.detail = "failed", exc.reason, str(exc)
        if not isinstance(exc, (UnreachableError, ServerGoneError, AgentError)):
            self.record.lost_reason = Reason.SERVER_FAILED
        self.log.error("%s", exc)

    def _report(self) -> ServerReport:
        left = [r for r in self.services.ledger.rows_of_run(self.plan.server_run_id) if r.state.value != "gone"]
        return ServerReport(
            server=self.order.server,
            server_run_id=self.plan.server_run_id,
            outcome=self.record.outcome,
            reason=self.record.reason,
            detail=self.record.detail,
            left_open=len(left),
        )


def _with_billed(plan: RunPlan, billed_before_s: float) -> RunPlan:
    return replace(plan, billed_before_s=max(billed_before_s, 0.0))


def _decimal(value: float) -> Decimal:
    return Decimal(str(value))
