"""`tokensweep ui`: a Prefect server with the sweep form, the cron reaper, and this process as the one that runs them.

`serve` is used, not a process worker: a worker that is stopped kills its flows without their `finally`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tasks.domain.errors import ConfigError
from tasks.settings import Settings

START_TIMEOUT_S = 120.0
REAP_CRON = "*/5 * * * *"


def server_environment(home: Path, port: int) -> dict[str, str]:
    """Environment of the server. Without the last two its pages call port 4200, whatever port it has."""
    return {
        **os.environ,
        "PREFECT_HOME": os.environ.get("PREFECT_HOME", str(home / "prefect")),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
    }


async def serve_ui(settings: Settings, port: int) -> int:
    """Start server and deployments; returns when interrupted. Raises ConfigError when the server does not come up."""
    environment = server_environment(settings.home, port)
    log_path = settings.home / "prefect-server.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        await _wait_until_healthy(process, port, log_path)
        os.environ.update(PREFECT_API_URL=f"http://127.0.0.1:{port}/api", PREFECT_HOME=environment["PREFECT_HOME"])
        sys.stderr.write(f"UI: http://127.0.0.1:{port}   (Ctrl-C ends it)\n")
        await _serve_deployments()
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
    return 0


async def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    give_up = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up and process.poll() is None:
        if await asyncio.to_thread(_healthy, port):
            return
        await asyncio.sleep(0.5)
    raise ConfigError(
        f"The Prefect server did not come up on port {port}.", next_step=f"See {log_path}; another port: --port."
    )


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


async def _serve_deployments() -> None:
    from prefect import aserve

    from flows.reap import reap
    from flows.sweep import sweep

    await aserve(
        await sweep.ato_deployment("adhoc", tags=["sweep"]),
        await sweep.ato_deployment(
            "weekly", tags=["sweep"], cron="0 3 * * 1", paused=True, parameters={"request": {"mode": "plan"}}
        ),
        await reap.ato_deployment("cron", tags=["reap"], cron=REAP_CRON),
        pause_on_shutdown=False,
        limit=4,
    )
