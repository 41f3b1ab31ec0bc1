"""A sweep: plan, reserve, fan out one subflow per server, sum up, prove that nothing is left."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Cancelled
from pydantic import BaseModel

from flows.inline import run_inline
from flows.request import INLINE_SERVERS, SweepRequest
from flows.server import ServerReport
from flows.shards import run_on_workers, workers_are_deployed
from flows.stopping import stops_on_signals, was_cancelled_in_prefect
from tasks.artifacts import publish_leaks, publish_plan, publish_results
from tasks.domain.errors import ConfigError
from tasks.domain.lifecycle import LedgerError
from tasks.leaks import leaks as find_leaks
from tasks.ledger import RunState
from tasks.maintenance import pass_of_the_reaper, recover
from tasks.planning import PreparedSweep, configure_vendors, prepare_request
from tasks.presets import load_preset
from tasks.progress import say
from tasks.summary import publish_summary
from tasks.threads import in_thread, to_its_end
from tasks.wiring import Services, open_services

logger = logging.getLogger(__name__)


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
begun: list[str] = []
"""The sweep that this process has claimed last: what it may have created."""


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
    request = request.dated(datetime.now(UTC).date())
    vendors = load_preset(request.preset, services.settings.presets).wanted()
    if request.mode == "run":
        say("", "reap")
        await _clean_up_first(services, vendors, log)
    say("", "plan")
    _, prepared = await in_thread(
        prepare_request, services, request.preset, request.max_usd, request.label, request.server
    )
    await publish_plan(prepared.plan)
    log.info(
        "%s: %d servers to run, at most %s USD", prepared.plan.sweep_id, len(prepared.to_run()), prepared.plan.max_usd
    )
    skipped = {s.offer.name: s.why for s in prepared.plan.servers if not s.run}
    result = SweepResult(sweep_id=prepared.plan.sweep_id, preset=request.preset, status="planned", skipped=skipped)
    if request.mode == "plan":
        return result
    if request.max_usd is None:
        raise ConfigError("A sweep that runs needs a money cap.", next_step="Set max_usd.")
    if not prepared.to_run():
        return result.model_copy(update={"status": "over_budget" if prepared.plan.over_budget else "nothing_to_do"})
    begun[:] = [prepared.plan.sweep_id]
    await in_thread(_claim, services, prepared.plan.sweep_id)
    try:
        await in_thread(configure_vendors, prepared, services)
        server_reports = await carry_out(request, prepared, services)
    finally:
        await to_its_end(in_thread(_release, services, prepared.plan.sweep_id))
    left = await _prove(prepared, services)
    await publish_summary(services, prepared.plan.sweep_id, len(server_reports))
    failed = [r for r in server_reports if r.outcome not in ("completed", "gated")]
    status = "some_failed" if failed else "completed"
    ended[:] = [result.model_copy(update={"status": status, "servers": server_reports, "left": left})]
    return ended[0]


async def carry_out(request: SweepRequest, prepared: PreparedSweep, services: Services) -> list[ServerReport]:
    """Run every server of the plan, here or on workers."""
    chosen = prepared.to_run()
    large = request.fan_out == "auto" and len(chosen) > INLINE_SERVERS
    if request.fan_out == "workers" or (large and await workers_are_deployed()):
        return await run_on_workers(request, prepared, chosen, services)
    if large:
        text = f"{len(chosen)} servers in one process: more than {INLINE_SERVERS} are for workers, see docs/scale.md"
        get_run_logger().warning("%s", text)
        say("", text)
    return await run_inline(prepared, chosen, services)


async def _clean_up_first(services: Services, vendors: Collection[str], log: Any) -> None:
    """End what dead controllers left, and save what they had measured, before anything new begins. Raises LedgerError:
    the reaper goes on without a ledger, a sweep does not."""
    await in_thread(services.ledger.open_rows)
    report = await in_thread(lambda: pass_of_the_reaper(services, vendors=vendors))
    for row in report.gone:
        log.warning("%s: %s was left behind by an earlier run and has been deleted", row.vendor, row.name)
    for found in await in_thread(recover, services):
        how = "its measured cells are in the lake" if found.landed else found.problem
        log.warning("%s was interrupted: %s", found.run.server_run_id, how)


def _claim(services: Services, sweep_id: str) -> None:
    """Raises ConfigError when another process carries the sweep out, or begins to."""
    try:
        services.ledger.claim_sweep(sweep_id)
    except LedgerError as exc:
        if exc.reason != "sweep_is_running":
            raise
        raise ConfigError(exc.message, next_step=exc.next_step) from exc
    try:
        _refuse_a_second_start(services, sweep_id)
    except BaseException:
        _release(services, sweep_id)
        raise


def _release(services: Services, sweep_id: str) -> None:
    try:
        services.ledger.release_sweep(sweep_id)
    except LedgerError as exc:  # it ends with this process
        logger.warning("%s", exc)


def _refuse_a_second_start(services: Services, sweep_id: str) -> None:
    """Two controllers on one sweep would measure every server twice. One that cannot be seen from here (a container,
    another machine) counts as dead when the deadline of its server has passed."""
    for run in services.ledger.server_runs(sweep_id):
        if run.state is RunState.RUNNING and services.ledger_of(run.vendor).may_still_run(run):
            raise ConfigError(
                f"The sweep {sweep_id} is running already: {run.server}, by pid {run.pid} on {run.host}.",
                next_step="See `tokensweep status`; a copy of it needs another --label. If that host is gone for good, "
                "start it again when the deadline of its servers has passed.",
            )


async def _prove(prepared: PreparedSweep, services: Services) -> int:
    """The last pass of the reaper, the proof, and the tables of the results. Returns what is left."""
    say("", "prove")
    vendors = {kind.vendor for kind in prepared.server_types.values()}
    await in_thread(lambda: pass_of_the_reaper(services, vendors=vendors))
    leaks = await in_thread(find_leaks, services.clouds(vendors), services.ledger_or_volatile()[0], time.time)
    await publish_leaks(leaks)
    await publish_results(services, prepared.plan.sweep_id)
    return 0 if leaks.clean else max(len(leaks.items) + len(leaks.unproven), 1)
