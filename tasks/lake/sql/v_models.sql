-- Per model, over all sweeps: how many servers were asked, how many gave at least one measurement, and the range of
-- speeds. The table `servers per model` of a sweep's summary.
-- of: cells
-- @n_servers Servers in whose plan the model was.
-- @n_servers_measured Servers with at least one measured cell of it.
-- @n_servers_complete Servers with all its cells measured.
-- @n_cells_measured Measured cells, one per server and cell.
-- @fastest_pp_tok_per_s [tok/s] Fastest prompt processing.
-- @fastest_tg_tok_per_s [tok/s] Fastest text generation.
CREATE VIEW v_models AS
WITH known AS (
    SELECT
        vendor, server, model, weights, task, n_tokens,
        max(model_bytes) AS model_bytes,
        bool_or(outcome = 'measured') AS measured,
        max(tok_per_s_median) FILTER (outcome = 'measured') AS tok_per_s
    FROM cells
    GROUP BY ALL
),
servers AS (
    SELECT
        vendor, server, model, weights,
        max(model_bytes) AS model_bytes,
        bool_or(measured) AS any_measured,
        bool_and(measured) AS all_measured,
        count(*) FILTER (measured) AS n_measured,
        max(tok_per_s) FILTER (task = 'pp') AS pp,
        max(tok_per_s) FILTER (task = 'tg') AS tg
    FROM known
    GROUP BY ALL
)
SELECT
    model,
    weights,
    max(model_bytes) AS model_bytes,
    count(*) AS n_servers,
    count(*) FILTER (any_measured) AS n_servers_measured,
    count(*) FILTER (all_measured) AS n_servers_complete,
    CAST(sum(n_measured) AS BIGINT) AS n_cells_measured,
    max(pp) AS fastest_pp_tok_per_s,
    max(tg) AS fastest_tg_tok_per_s
FROM servers
GROUP BY model, weights
ORDER BY model_bytes, model, weights;
