"""Server runs in this process: one async subflow each, started through a gate, `max_parallel` at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack

from prefect import get_run_logger, tags
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.limits import existing as existing_limits
from flows.limits import vendor_slot
from flows.orders import key, serve_models, server_order
from flows.server import ServerOrder, ServerReport, StartPlace, reports, run_server, server, start_place
from flows.subflow import Subflows
from tasks.artifacts import SweepProgress
from tasks.domain.errors import TokensweepError
from tasks.domain.lifecycle import LedgerError
from tasks.domain.sweep_plan import PlannedServer
from tasks.planning import PreparedSweep
from tasks.threads import in_thread
from tasks.wiring import Services

# On SQLite one writes at a time, so more would only wait; a client gives up after a minute.
STARTS_AT_ONCE = 4
STARTS_AT_ONCE_ON_WORKERS = 16
"""Where there are workers, Prefect has PostgreSQL; its client has 16 connections."""


async def run_inline(
    prepared: PreparedSweep,
    chosen: Sequence[PlannedServer],
    services: Services,
    *,
    starts_at_once: int = STARTS_AT_ONCE,
) -> list[ServerReport]:
    """One report per chosen server, in their order. When this is cancelled every server is torn down first."""
    places = asyncio.Semaphore(prepared.preset.max_parallel)
    gate = asyncio.Semaphore(starts_at_once)
    subflows = Subflows(server)
    log = get_run_logger()
    progress = SweepProgress(prepared.plan.sweep_id, len(chosen), prepared.plan.max_usd)
    await progress.begin()
    limits = await existing_limits({planned.offer.vendor for planned in chosen})

    async def one(planned: PlannedServer, urls: dict[str, str]) -> ServerReport:
        async with places, vendor_slot(planned.offer.vendor, limits):
            order = await in_thread(server_order, prepared, planned, services, urls)
            await gate.acquire()
            place = StartPlace(gate)
            start_place.set(place)
            log.info("%s: started, at most %s USD", order.server, planned.high_usd)
            try:
                report = await _guarded(order, services, subflows, place)
            finally:
                place.give_back()
            log.info("%s: %s %s %s", report.server, report.outcome, report.reason, report.detail)
            await progress.done(report.server, report.outcome, report.reason, services)
            return report

    with ExitStack() as stack, temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        urls = serve_models(prepared, services, stack)
        running = [asyncio.create_task(one(planned, urls.get(key(planned), {}))) for planned in chosen]
        try:
            return list(await asyncio.gather(*running))
        except BaseException:
            for child in running:
                child.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            raise


async def _guarded(order: ServerOrder, services: Services, subflows: Subflows, place: StartPlace) -> ServerReport:
    """A subflow that fails in a way nobody foresaw (Prefect's API gone, say) must not take the others with it."""
    try:
        with tags(order.vendor, f"sweep:{order.sweep_id}"):
            report: ServerReport = await subflows.run(f"{order.vendor}/{order.server}", order=order)
            return report
    except Exception as exc:
        if order.server_run_id in reports:  # it ran; only Prefect could not store how it ended
            return reports[order.server_run_id]
        if isinstance(exc, TokensweepError) or await in_thread(_has_begun, order, services):
            return _failed(order, exc)
        get_run_logger().warning("%s runs without Prefect, which cannot be reached: %s", order.server, exc)
    place.give_back()
    try:
        return await run_server(order)
    except Exception as exc:
        return _failed(order, exc)


def _has_begun(order: ServerOrder, services: Services) -> bool:
    """Whether the run came as far as the ledger. True where that cannot be read: without it nothing is created."""
    try:
        return services.ledger.server_run(order.server_run_id) is not None
    except LedgerError:
        return True


def _failed(order: ServerOrder, exc: Exception) -> ServerReport:
    get_run_logger().error("%s: %s", order.server, exc)
    reason = exc.reason if isinstance(exc, TokensweepError) else TokensweepError.usual_reason
    return ServerReport(
        server=order.server,
        server_run_id=order.server_run_id,
        outcome="failed",
        reason=reason,
        detail=str(exc) if isinstance(exc, TokensweepError) else f"{type(exc).__name__}: {exc}",
    )
