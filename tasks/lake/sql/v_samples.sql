-- Every finished repeat, with how far it lies from the others of its cell.
-- of: samples, cells
-- @duration_ratio Seconds of the repeat over the median of its cell; 1.2 is 20 % slower.
-- @started_at When the repeat began; null where no mark was seen.
CREATE VIEW v_samples AS
SELECT
    s.*,
    c.outcome,
    c.reason,
    c.weights,
    c.build,
    s.duration_s / median(s.duration_s) OVER (
        PARTITION BY s.sweep_id, s.server_run_id, s.model, s.task, s.n_tokens
    ) AS duration_ratio
FROM samples AS s
JOIN cells AS c USING (sweep_id, server_run_id, model, task, n_tokens);
