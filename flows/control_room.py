"""`tokensweep ui`: a Prefect server with the sweep form, the cron reaper, and this process as the one that runs them.

`serve` is used, not a process worker: a worker that is stopped kills its flows without their `finally`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from flows.embedded import start_server, stop_server, wait_until_healthy
from tasks.domain.errors import ConfigError
from tasks.settings import Settings

REAP_CRON = "*/5 * * * *"
KEPT_S = 30 * 24 * 3600
"""How long Prefect shows a flow run that has ended. What was measured is in the lake for good."""


async def serve_ui(settings: Settings, port: int) -> int:
    """Start server and deployments; returns when interrupted. Raises ConfigError when the server does not come up."""
    _check_free(port)
    os.environ.setdefault("PREFECT_HOME", str(settings.home / "prefect"))
    # The reaper alone makes 288 flow runs a day.
    os.environ.setdefault("PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED", "events,flow_runs")
    os.environ.setdefault("PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD", str(KEPT_S))
    settings.home.mkdir(parents=True, exist_ok=True)
    log_path = settings.home / "prefect-server.log"
    process = start_server(port, log_path, dies_with_us=True)
    try:
        wait_until_healthy(process, port, log_path)
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        sys.stderr.write(f"UI: http://127.0.0.1:{port}   (Ctrl-C ends it)\n")
        with _temporary_folder_of_our_own():
            await _serve_deployments()
    finally:
        stop_server(process)
    return 0


def _check_free(port: int) -> None:
    """Else the server of somebody else would answer in place of ours, and be given our deployments."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as exc:
            raise ConfigError(
                f"The UI cannot have port {port}: {exc}. Perhaps it runs already: http://127.0.0.1:{port}",
                next_step="Choose another port: tokensweep ui --port 4201.",
            ) from exc


@contextmanager
def _temporary_folder_of_our_own() -> Iterator[None]:
    """Prefect's runner puts its working copies below one folder for all users of a machine, and only the first of them
    may write there."""
    with tempfile.TemporaryDirectory(prefix="tokensweep-ui-") as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = None


class _Interrupt:
    """Ctrl-C as Prefect's runner means SIGTERM: its flow runs end first, which delete their servers. By itself it kills
    them at SIGINT, and at a second SIGTERM."""

    def __init__(self) -> None:
        self._told = False

    def __call__(self) -> None:
        if self._told:
            sys.stderr.write("flow runs delete their servers first; after kill -9, `tokensweep reap` does it\n")
            return
        self._told = True
        os.kill(os.getpid(), signal.SIGTERM)


async def _serve_deployments() -> None:
    from prefect import aserve

    from flows.catalog import catalog
    from flows.land import land
    from flows.one import one
    from flows.reap import reap
    from flows.shards import shard
    from flows.sweep import sweep

    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, _Interrupt())
    plan_only = {"request": {"preset": "local", "mode": "plan"}}
    one_plan_only = {"request": {"preset": "local", "server": "cpu1-mem512m-1000mbit", "mode": "plan"}}
    await aserve(
        await sweep.ato_deployment("adhoc", tags=["sweep"], parameters=plan_only),
        await sweep.ato_deployment("weekly", tags=["sweep"], cron="0 3 * * 1", paused=True, parameters=plan_only),
        await one.ato_deployment("one", tags=["sweep"], parameters=one_plan_only),
        await shard.ato_deployment("worker", tags=["sweep", "shard"], enforce_parameter_schema=False),
        await catalog.ato_deployment("daily", tags=["catalog"], cron="30 2 * * *", paused=True),
        await land.ato_deployment("hourly", tags=["land"], cron="17 * * * *", paused=True),
        await reap.ato_deployment("cron", tags=["reap"], cron=REAP_CRON),
        pause_on_shutdown=False,
        limit=8,
    )
