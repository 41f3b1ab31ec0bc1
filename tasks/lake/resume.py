"""What a sweep has measured already, for a sweep that is started again."""

from __future__ import annotations

from tasks.domain.cells import Cell
from tasks.lake.db import Lake

Measured = dict[str, dict[Cell, tuple[float, ...]]]

_MEASURED = """
SELECT c.server, c.model, c.task, c.n_tokens, list(s.duration_s ORDER BY s.k) AS samples_s
FROM v_sweep_cells AS c
JOIN samples AS s USING (sweep_id, server_run_id, model, task, n_tokens)
WHERE c.outcome = 'measured' AND c.sweep_id = $sweep_id AND coalesce(c.vendor = $vendor, true)
GROUP BY c.server, c.model, c.task, c.n_tokens
ORDER BY ALL
"""

_COMPLETED = """
SELECT DISTINCT server
FROM server_runs
WHERE outcome IN ('completed', 'gated') AND sweep_id = $sweep_id AND coalesce(vendor = $vendor, true)
"""


def measured_cells(lake: Lake, sweep_id: str, *, vendor: str | None = None) -> Measured:
    """Per server, its measured cells in this sweep with the seconds of each repeat: `RunPlan.measured`.

    Give `vendor` where two vendors of the sweep may use one name for a server.
    """
    found: Measured = {}
    rows = lake.con.execute(_MEASURED, {"sweep_id": sweep_id, "vendor": vendor}).fetchall()
    for server, model, task, n_tokens, samples_s in rows:
        found.setdefault(server, {})[Cell(model, task, n_tokens)] = tuple(samples_s)
    return found


def completed_servers(lake: Lake, sweep_id: str, *, vendor: str | None = None) -> set[str]:
    """Servers with a run in this sweep that went to its end, so that there is nothing left to do."""
    rows = lake.con.execute(_COMPLETED, {"sweep_id": sweep_id, "vendor": vendor}).fetchall()
    return {server for (server,) in rows}
