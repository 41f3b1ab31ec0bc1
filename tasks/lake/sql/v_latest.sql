-- The newest measurement of each cell over all sweeps: what this lake knows about a server today. Simulated cells are
-- left out: nothing was measured there. Views of a sweep show them, with weights = simulated.
-- of: cells, server_runs
-- @run_started_at When the server run began.
-- @run_outcome How the server run ended.
-- @usd_per_mtok [USD] For a million tokens at the median speed and the run's price.
CREATE VIEW v_latest AS
SELECT
    c.*,
    r.place,
    r.region,
    r.isolation,
    r.spot,
    r.price_usd_per_hour,
    r.currency,
    r.price_read_at,
    r.methodology_version,
    r.attempt,
    r.started_at AS run_started_at,
    r.outcome AS run_outcome,
    usd_per_mtok(r.price_usd_per_hour, c.tok_per_s_median) AS usd_per_mtok
FROM cells AS c
-- First which rows, by few columns, then their rest: and with one key as a struct DuckDB keeps one row per cell instead
-- of sorting all of them.
JOIN (
    SELECT sweep_id, server_run_id, vendor, server, model, task, n_tokens
    FROM cells
    WHERE outcome = 'measured' AND NOT resumed AND weights IS DISTINCT FROM 'simulated'
    QUALIFY row_number() OVER (
        PARTITION BY vendor, server, model, weights, task, n_tokens
        ORDER BY (coalesce(observed_at, started_at, TIMESTAMPTZ '1970-01-01'), server_run_id) DESC
    ) = 1
) AS newest USING (sweep_id, server_run_id, vendor, server, model, task, n_tokens)
JOIN server_runs AS r USING (sweep_id, server_run_id);
