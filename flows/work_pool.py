"""Why flow runs of a deployment stay scheduled: what is wrong with its work pool, and what to do about it."""

from __future__ import annotations

import asyncio

from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import WorkerStatus

ASK_S = 15.0


async def why_nothing_begins(deployment: str) -> str:
    """One sentence with the next step. Never raises: where Prefect does not answer, that is the reason."""
    try:
        async with asyncio.timeout(ASK_S), get_client() as client:
            return await _why(client, deployment)
    except Exception as exc:
        return f"Prefect cannot be asked why: {type(exc).__name__}: {exc}"


async def _why(client: PrefectClient, name: str) -> str:
    deployment = await client.read_deployment_by_name(name)
    pool_name, queue_name = deployment.work_pool_name, deployment.work_queue_name
    if pool_name is None:
        return (
            f"{name} has no work pool. Either `tokensweep ui` must be running and have a place free; or deploy it to a "
            "pool (prefect deploy --all) and start `tokensweep worker`."
        )
    pool = await client.read_work_pool(pool_name)
    if pool.is_paused:
        return f"the work pool {pool_name} is paused. Resume it: prefect work-pool resume {pool_name}"
    if queue_name is not None:
        queue = await client.read_work_queue_by_name(queue_name, work_pool_name=pool_name)
        if queue.is_paused:
            return (
                f"the queue {queue_name} of the work pool {pool_name} is paused. "
                f"Resume it: prefect work-queue resume {queue_name} --pool {pool_name}"
            )
    online = [w for w in await client.read_workers_for_work_pool(pool_name) if w.status is WorkerStatus.ONLINE]
    if not online:
        return f"no worker of the work pool {pool_name} is online. Start one: tokensweep worker --pool {pool_name}"
    return (
        f"the {len(online)} workers of the work pool {pool_name} have no place free, or have only just looked. A sweep "
        "from the form takes a place itself. Start another `tokensweep worker`, or wait until a place is free."
    )
