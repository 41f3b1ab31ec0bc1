"""What is measured but not in the lake yet, as a flow for cron: run it on every machine that sweeps run on."""

from __future__ import annotations

from prefect import flow, get_run_logger
from pydantic import BaseModel

from tasks.domain.errors import LandingError
from tasks.lake import compact
from tasks.lake_access import lake_address
from tasks.maintenance import land_leftovers
from tasks.threads import in_thread
from tasks.wiring import open_services


class LandResult(BaseModel):
    """landed: server runs whose rows are in the lake now. compacted: sweeps whose files were put together."""

    landed: list[str] = []
    compacted: list[str] = []


@flow(
    name="land",
    flow_run_name="land",
    description="Publish what runs of this machine left in the spool, and put many small files of the lake together.",
)
async def land(min_files: int = 200) -> LandResult:
    """A second call finds nothing more to do. Raises LandingError when a spool could not be landed; it is kept, and
    the others are landed all the same. min_files: sweeps with fewer files of their own are not compacted."""
    services = open_services()
    log = get_run_logger()
    found = await in_thread(land_leftovers, services)
    for leftover in found:
        log.info("%s: %s", leftover.run.server_run_id, "landed" if leftover.landed else leftover.problem)
    done = await in_thread(lambda: compact(lake_address(services.settings), min_files=min_files))
    for one in done:
        log.info("%s: %d files of %d runs became %d", one.sweep_id, len(one.removed), one.n_runs, len(one.written))
    kept = [x for x in found if not x.landed and list(services.settings.spool_dir.glob(f"{x.run.server_run_id}.*"))]
    if kept:
        raise LandingError(
            f"{len(kept)} server runs could not be landed: {kept[0].run.server_run_id}: {kept[0].problem}",
            next_step=f"Their spools are kept in {services.settings.spool_dir}; start this again when that is mended.",
        )
    landed = [leftover.run.server_run_id for leftover in found if leftover.landed]
    return LandResult(landed=landed, compacted=[one.sweep_id for one in done])
