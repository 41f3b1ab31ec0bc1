"""The catalogue as a flow, for cron: server types and prices of every vendor that is set up, kept with their date."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger

from tasks.catalog import refresh
from tasks.domain.errors import ConfigError
from tasks.threads import in_thread
from tasks.wiring import open_services


@flow(
    name="catalog",
    flow_run_name="catalog",
    description="Read server types and prices of every vendor that is set up, and keep them with their date.",
)
async def catalog() -> dict[str, int]:
    """Number of server types by vendor. A vendor that cannot be read is logged and does not stop the others; the flow
    fails when none could be read."""
    services = open_services()
    log = get_run_logger()
    found: dict[str, int] = {}
    problems: list[Exception] = []
    clouds, broken = await in_thread(services.clouds_that_open)
    problems += [ConfigError(f"{vendor}: {why}") for vendor, why in broken.items()]
    for cloud in clouds:
        try:
            path, n_types = await in_thread(refresh, cloud, Path(services.settings.lake_root))
        except Exception as exc:
            log.exception("%s: its server types could not be read", cloud.vendor)
            problems.append(exc)
            continue
        log.info("%s: %d server types in %s", cloud.vendor, n_types, path)
        found[cloud.vendor] = n_types
    if problems and not found:
        raise problems[0]
    return found
