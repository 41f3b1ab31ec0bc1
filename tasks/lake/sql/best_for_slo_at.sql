-- The same question as best_for_slo at the prices of a day: each server at the newest price that was read for it, in
-- any place, by then, on demand or spot as it was measured. `usd_per_mtok` is at that price; the rest is as in
-- best_for_slo.
-- @p_model Name of the model.
-- @p_task pp or tg.
-- @p_n_tokens [tokens] Length.
-- @p_min_tok_per_s [tok/s] Least speed.
-- @p_at The moment whose prices count.
CREATE MACRO best_for_slo_at(p_model, p_task, p_n_tokens, p_min_tok_per_s, p_at) AS TABLE
WITH wanted AS (
    SELECT *, CAST(p_at AS TIMESTAMP WITH TIME ZONE) AS asked_at, coalesce(spot, false) AS is_spot
    FROM v_trust
    WHERE model = p_model AND task = p_task AND n_tokens = p_n_tokens AND tok_per_s_median >= p_min_tok_per_s
)
SELECT
    c.vendor,
    c.server,
    p.place,
    p.spot,
    p.price_usd_per_hour,
    p.price_read_at,
    c.tok_per_s_median AS tok_per_s,
    c.half_width_pct,
    c.n_samples,
    c.tok_per_s_ci95_low,
    c.tok_per_s_ci95_low >= p_min_tok_per_s AS sure,
    usd_per_mtok(p.price_usd_per_hour, c.tok_per_s_median) AS usd_per_mtok,
    c.price_usd_per_hour AS price_when_measured_usd_per_hour,
    c.weights,
    c.measured_at AS observed_at,
    c.flags
FROM wanted AS c
ASOF JOIN v_prices AS p ON c.vendor = p.vendor AND c.server = p.server AND c.is_spot = p.spot AND c.asked_at >= p.price_read_at
ORDER BY p.price_usd_per_hour, c.tok_per_s_median DESC, c.vendor, c.server;
