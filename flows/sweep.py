"""A sweep: plan, reserve, fan out one subflow per server, sum up, prove that nothing is left."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from prefect import flow, get_run_logger, tags
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled
from pydantic import BaseModel, ConfigDict, Field

from flows.server import ServerOrder, ServerReport, reports, run_server, server, start_gate
from flows.stopping import stops_on_signals, was_cancelled_in_prefect
from tasks.artifacts import SweepProgress, publish_leaks, publish_plan, publish_results
from tasks.domain.errors import ConfigError, TokensweepError
from tasks.domain.sweep_plan import PlannedServer
from tasks.engine import Engine, engine_for
from tasks.leaks import leaks as find_leaks
from tasks.ledger import RunState
from tasks.maintenance import pass_of_the_reaper, recover
from tasks.models.serve import ModelServer
from tasks.planning import PreparedSweep, configure_vendors, prepare, run_plan
from tasks.presets import load_preset, preset_names
from tasks.progress import say
from tasks.settings import Settings
from tasks.threads import in_thread
from tasks.wiring import Services, open_services

# Prefect on SQLite answers 503 when more than a few subflows start at once (measured: 34 of 250 were lost).
STARTS_AT_ONCE = 4


class SweepRequest(BaseModel):
    """The form of a sweep. It defaults to planning, which spends nothing."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"mode": {"const": "run"}}, "required": ["mode"]},
            "then": {"required": ["max_usd"]},
        }
    )

    preset: str = Field(
        default="local",
        title="Preset",
        description="A file of deployments/presets, without .yaml.",
        json_schema_extra={"position": 0, "enum": list(preset_names(Settings().presets))},
    )
    mode: Literal["plan", "run"] = Field(
        default="plan",
        title="Mode",
        description="plan: show what would be done and what it may cost. run: do it.",
        json_schema_extra={"position": 1},
    )
    max_usd: float | None = Field(
        default=None,
        title="Money cap (USD)",
        description="The sweep never spends more. Needed to run.",
        gt=0,
        le=100_000,
        json_schema_extra={"position": 2},
    )
    server: str = Field(
        default="",
        title="Only this server type",
        description="Empty: all of the preset.",
        json_schema_extra={"position": 3},
    )
    label: str = Field(
        default="",
        title="Label",
        description="Measure again under a new label what the same preset has measured already.",
        max_length=40,
        json_schema_extra={"position": 4},
    )

    @property
    def name(self) -> str:
        return Path(self.preset).stem


class SweepResult(BaseModel):
    """`left`: resources that are still there (should be 0)."""

    sweep_id: str
    preset: str
    status: Literal["planned", "nothing_to_do", "over_budget", "completed", "some_failed"]
    servers: list[ServerReport] = []
    skipped: dict[str, str] = {}
    left: int = 0


ended: list[SweepResult] = []
"""The last sweep of this process, known even when Prefect could not store its end."""


@flow(
    name="sweep",
    flow_run_name="sweep/{request.name}-{request.mode}",
    description="Measure a set of servers with a ladder of models; see the parameters.",
)
async def sweep(request: SweepRequest) -> SweepResult | State[Any]:
    """Plan the sweep and, with mode=run, carry it out. Starting it again takes up where it stopped."""
    try:
        with stops_on_signals():
            return await _sweep(request)
    except asyncio.CancelledError:
        if not await was_cancelled_in_prefect():
            raise
        return Cancelled(message="cancelled; every server has been deleted")


