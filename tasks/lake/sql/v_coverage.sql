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
WITH counted AS (
    SELECT
        *,
        count(*) OVER (PARTITION BY sweep_id, vendor, server, model, outcome = 'measured', reason) AS n_same_reason
    FROM v_sweep_cells
)
SELECT
    sweep_id,
    vendor,
    server,
    model,
    weights,
    max(model_bytes) AS model_bytes,
    count(*) AS n_cells,
    count(*) FILTER (outcome = 'measured') AS n_measured,
    count(*) FILTER (outcome = 'gated') AS n_gated,
    count(*) FILTER (outcome = 'timed_out') AS n_timed_out,
    count(*) FILTER (outcome = 'infeasible') AS n_infeasible,
    count(*) FILTER (outcome = 'failed') AS n_failed,
    count(*) FILTER (outcome = 'not_reached') AS n_not_reached,
    first(reason ORDER BY n_same_reason DESC, reason, task, n_tokens) FILTER (outcome <> 'measured') AS main_reason,
    first(detail ORDER BY n_same_reason DESC, reason, task, n_tokens) FILTER (outcome <> 'measured') AS main_detail
FROM counted
GROUP BY sweep_id, vendor, server, model, weights
ORDER BY sweep_id, vendor, server, model_bytes, model;
