-- One row per cell of a sweep, over all runs of the server in it: a measured cell stands before one that is not,
-- the measurement before its copy in a resumed run, then the newer run.
-- of: cells, server_runs
-- @run_started_at When the server run began.
-- @run_outcome How the server run ended.
-- @usd_per_mtok [USD] For a million tokens at the median speed and the run's price.
CREATE VIEW v_sweep_cells AS
WITH alone AS (
    SELECT sweep_id, server_run_id
    FROM server_runs
    QUALIFY count(*) OVER (PARTITION BY sweep_id, vendor, server) = 1
)
-- Most servers have one run in a sweep; only the cells of the others have to be chosen from.
SELECT *
FROM v_cells
SEMI JOIN alone USING (sweep_id, server_run_id)
UNION ALL
SELECT *
FROM v_cells
ANTI JOIN alone USING (sweep_id, server_run_id)
QUALIFY row_number() OVER (
    PARTITION BY sweep_id, vendor, server, model, weights, task, n_tokens
    ORDER BY (outcome = 'measured', NOT resumed, run_started_at, server_run_id) DESC
) = 1;
