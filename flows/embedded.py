"""A Prefect server for the time of one command, where none is configured.

Prefect's own temporary server is a child in our process group, so Ctrl-C in a terminal ends it before our flows
have stored how they ended. This one is in a session of its own, and the kernel ends it when we are killed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.domain.errors import ConfigError

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 15.0
FLUSH_S = 5.0
# The server stores task runs from events, a moment after it has them.
SERVER_STORES_S = 1.0
_PR_SET_PDEATHSIG = 1


@contextmanager
def prefect_api(home: Path) -> Iterator[Callable[[], None]]:
    """Set PREFECT_API_URL for the block; the yielded call waits until the API answers. Does nothing if it is set.

    Must be entered before `prefect` is imported for the first time. Raises ConfigError when the server does not start.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield lambda: None
        return
    port = _free_port()
    log_path = home / "prefect-server.log"
    home.mkdir(parents=True, exist_ok=True)
    process = start_server(port, log_path, dies_with_us=True)
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    try:
        yield lambda: wait_until_healthy(process, port, log_path)
    finally:
        stop_server(process)
        del os.environ["PREFECT_API_URL"]


def start_server(port: int, log_path: Path, *, dies_with_us: bool) -> subprocess.Popen[bytes]:
    """`prefect server start` on the loopback address, in a session of its own."""
    environment = {
        **os.environ,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # Without these two the pages call port 4200, whatever port the server has.
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
    }
    # -P: a folder `flows` where the command is given is not ours.
    command = [sys.executable, "-P", "-m", "flows.prefect_server", "server", "start"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log_path.open("ab") as log:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_parent if dies_with_us and sys.platform == "linux" else None,
        )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    """Raises ConfigError when the server ends or does not answer in time."""
    give_up = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise ConfigError(f"The Prefect server did not come up on port {port}.", next_step=f"See {log_path}.")


def stop_server(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def flush_prefect() -> None:
    """Give events and log lines that are still on their way a few seconds; we leave without Prefect's exit hooks."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    logging.disable(logging.CRITICAL)  # what is still said from here on is about the end of the server
    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=FLUSH_S)
    time.sleep(SERVER_STORES_S)
