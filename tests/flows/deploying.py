"""Prefect's own command, and the execution of a flow run as a worker's process does it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from tests.e2e.product import CHECKOUT, Done, Product
from tests.flows.prefect_rest import Prefect

TIMEOUT_S = 300.0


def prefect_command(product: Product, *arguments: str) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        env=product.env(),
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def execute(
    worker: Product, prefect: Prefect, deployment: dict[str, Any], request: dict[str, Any] | None = None
) -> str:
    """Create a flow run, and execute it by the command with which a worker's process does; returns its id."""
    path = f"/deployments/{deployment['id']}/create_flow_run"
    flow_run_id: str = prefect.post(path, {"parameters": {"request": request} if request else {}})["id"]
    prefect_command(worker, "flow-run", "execute", flow_run_id)
    return flow_run_id
