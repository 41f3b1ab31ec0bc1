"""Server runs on workers: the sweep hands shards of some hundred servers to the deployment `shard/worker`.

A shard plans its part again from the same request and runs it inline. What it measured is in the lake and what it
holds is in the ledger, which all workers share, so a shard that dies loses nothing that was measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect import flow, get_client, get_run_logger
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling

from flows.inline import run_inline
from flows.orders import key
from flows.request import ShardRequest, SweepRequest
from flows.server import ServerReport
from flows.stopping import stops_on_signals, was_cancelled_in_prefect
from tasks.domain.errors import ConfigError
from tasks.domain.sweep_plan import PlannedServer
from tasks.planning import PreparedSweep, configure_vendors, prepare_request
from tasks.publish import ended_runs
from tasks.threads import in_thread
from tasks.wiring import Services, open_services

DEPLOYMENT = "shard/worker"
SHARD_SERVERS = 200
"""Limits what one SIGKILL costs, and keeps a shard's page in the UI fast."""
POLL_S = 3.0
CANCEL_PATIENCE_S = 60.0


@flow(
    name="shard",
    flow_run_name="shard/{request.sweep_id}-{request.number}",
    description="A part of a sweep: one subflow per server, all in this process.",
)
async def shard(request: ShardRequest) -> int | State[Any]:
    """Carry out the server runs of one shard; returns how many did not complete."""
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
    chosen = [planned for planned in prepared.to_run() if key(planned) in wanted]
    await in_thread(configure_vendors, prepared, services)
    found = await run_inline(prepared, chosen, services)
    return sum(report.outcome not in ("completed", "gated") for report in found)


async def run_on_workers(
    request: SweepRequest, prepared: PreparedSweep, chosen: Sequence[PlannedServer], services: Services
) -> list[ServerReport]:
    """One report per chosen server. When this is cancelled the shards are cancelled, and waited for, for a while."""
    since = datetime.now(UTC)
    names = [key(planned) for planned in chosen]
    parts = [names[i : i + SHARD_SERVERS] for i in range(0, len(names), SHARD_SERVERS)]
    ids: list[UUID] = []
    log = get_run_logger()
    try:
        for number, part in enumerate(parts, 1):
            order = ShardRequest(sweep=request, sweep_id=prepared.plan.sweep_id, number=number, servers=part)
            ids.append(await _start(order))
        log.info("%d servers in %d shards", len(names), len(parts))
        await _until_final(ids)
    except asyncio.CancelledError:
        await asyncio.shield(_cancel(ids))
        raise
    return await in_thread(_reports, prepared, chosen, services, since)


async def workers_are_deployed() -> bool:
    async with get_client() as client:
        try:
            await client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            return False
    return True


async def _start(order: ShardRequest) -> UUID:
    try:
        run: FlowRun = await arun_deployment(
            DEPLOYMENT, parameters={"request": order.model_dump(mode="json")}, timeout=0, as_subflow=True
        )
    except ObjectNotFound as exc:
        raise ConfigError(
            f"There is no deployment {DEPLOYMENT} for a sweep of this size.",
            next_step="prefect deploy --all and start workers, or choose fan_out: inline.",
        ) from exc
    return run.id


async def _until_final(ids: Sequence[UUID]) -> None:
    open_ids = set(ids)
    async with get_client() as client:
        while open_ids:
            for flow_run_id in list(open_ids):
                state = (await client.read_flow_run(flow_run_id)).state
                if state is not None and state.is_final():
                    open_ids.discard(flow_run_id)
            if open_ids:
                await asyncio.sleep(POLL_S)


async def _cancel(ids: Sequence[UUID]) -> None:
    async with get_client() as client:
        for flow_run_id in ids:
            run = await client.read_flow_run(flow_run_id)
            if run.state is None or not run.state.is_final():
                started = run.state is not None and run.state.type is not StateType.SCHEDULED
                await client.set_flow_run_state(
                    flow_run_id, Cancelling() if started else Cancelled(), force=not started
                )
    try:
        await asyncio.wait_for(_until_final(ids), CANCEL_PATIENCE_S)
    except TimeoutError:
        get_run_logger().warning("shards did not end within %.0f s; the reaper ends what they hold", CANCEL_PATIENCE_S)


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
