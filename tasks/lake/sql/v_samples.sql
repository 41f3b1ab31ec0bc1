-- Every finished repeat, with how far it lies from the others of its cell.
-- of: samples, cells
-- @duration_ratio Median speed of its cell over the speed of the repeat: 1.2 took 20 % longer.
-- @started_at When the repeat began; null where no mark was seen.
CREATE VIEW v_samples AS
SELECT
    s.*,
    c.outcome,
    c.reason,
    c.weights,
    c.build,
    c.tok_per_s_median / nullif(s.tok_per_s, 0) AS duration_ratio
FROM samples AS s
JOIN cells AS c USING (sweep_id, server_run_id, model, task, n_tokens);
