"""What the lake knows of the cells of a server type from earlier runs, its own or a twin's: `RunPlan.known`."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.domain.cells import Cell
from tasks.domain.known import KnownCell
from tasks.lake.db import Lake

# A server's own runs stand before those of its twins (tasks/domain/twins.py), a speed before the bound
# that a stopped cell gives, and the newer run before the older one. Weights of one shape are equally fast whatever
# their values; simulated ones tell of simulated servers only. What a server with a GPU measured on its CPUs, though the
# model would fit the GPU (by the rule of v_trust), tells nothing of what its GPU will do; one whose GPU was on the bus
# and not listed is no twin of servers without one.
_KNOWN = """
WITH wanted AS (
    SELECT unnest($vendors) AS vendor, unnest($servers) AS server
), hardware_now AS (
    SELECT h.vendor, h.server, h.cpu_model, h.n_cpus, h.n_cores, coalesce(h.l3_bytes, 0) AS l3_bytes,
        contains(lower(h.server), 'metal') AS on_bare_metal, coalesce(h.gpu_model, '') AS gpu_model,
        coalesce(h.n_gpus, 0) AS n_gpus, coalesce(h.vram_total_bytes, 0) >> 30 AS vram_gib
    FROM hardware AS h
    JOIN server_runs AS r USING (sweep_id, server_run_id)
    WHERE coalesce(h.n_gpus_on_bus, 0) <= coalesce(h.n_gpus, 0)
    QUALIFY row_number() OVER (PARTITION BY h.vendor, h.server ORDER BY r.started_at DESC) = 1
), kin AS (
    SELECT vendor, server, vendor AS of_vendor, server AS of_server, true AS same FROM wanted
    UNION ALL
    SELECT w.vendor, w.server, t.vendor, t.server, false  -- as tasks/domain/twins.py has it
    FROM wanted AS w
    JOIN hardware_now AS h USING (vendor, server)
    JOIN hardware_now AS t
        USING (vendor, cpu_model, n_cpus, n_cores, l3_bytes, on_bare_metal, gpu_model, n_gpus, vram_gib)
    WHERE t.server <> w.server
), stopped AS (
    SELECT sweep_id, server_run_id, subject, max(TRY_CAST(evidence ->> '$.run_s' AS DOUBLE)) AS run_s
    FROM decisions
    WHERE action = 'abort_bench' AND reason = 'measured_too_slow'
    GROUP BY ALL
), seen AS (
    SELECT c.vendor, c.server, c.model, c.task, c.n_tokens, c.sweep_id, c.source, r.started_at, c.tok_per_s_cv,
        coalesce(c.tok_per_s_max, c.n_tokens / nullif(s.run_s, 0)) AS tok_per_s, c.tok_per_s_max IS NULL AS at_most
    FROM cells AS c
    JOIN server_runs AS r USING (sweep_id, server_run_id)
    LEFT JOIN stopped AS s
        ON s.sweep_id = c.sweep_id AND s.server_run_id = c.server_run_id
        AND s.subject = c.model || ' ' || c.task || c.n_tokens
    LEFT JOIN hardware AS h ON h.sweep_id = c.sweep_id AND h.server_run_id = c.server_run_id
    WHERE c.cpu_fallback IS NULL AND NOT coalesce(
        h.n_gpus > 0 AND NOT ran_on_gpu(h.n_gpus, c.backend, c.ngl) AND c.model_bytes * 1.1 < h.vram_total_bytes, false
    ) AND NOT c.resumed AND (c.weights IS NOT DISTINCT FROM 'simulated') = $simulated
)
SELECT k.vendor, k.server, s.model, s.task, s.n_tokens, s.tok_per_s, s.tok_per_s_cv, s.at_most,
    concat_ws(' ', k.of_vendor || '/' || k.of_server, CASE WHEN k.same THEN NULL ELSE '(twin)' END,
        'in', s.sweep_id, 'on', strftime(s.started_at AT TIME ZONE 'UTC', '%Y-%m-%d'),
        CASE WHEN s.source = 'tokensweep' THEN NULL ELSE 'by ' || s.source END) AS source
FROM kin AS k
JOIN seen AS s ON s.vendor = k.of_vendor AND s.server = k.of_server
WHERE s.tok_per_s > 0
QUALIFY row_number() OVER (
    PARTITION BY k.vendor, k.server, s.model, s.task, s.n_tokens
    ORDER BY k.same DESC, s.at_most, s.started_at DESC, k.of_vendor, k.of_server, s.sweep_id
) = 1
ORDER BY ALL
"""

Known = dict[tuple[str, str], tuple[KnownCell, ...]]


def known_cells(lake: Lake, servers: Iterable[tuple[str, str]], *, simulated: bool = False) -> Known:
    """By vendor and server type, what earlier runs showed of each cell, with where it is from.

    simulated: take what simulated servers measured, and nothing else; by default nothing of it.
    """
    wanted = sorted(set(servers))
    parameters = {
        "vendors": [vendor for vendor, _ in wanted],
        "servers": [server for _, server in wanted],
        "simulated": simulated,
    }
    found: dict[tuple[str, str], list[KnownCell]] = {}
    for vendor, server, model, task, n_tokens, tok_per_s, cv, at_most, source in lake.con.execute(
        _KNOWN, parameters
    ).fetchall():
        cell = Cell(model, task, n_tokens)
        found.setdefault((vendor, server), []).append(KnownCell(cell, tok_per_s, cv, at_most, source))
    return {key: tuple(cells) for key, cells in found.items()}
