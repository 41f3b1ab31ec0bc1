"""Server runs on workers: the sweep hands shards of some hundred servers to the deployment `shard/worker`.

`shard_servers` of the settings limits what one SIGKILL costs, and keeps a shard's page in the UI fast.

A shard plans its part again from the same request and runs it inline. What it measured is in the lake and what it
holds is in the ledger, which all workers share, so a shard that dies loses nothing that was measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import flow, get_client, get_run_logger
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.inline import STARTS_AT_ONCE_ON_WORKERS, run_inline
from flows.orders import key
from flows.request import ShardRequest, SweepRequest
from flows.server import ServerReport
from flows.shard_runs import DEPLOYMENT, ShardRuns, batched, has_ended
from flows.stopping import stops_on_signals, was_cancelled_in_prefect
from tasks.domain.errors import ConfigError
from tasks.domain.sweep_plan import PlannedServer
from tasks.ledger import RunState
from tasks.planning import PreparedSweep, configure_vendors, prepare_request
from tasks.publish import ended_runs
from tasks.threads import in_thread, to_its_end
from tasks.wiring import Services, open_services


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
    await in_thread(configure_vendors, prepared, services)
    found = await run_inline(prepared, chosen, services, starts_at_once=STARTS_AT_ONCE_ON_WORKERS)
    return sum(report.outcome not in ("completed", "gated") for report in found)


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
    since = datetime.now(UTC)
    sweep_id = prepared.plan.sweep_id
    names = [key(planned) for planned in chosen]
    parts = dict(enumerate(batched(names, services.settings.shard_servers), 1))
    runs = ShardRuns()
    log = get_run_logger()
    try:
        for number, part in parts.items():
            order = ShardRequest(
                sweep=request, sweep_id=sweep_id, number=number, servers=part, started_by=str(flow_run.id)
            )
            await runs.start(order)
        log.info("%d servers in %d shards", len(names), len(parts))
        await runs.until_final(lambda numbers: _dead(services, sweep_id, {n: parts[n] for n in numbers}))
    except BaseException:
        # A task of its own: a second cancellation must not cut the first one short.
        await to_its_end(runs.cancel())
        raise
    return await in_thread(_reports, prepared, chosen, services, since)


def _dead(services: Services, sweep_id: str, parts: Mapping[int, Sequence[str]]) -> list[int]:
    """Shards whose process is proven dead by the server runs that it left: a worker that is killed tells nobody."""
    running = [run for run in services.ledger.server_runs(sweep_id) if run.state is RunState.RUNNING]
    abandoned = {run.server_run_id for run in services.ledger.abandoned_runs(sweep_id)}
    found = []
    for number, names in parts.items():
        own = [run.server_run_id for run in running if f"{run.vendor}/{run.server}" in set(names)]
        if own and abandoned.issuperset(own):
            found.append(number)
    return found


async def workers_are_deployed() -> bool:
    async with get_client() as client:
        try:
            await client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            return False
    return True


def _reports(
    prepared: PreparedSweep, chosen: Sequence[PlannedServer], services: Services, since: datetime
) -> list[ServerReport]:
    """From the lake, since the shards ran elsewhere. A server without a row was not reached: its shard died first."""
    rows = {(row["vendor"], row["server"]): row for row in ended_runs(services, prepared.plan.sweep_id, since)}
    found = []
    for planned in chosen:
        row = rows.get((planned.offer.vendor, planned.offer.name))
        found.append(
            ServerReport(
                server=planned.offer.name,
                server_run_id=row["server_run_id"] if row else "",
                outcome=row["outcome"] if row else "interrupted",
                reason=row["reason"] if row else "shard_died",
                detail=(row["detail"] or "") if row else "its worker ended before this server had an outcome",
            )
        )
    return found
