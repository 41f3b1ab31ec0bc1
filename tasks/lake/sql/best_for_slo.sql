-- The cheapest servers whose newest measurement of a cell reaches a speed, cheapest first.
-- `sure` is true where even the lower end of the 95 % interval reaches it; `flags` are those of v_trust.
-- @p_model Name of the model.
-- @p_task pp or tg.
-- @p_n_tokens [tokens] Length.
-- @p_min_tok_per_s [tok/s] Least speed.
CREATE MACRO best_for_slo(p_model, p_task, p_n_tokens, p_min_tok_per_s) AS TABLE
SELECT
    vendor,
    server,
    place,
    spot,
    price_usd_per_hour,
    tok_per_s_median AS tok_per_s,
    half_width_pct,
    n_samples,
    tok_per_s_ci95_low,
    tok_per_s_ci95_low >= p_min_tok_per_s AS sure,
    usd_per_mtok,
    weights,
    measured_at AS observed_at,
    price_read_at,
    flags
FROM v_trust
WHERE model = p_model AND task = p_task AND n_tokens = p_n_tokens AND tok_per_s_median >= p_min_tok_per_s
ORDER BY price_usd_per_hour NULLS LAST, tok_per_s_median DESC, vendor, server;