async def _sweep(request: SweepRequest) -> SweepResult:
    services = open_services()
    log = get_run_logger()
    overrides: dict[str, Any] = {} if request.max_usd is None else {"max_usd": Decimal(str(request.max_usd))}
    preset = load_preset(request.preset, services.settings.presets, overrides)
    say("", "runtime")
    engine = await in_thread(engine_for, preset.weights, services.settings.cache_dir)
    if request.mode == "run":
        say("", "reap")
        await _clean_up_first(services, log)
    say("", "plan")
    prepared = await in_thread(lambda: prepare(preset, services, engine, label=request.label, only=request.server))
    await publish_plan(prepared.plan)
    log.info("%s: %d servers to run, at most %s USD", prepared.plan.sweep_id, len(prepared.to_run()), preset.max_usd)
    skipped = {s.offer.name: s.why for s in prepared.plan.servers if not s.run}
    result = SweepResult(sweep_id=prepared.plan.sweep_id, preset=request.preset, status="planned", skipped=skipped)
    if request.mode == "plan":
        return result
    if request.max_usd is None:
        raise ConfigError("A sweep that runs needs a money cap.", next_step="Set max_usd.")
    if not prepared.to_run():
        return result.model_copy(update={"status": "over_budget" if prepared.plan.over_budget else "nothing_to_do"})
    _refuse_a_second_start(services, prepared.plan.sweep_id)
    await in_thread(configure_vendors, prepared, services)
    server_reports = await _fan_out(prepared, services, engine)
    left = await _prove(prepared, services)
    failed = [r for r in server_reports if r.outcome in ("failed", "interrupted")]
    status = "some_failed" if failed else "completed"
    ended[:] = [result.model_copy(update={"status": status, "servers": server_reports, "left": left})]
    return ended[0]


async def _clean_up_first(services: Services, log: Any) -> None:
    """End what dead controllers left, and save what they had measured, before anything new begins."""
    report = await in_thread(pass_of_the_reaper, services)
    for row in report.gone:
        log.warning("%s: %s was left behind by an earlier run and has been deleted", row.vendor, row.name)
    for found in await in_thread(recover, services):
        how = "its measured cells are in the lake" if found.landed else found.problem
        log.warning("%s was interrupted: %s", found.run.server_run_id, how)


def _refuse_a_second_start(services: Services, sweep_id: str) -> None:
    """Two controllers on one sweep would measure every server twice."""
    dead = {run.server_run_id for run in services.ledger.abandoned_runs(sweep_id)}
    runs = [r for r in services.ledger.server_runs(sweep_id) if r.state is RunState.RUNNING]
    for run in runs:
        if run.server_run_id not in dead:
            raise ConfigError(
                f"The sweep {sweep_id} is running already: {run.server}, by pid {run.pid} on {run.host}.",
                next_step="See `tokensweep status`; a copy of it needs another --label.",
            )


async def _fan_out(prepared: PreparedSweep, services: Services, engine: Engine) -> list[ServerReport]:
    """One subflow per server, `max_parallel` at a time. When this is cancelled every server is torn down first."""
    chosen = prepared.to_run()
    places = asyncio.Semaphore(prepared.preset.max_parallel)
    gate = asyncio.Semaphore(STARTS_AT_ONCE)
    start_gate.set(gate)
    log = get_run_logger()
    progress = SweepProgress(prepared.plan.sweep_id, len(chosen))
    await progress.begin()

    async def one(planned: PlannedServer, urls: dict[str, str]) -> ServerReport:
        async with places:
            order = await in_thread(_order, prepared, planned, services, urls)
            await gate.acquire()
            log.info("%s: started, at most %s USD", order.server, planned.high_usd)
            report = await _guarded(order, services)
            log.info("%s: %s %s %s", report.server, report.outcome, report.reason, report.detail)
            await progress.done(report.server, report.outcome)
            return report

    with ExitStack() as stack, temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        urls = _serve_models(prepared, services, stack)
        running = [asyncio.create_task(one(planned, urls.get(_key(planned), {}))) for planned in chosen]
        try:
            return list(await asyncio.gather(*running))
        except BaseException:
            for child in running:
                child.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            raise


