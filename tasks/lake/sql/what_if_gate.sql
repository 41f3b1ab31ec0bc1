-- What a sweep's gates would do with their thresholds multiplied: per model and cell, how many measured cells would
-- fall below, and how many gated ones the optimistic prediction would let through.
-- @p_scale Factor on min_tok_per_s: 1 are the gates as they were, 0.5 half as strict.
CREATE MACRO what_if_gate(p_scale) AS TABLE
SELECT
    sweep_id,
    model,
    task,
    n_tokens,
    any_value(min_tok_per_s) * p_scale AS min_tok_per_s,
    count(*) FILTER (outcome = 'measured') AS n_measured,
    count(*) FILTER (outcome = 'measured' AND tok_per_s_median < min_tok_per_s * p_scale) AS n_would_fall,
    count(*) FILTER (outcome = 'gated') AS n_gated,
    count(*) FILTER (outcome = 'gated' AND predicted_high_tok_per_s >= min_tok_per_s * p_scale) AS n_would_be_tried
FROM v_sweep_cells
GROUP BY sweep_id, model, task, n_tokens
ORDER BY sweep_id, max(model_bytes), model, task, n_tokens;
