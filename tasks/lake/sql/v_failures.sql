-- What did not work, as opposed to what was gated on purpose: cells that failed, timed out or were not reached.
-- of: cells
-- @n_cells Cells with this reason.
-- @cells Which ones, as task and length.
-- @detail What one of them said.
-- @run_outcome How their server run ended.
-- @run_reason Why it ended so.
-- @run_detail The same for people.
CREATE VIEW v_failures AS
SELECT
    c.sweep_id,
    c.server_run_id,
    c.vendor,
    c.server,
    c.model,
    c.outcome,
    c.reason,
    count(*) AS n_cells,
    string_agg(c.task || c.n_tokens, ' ' ORDER BY c.task, c.n_tokens) AS cells,
    min(c.detail) AS detail,
    any_value(r.outcome) AS run_outcome,
    any_value(r.reason) AS run_reason,
    any_value(r.detail) AS run_detail
FROM v_sweep_cells AS c
JOIN server_runs AS r USING (sweep_id, server_run_id)
WHERE c.outcome IN ('failed', 'timed_out', 'not_reached')
GROUP BY c.sweep_id, c.server_run_id, c.vendor, c.server, c.model, c.outcome, c.reason
ORDER BY c.sweep_id, c.vendor, c.server, c.model, c.outcome, c.reason;
