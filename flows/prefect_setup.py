"""Settings of Prefect for the commands; must be applied before `prefect` is imported for the first time."""

from __future__ import annotations

import os
from pathlib import Path

from tasks.wiring import make_home

# The server of one command shows and records one sweep. What serves cron, automations and telemetry only costs
# start-up time and CPU that the measured servers need here.
EMBEDDED = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_CLIENT_MAX_RETRIES": "4",
}


def prepare(home: Path, *, verbose: bool = False, patient: bool = True) -> None:
    """Give Prefect defaults that fit here. What the environment says already is left alone.

    patient False: Prefect is asked for the credentials of some vendors only, and those of the others must not wait
    minutes for an API that is away.
    """
    make_home(home)
    if not patient:
        os.environ["PREFECT_CLIENT_MAX_RETRIES"] = "1"
    os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if verbose else "CRITICAL")
    if not os.environ.get("PREFECT_API_URL"):
        for name, value in EMBEDDED.items():
            os.environ.setdefault(name, value)
    # A cluster's API may be away for minutes; with the default of 5 tries an outage of 130 s lost a result.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "8")
