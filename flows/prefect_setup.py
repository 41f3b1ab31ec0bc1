"""Settings of the embedded Prefect server; must be applied before `prefect` is imported for the first time."""

from __future__ import annotations

import os
from pathlib import Path

# With no server to talk to, Prefect starts one inside this process. It is there to show and record one sweep, so
# what serves cron, automations and telemetry only costs start-up time and CPU that the measured servers need here.
EMBEDDED = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_LEVEL": "WARNING",
}


def prepare(home: Path, *, verbose: bool = False) -> None:
    """Give Prefect defaults that fit here. What the environment says already is left alone."""
    os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "8")
    if os.environ.get("PREFECT_API_URL"):
        if not verbose:
            os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
        return
    for name, value in EMBEDDED.items():
        os.environ.setdefault(name, "INFO" if verbose and name == "PREFECT_LOGGING_LEVEL" else value)
