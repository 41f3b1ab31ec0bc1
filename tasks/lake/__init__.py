"""The lake: what was measured, as Parquet files with one schema, and DuckDB to ask them."""

from tasks.lake.assemble import rows_from_events
from tasks.lake.compaction import Compaction, compact
from tasks.lake.db import Lake, connect, open_lake, query
from tasks.lake.inventory import LakeProblem
from tasks.lake.objects import RemoteLake, is_remote
from tasks.lake.resume import completed_servers, measured_cells
from tasks.lake.run_context import ControllerPhase, RunContext
from tasks.lake.writer import LandedRun, land

__all__ = [
    "Compaction",
    "ControllerPhase",
    "Lake",
    "LakeProblem",
    "LandedRun",
    "RemoteLake",
    "RunContext",
    "compact",
    "completed_servers",
    "connect",
    "is_remote",
    "land",
    "measured_cells",
    "open_lake",
    "query",
    "rows_from_events",
]
