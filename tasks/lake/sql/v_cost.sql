-- What each server run cost, and how much of it went into measuring.
-- of: server_runs
-- @n_measured_here Cells that this run itself measured.
-- @usd_per_measured_cell [USD] Cost over these cells.
-- @bench_s [s] Time in which llama-bench ran.
-- @bench_share Share of the billed time in which it ran, 0 to 1.
-- @max_usd_share Share of the money cap that was used, 0 to 1.
CREATE VIEW v_cost AS
WITH b AS (
    SELECT sweep_id, server_run_id, sum(seconds) AS bench_s
    FROM phases
    WHERE name = 'bench'
    GROUP BY ALL
)
SELECT
    r.sweep_id,
    r.server_run_id,
    r.vendor,
    r.server,
    r.place,
    r.outcome,
    r.price_usd_per_hour,
    r.billed_s,
    r.cost_usd,
    r.max_usd,
    r.n_measured - r.n_resumed AS n_measured_here,
    CAST(r.cost_usd AS DOUBLE) / nullif(n_measured_here, 0) AS usd_per_measured_cell,
    coalesce(b.bench_s, 0) AS bench_s,
    coalesce(b.bench_s, 0) / nullif(r.billed_s, 0) AS bench_share,
    CAST(r.cost_usd AS DOUBLE) / nullif(CAST(r.max_usd AS DOUBLE), 0) AS max_usd_share
FROM server_runs AS r
LEFT JOIN b USING (sweep_id, server_run_id)
ORDER BY r.started_at, r.server_run_id;
