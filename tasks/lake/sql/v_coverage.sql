-- Per sweep, server and model: how many cells ended how, and the main reason of those that were not measured.
-- @n_cells Cells of the plan.
-- @n_measured Cells that ended as measured.
-- @n_gated Cells that ended as gated.
-- @n_timed_out Cells that ended as timed_out.
-- @n_infeasible Cells that ended as infeasible.
-- @n_failed Cells that ended as failed.
-- @n_not_reached Cells that ended as not_reached.
-- @main_reason The most frequent reason of the cells that were not measured; null when all were.
-- @main_detail What it said for one of them.
-- of: cells
CREATE VIEW v_coverage AS
WITH reasons AS (
    SELECT
        sweep_id,
        vendor,
        server,
        model,
        weights,
        outcome,
        reason,
        max(model_bytes) AS model_bytes,
        count(*) AS n,
        arg_min(detail, (task, n_tokens)) AS detail
    FROM v_sweep_cells
    GROUP BY ALL
)
SELECT
    sweep_id,
    vendor,
    server,
    model,
    weights,
    max(model_bytes) AS model_bytes,
    CAST(sum(n) AS BIGINT) AS n_cells,
    CAST(coalesce(sum(n) FILTER (outcome = 'measured'), 0) AS BIGINT) AS n_measured,
    CAST(coalesce(sum(n) FILTER (outcome = 'gated'), 0) AS BIGINT) AS n_gated,
    CAST(coalesce(sum(n) FILTER (outcome = 'timed_out'), 0) AS BIGINT) AS n_timed_out,
    CAST(coalesce(sum(n) FILTER (outcome = 'infeasible'), 0) AS BIGINT) AS n_infeasible,
    CAST(coalesce(sum(n) FILTER (outcome = 'failed'), 0) AS BIGINT) AS n_failed,
    CAST(coalesce(sum(n) FILTER (outcome = 'not_reached'), 0) AS BIGINT) AS n_not_reached,
    first(reason ORDER BY n DESC, reason, outcome) FILTER (outcome <> 'measured') AS main_reason,
    first(detail ORDER BY n DESC, reason, outcome) FILTER (outcome <> 'measured') AS main_detail
FROM reasons
GROUP BY sweep_id, vendor, server, model, weights
ORDER BY sweep_id, vendor, server, model_bytes, model;
