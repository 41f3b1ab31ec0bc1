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
    serving_worker = EndingWorker(pool, name=name or None, limit=limit, base_job_template=template)
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    serving = asyncio.create_task(serving_worker.start(printer=_say))
    waiting = asyncio.create_task(told.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not serving.done():
        _say("ending: flow runs delete their servers first; after kill -9, `tokensweep reap` does it")
        await serving_worker.end_flow_runs()
        serving.cancel()
        await asyncio.wait({serving}, timeout=LEAVE_S)
        if not serving.done():
            os._exit(0)  # it says goodbye to a server that has gone
    with suppress(asyncio.CancelledError):
        await serving


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
