-- Every cell of every server run with where, at which price and in which run it ended.
-- of: cells, server_runs
-- @run_started_at When the server run began.
-- @run_outcome How the server run ended.
-- @usd_per_mtok [USD] For a million tokens at the median speed and the run's price.
CREATE VIEW v_cells AS
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
JOIN server_runs AS r USING (sweep_id, server_run_id);
