-- The newest measurement of each cell over all sweeps: what this lake knows about a server today. Simulated cells are
-- left out: nothing was measured there. Views of a sweep show them, with weights = simulated.
-- of: cells, server_runs
-- @run_started_at When the server run began.
-- @run_outcome How the server run ended.
-- @usd_per_mtok [USD] For a million tokens at the median speed and the run's price.
CREATE VIEW v_latest AS
SELECT *
FROM v_cells
WHERE outcome = 'measured' AND NOT resumed AND weights IS DISTINCT FROM 'simulated'
QUALIFY row_number() OVER (
    PARTITION BY vendor, server, model, weights, task, n_tokens
    ORDER BY observed_at DESC NULLS LAST, run_started_at DESC, server_run_id DESC
) = 1;
