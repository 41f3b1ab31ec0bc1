"""Server runs on workers: the sweep hands shards of some hundred servers to the deployment `shard/worker`.

`shard_servers` of the settings limits what one SIGKILL costs, and keeps a shard's page in the UI fast.

A shard plans its part again from the same request and runs it inline. What it measured is in the lake and what it
holds is in the ledger, which all workers share, so a shard that dies loses nothing that was measured.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from prefect import flow, get_client, get_run_logger
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.inline import STARTS_AT_ONCE_ON_WORKERS, run_inline
from flows.orders import key
from flows.request import ShardRequest, SweepRequest
from flows.server import ServerReport
from flows.shard_runs import DEPLOYMENT, ShardRuns, batched, has_ended
from flows.stopping import stops_on_signals, was_cancelled_in_prefect
from tasks.artifacts import SweepProgress
from tasks.domain.errors import ConfigError
from tasks.domain.lifecycle import LedgerError
from tasks.domain.reaping import Liveness
from tasks.domain.sweep_plan import PlannedServer
from tasks.ledger import RunState
from tasks.planning import PreparedSweep, configure_vendors, prepare_request
from tasks.publish import ended_runs
from tasks.threads import in_thread, to_its_end
from tasks.wiring import Services, open_services

logger = logging.getLogger(__name__)

RENEW_S = 60.0
SILENT_S = 1800.0
"""A shard that nobody can see, and of which nothing changes for so long, is dead: its node is lost, or was before it
could begin. To be wrong costs no server: what it still runs it ends itself, and its rows are landed."""
CLOCKS_DIFFER_S = 600.0


@flow(
    name="shard",
    flow_run_name="shard/{request.sweep_id}-{request.number}",
    description="A part of a sweep: one subflow per server, all in this process.",
)
async def shard(request: ShardRequest) -> int | State[Any]:
    """Carry out the server runs of one shard; returns how many did not complete."""
    if request.started_by and await has_ended(request.started_by):
        return Cancelled(message="its sweep has ended or is being cancelled; nothing was begun")
    try:
        with stops_on_signals():
            return await _shard(request)
    except asyncio.CancelledError:
        if not await was_cancelled_in_prefect():
            raise
        return Cancelled(message="cancelled; every server has been deleted")


async def _shard(request: ShardRequest) -> int:
    services = open_services()
    sweep = request.sweep
    _, prepared = await in_thread(prepare_request, services, sweep.preset, sweep.max_usd, sweep.label, sweep.server)
    if prepared.plan.sweep_id != request.sweep_id:
        raise ConfigError(
            f"This worker plans the sweep as {prepared.plan.sweep_id}, its controller as {request.sweep_id}.",
            next_step="Bring presets, models and version of tokensweep on all machines to the same state.",
        )
    wanted = set(request.servers)
    busy = await in_thread(_busy, services, request.sweep_id)
    chosen = [planned for planned in prepared.to_run() if key(planned) in wanted - busy]
    async with _known_to_live(services, str(flow_run.id)):
        await in_thread(configure_vendors, prepared, services)
        found = await run_inline(prepared, chosen, services, starts_at_once=STARTS_AT_ONCE_ON_WORKERS)
    return sum(report.outcome not in ("completed", "gated") for report in found)


@asynccontextmanager
async def _known_to_live(services: Services, shard_id: str) -> AsyncIterator[None]:
    """Say so in the ledger while the block runs, for the sweep, which waits for nothing else."""
    await in_thread(services.ledger.claim_sweep, shard_id)

    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with suppress(LedgerError):
                await in_thread(services.ledger.renew_claim, shard_id)

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        with suppress(LedgerError):
            await to_its_end(in_thread(services.ledger.release_sweep, shard_id))


def _busy(services: Services, sweep_id: str) -> set[str]:
    """Servers that another process measures just now: a shard of a sweep that was killed may begin late, beside those
    of its successor."""
    running = [run for run in services.ledger.server_runs(sweep_id) if run.state is RunState.RUNNING]
    return {f"{run.vendor}/{run.server}" for run in running if services.ledger_of(run.vendor).may_still_run(run)}


async def run_on_workers(
    request: SweepRequest, prepared: PreparedSweep, chosen: Sequence[PlannedServer], services: Services
) -> list[ServerReport]:
    """One report per chosen server. When this is cancelled or fails the shards are cancelled, and waited for, for a
    while."""
    since = datetime.now(UTC) - timedelta(seconds=CLOCKS_DIFFER_S)
    sweep_id = prepared.plan.sweep_id
    names = [key(planned) for planned in chosen]
    parts = dict(enumerate(batched(names, services.settings.shard_servers), 1))
    runs = ShardRuns()
    log = get_run_logger()
    earlier = {run.server_run_id for run in await in_thread(services.ledger.server_runs, sweep_id)}
    progress = SweepProgress(sweep_id, len(chosen), prepared.plan.max_usd)
    await progress.begin()
    try:
        for number, part in parts.items():
            order = ShardRequest(
                sweep=request, sweep_id=sweep_id, number=number, servers=part, started_by=str(flow_run.id)
            )
            await runs.start(order)
        log.info("%d servers in %d shards", len(names), len(parts))
        ends = await runs.until_final(_Dead(services), partial(progress.look, services, earlier))
    except BaseException:
        # A task of its own: a second cancellation must not cut the first one short.
        await to_its_end(runs.cancel())
        raise
    cancelled = {name for number, part in parts.items() if ends.get(number) is StateType.CANCELLED for name in part}
    rows = await in_thread(ended_runs, services, sweep_id, since, earlier)
    return [_report(planned, rows, key(planned) in cancelled) for planned in chosen]


class _Dead:
    """Tells which shards run nowhere any more. A worker that is killed tells nobody, nor does a lost node."""

    def __init__(self, services: Services, silent_s: float = SILENT_S) -> None:
        self._services, self._silent_s = services, silent_s
        self._seen: dict[int, tuple[object, float]] = {}

    def __call__(self, begun: Mapping[int, FlowRun]) -> list[int]:
        """By the claim of each in the ledger: its process is proven dead; or cannot be seen, and neither the claim nor
        what Prefect says of it has changed for silent_s."""
        try:
            claims = {number: self._services.ledger.claim(str(run.id)) for number, run in begun.items()}
        except LedgerError as exc:
            logger.warning("whether shards live cannot be told: %s", exc)
            self._seen.clear()
            return []
        found = []
        for number, run in begun.items():
            claim, now_s = claims[number], time.monotonic()
            if claim is not None and claim.liveness is Liveness.ALIVE:
                continue
            sign = (claim and claim.unix_s, run.state and run.state.id)
            before, since_s = self._seen.get(number, (None, now_s))
            if before != sign:
                self._seen[number] = (sign, now_s)
                since_s = now_s
            if (claim is not None and claim.liveness is Liveness.DEAD) or now_s - since_s > self._silent_s:
                found.append(number)
        return found


async def workers_are_deployed() -> bool:
    async with get_client() as client:
        try:
            await client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            return False
    return True


def _report(planned: PlannedServer, rows: Mapping[tuple[str, str], Mapping[str, Any]], cancelled: bool) -> ServerReport:
    """From the lake, since the shard ran elsewhere. A server without a row was not reached."""
    row = rows.get((planned.offer.vendor, planned.offer.name))
    if row is not None:
        run_id, outcome, reason = row["server_run_id"], row["outcome"], row["reason"]
        detail = row["detail"] or ""
    elif cancelled:
        run_id, outcome, reason = "", "cancelled", "cancelled"
        detail = "its shard was cancelled before this server had an outcome"
    else:
        run_id, outcome, reason = "", "interrupted", "shard_died"
        detail = "its worker ended before this server had an outcome"
    return ServerReport(server=planned.offer.name, server_run_id=run_id, outcome=outcome, reason=reason, detail=detail)
