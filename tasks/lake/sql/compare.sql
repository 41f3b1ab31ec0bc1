-- Two servers side by side, cell by cell, by their newest measurements. Names are `server` or `vendor/server`.
-- `within_noise` is true where the two 95 % intervals meet; null where one of them has a single sample.
-- @p_a The one server.
-- @p_b The other.
CREATE MACRO compare(p_a, p_b) AS TABLE
SELECT
    model,
    a.weights,
    task,
    n_tokens,
    a.tok_per_s_median AS a_tok_per_s,
    b.tok_per_s_median AS b_tok_per_s,
    b.tok_per_s_median / a.tok_per_s_median AS b_over_a,
    a.tok_per_s_ci95_low <= b.tok_per_s_ci95_high AND b.tok_per_s_ci95_low <= a.tok_per_s_ci95_high AS within_noise,
    a.usd_per_mtok AS a_usd_per_mtok,
    b.usd_per_mtok AS b_usd_per_mtok
FROM v_latest AS a
JOIN v_latest AS b USING (model, weights, task, n_tokens)
WHERE p_a IN (a.server, a.vendor || '/' || a.server) AND p_b IN (b.server, b.vendor || '/' || b.server)
ORDER BY a.model_bytes, model, task, n_tokens;
