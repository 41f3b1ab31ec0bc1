"""`tokensweep worker`: carries out what sweeps hand to a work pool. Told to end, it ends that first.

It is Prefect's process worker but for its end. Prefect's own kills its flow runs within a second, without their
`finally`, whichever signal it gets, and their servers stay until the reaper comes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from typing import Annotated

import typer

from tasks.domain.errors import ConfigError
from tasks.settings import CHECKOUT

POOL = "tokensweep"
REAPER_QUEUE = "reaper"
"""Of the pool: what is scheduled there has a place of its own in each worker, beside its `limit`. Sweeps hold theirs
for hours, and the reaper must not wait for them."""
LEAVE_S = 15.0
TEMPLATE = CHECKOUT / "deployments" / "work-pools" / "process.json"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(worker)


def worker(
    pool: Annotated[
        str, typer.Option(help="Work pool of the Prefect server of PREFECT_API_URL; made if missing.")
    ] = POOL,
    limit: Annotated[int, typer.Option(min=1, help="Flow runs at once.")] = 2,
    name: Annotated[str, typer.Option(help="Its name in the UI; made up if left out.")] = "",
) -> None:
    """Carry out shards of sweeps until SIGTERM or Ctrl-C, which delete their servers before it ends."""
    # The first process of a container ignores what it has no handler for, and the imports below take seconds.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not os.environ.get("PREFECT_API_URL"):
        raise ConfigError(
            "A worker asks a Prefect server for its work, and none is named.",
            next_step="Set PREFECT_API_URL, or carry sweeps out here: tokensweep run.",
        )
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "8")  # as in flows/prefect_setup.py
    asyncio.run(_serve(pool, limit, name))


async def _serve(pool: str, limit: int, name: str) -> None:
    from flows.ending_worker import EndingWorker

    template = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    sweeps = EndingWorker(pool, name=name or None, limit=limit, base_job_template=template)
    reaper = EndingWorker(pool, [REAPER_QUEUE], name=f"{sweeps.name} (reaper)", limit=1, create_pool_if_not_found=False)
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    serving = [asyncio.create_task(worker.start(printer=_say)) for worker in (sweeps, reaper)]
    waiting = asyncio.create_task(told.wait())
    await asyncio.wait({*serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if told.is_set():
        _say("ending: flow runs delete their servers first; after kill -9, `tokensweep reap` does it")
        await asyncio.gather(sweeps.end_flow_runs(), reaper.end_flow_runs())
    for task in serving:
        task.cancel()
    _, still = await asyncio.wait(serving, timeout=LEAVE_S)
    if still:
        os._exit(0)  # they say goodbye to a server that has gone
    for task in serving:
        with suppress(asyncio.CancelledError):
            await task


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