async def _guarded(order: ServerOrder, services: Services) -> ServerReport:
    """A subflow that fails in a way nobody foresaw (Prefect's API gone, say) must not take the others with it."""
    try:
        with tags(order.vendor, f"sweep:{order.sweep_id}"):
            return await server(order)
    except Exception as exc:
        if order.server_run_id in reports:  # it ran; only Prefect could not store how it ended
            return reports[order.server_run_id]
        if not isinstance(exc, TokensweepError) and services.ledger.server_run(order.server_run_id) is None:
            get_run_logger().warning("%s runs without Prefect, which cannot be reached: %s", order.server, exc)
            return await run_server(order)
        get_run_logger().error("%s: %s", order.server, exc)
        reason = exc.reason if isinstance(exc, TokensweepError) else type(exc).__name__
        return ServerReport(
            server=order.server,
            server_run_id=order.server_run_id,
            outcome="failed",
            reason=reason,
            detail=str(exc),
        )


def _order(prepared: PreparedSweep, planned: PlannedServer, services: Services, urls: dict[str, str]) -> ServerOrder:
    sweep_id, name = prepared.plan.sweep_id, planned.offer.name
    kind = prepared.server_types[_key(planned)]
    # Random, not counted: a lost ledger must not make a new run overwrite the rows of an old one.
    server_run_id = f"{sweep_id}.{name}.{uuid.uuid4().hex[:8]}"
    return ServerOrder(
        vendor=planned.offer.vendor,
        server=name,
        server_run_id=server_run_id,
        sweep_id=sweep_id,
        max_usd_sweep=float(prepared.plan.max_usd),
        plan=run_plan(prepared, planned, server_run_id, services, urls).to_json(),
        places=kind.places,
        disk_bytes=0 if kind.disk_bytes else planned.offer.disk_bytes,
        spot=prepared.preset.spot,
    )


def _key(planned: PlannedServer) -> str:
    return f"{planned.offer.vendor}/{planned.offer.name}"


def _serve_models(prepared: PreparedSweep, services: Services, stack: ExitStack) -> dict[str, dict[str, str]]:
    """URL of each model by "vendor/server type", where it is not the one of the catalogue: on a mirror of the user's
    own, or, for local servers, on this machine. Raises ConfigError when a server has no way to made-up files."""
    base = services.settings.models_url.rstrip("/")
    if base:
        mirror = {m.name: f"{base}/{quote(m.file)}" for m in prepared.models}
        return dict.fromkeys(prepared.server_types, mirror)
    if prepared.preset.weights != "random":
        return {}
    far = sorted({kind.vendor for kind in prepared.server_types.values()} - {"local"})
    if far:
        raise ConfigError(
            f"Servers of {', '.join(far)} cannot reach the files with random weights, which lie on this machine.",
            next_step="Use weights: real, or serve them and set TOKENSWEEP_MODELS_URL.",
        )
    local = services.local()
    # A micro-VM's link is shaped by the kernel; a loopback server has none, so the file server shapes it.
    shaped_here = local.isolation == "loopback"
    links = {k.name: k.link_bytes_per_s for k in prepared.server_types.values()} if shaped_here else {}
    folder = services.settings.cache_dir / "models"
    files = stack.enter_context(ModelServer(folder, local.model_host(), links=links))
    stack.callback(local.close)
    return {
        key: {m.name: files.url(m.file, link=kind.name if kind.name in links else None) for m in prepared.models}
        for key, kind in prepared.server_types.items()
    }


async def _prove(prepared: PreparedSweep, services: Services) -> int:
    """The last pass of the reaper, the proof, and the tables of the results. Returns what is left."""
    say("", "prove")
    await in_thread(pass_of_the_reaper, services)
    leaks = await in_thread(find_leaks, services.clouds(), services.ledger_or_volatile()[0], time.time)
    await publish_leaks(leaks)
    await publish_results(services, prepared.plan.sweep_id)
    return 0 if leaks.clean else max(len(leaks.items) + len(leaks.unproven), 1)
