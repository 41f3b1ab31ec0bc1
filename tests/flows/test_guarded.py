"""A server run that fails because Prefect's API has gone, when the ledger, perhaps of the same database server, has
gone with it: its own end is enough."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.inline import _guarded
from flows.server import ServerOrder, StartPlace, server
from flows.subflow import Subflows
from tasks.settings import Settings
from tasks.wiring import open_services

NOBODY = "http://127.0.0.1:9/api"


async def test_without_prefect_and_ledger_a_server_run_fails_alone(tmp_path: Path) -> None:
    services = open_services(Settings(home=tmp_path))
    assert services.ledger.open_rows() == ()
    for leftover in tmp_path.glob("ledger.sqlite-*"):
        leftover.unlink()
    (tmp_path / "ledger.sqlite").write_bytes(b"this is no database" * 1000)
    order = ServerOrder(
        vendor="sim", server="c3a-8", server_run_id="run", sweep_id="sweep", max_usd_sweep=1.0, plan="{}"
    )
    away = {PREFECT_API_URL: NOBODY, PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(away), disable_run_logger():
        report = await _guarded(order, services, Subflows(server), StartPlace(asyncio.Semaphore(0)))
    assert (report.server_run_id, report.outcome) == ("run", "failed")
