-- Server runs with their length and what a measured cell cost.
-- of: server_runs
-- @run_s [s] From beginning to end.
-- @usd_per_measured_cell [USD] Cost over the cells that this run itself measured.
CREATE VIEW v_server_runs AS
SELECT
    *,
    epoch(ended_at) - epoch(started_at) AS run_s,
    CAST(cost_usd AS DOUBLE) / nullif(n_measured - n_resumed, 0) AS usd_per_measured_cell
FROM server_runs
ORDER BY started_at, server_run_id;
