"""The reaper as a flow of its own, for cron: it must not share the fate of any sweep."""

from __future__ import annotations

import time

from prefect import flow, get_run_logger

from tasks.artifacts import publish_leaks
from tasks.leaks import leaks as find_leaks
from tasks.maintenance import pass_of_the_reaper, recover
from tasks.threads import in_thread
from tasks.wiring import open_services


@flow(
    name="reap",
    flow_run_name="reap",
    description="List every vendor, delete what nobody may use any more, prove what is gone, say what is left.",
)
async def reap(dry_run: bool = False) -> int:
    """One pass. Returns how many resources are still there that should not be."""
    services = open_services()
    log = get_run_logger()
    report = await in_thread(lambda: pass_of_the_reaper(services, dry_run=dry_run))
    log.info("listed %s; %d gone, %d waiting", [x.vendor for x in report.listed], len(report.gone), len(report.waiting))
    for alert in report.alerts():
        log.error("%s", alert)
    ledger, whole = services.ledger_or_volatile()
    if whole and not dry_run:
        for found in await in_thread(recover, services):
            log.info("%s: landed=%s %s", found.run.server_run_id, found.landed, found.problem)
    clouds, broken = await in_thread(services.clouds_that_open)
    leaks = await in_thread(lambda: find_leaks(clouds, ledger, time.time, broken=broken))
    await publish_leaks(leaks)
    return 0 if leaks.clean else max(len(leaks.items) + len(leaks.unproven), 1)
