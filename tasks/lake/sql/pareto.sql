-- Newest measurements of a cell on every server with a price, and which of them are on the frontier: no other is
-- faster for the same money or cheaper at the same speed. `beaten_by` names the fastest one that costs no more.
-- @p_model Name of the model.
-- @p_task pp or tg.
-- @p_n_tokens [tokens] Length.
CREATE MACRO pareto(p_model, p_task, p_n_tokens) AS TABLE
SELECT
    vendor,
    server,
    place,
    spot,
    weights,
    price_usd_per_hour,
    tok_per_s_median AS tok_per_s,
    usd_per_mtok,
    tok_per_s_median > coalesce(max(tok_per_s_median) OVER cheaper, -1) AS on_frontier,
    if(on_frontier, NULL, arg_max(vendor || '/' || server, tok_per_s_median) OVER cheaper) AS beaten_by
FROM v_latest
WHERE model = p_model AND task = p_task AND n_tokens = p_n_tokens AND price_usd_per_hour IS NOT NULL
WINDOW cheaper AS (
    PARTITION BY weights
    ORDER BY price_usd_per_hour, tok_per_s_median DESC, vendor, server
    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
)
ORDER BY weights, price_usd_per_hour, tok_per_s_median DESC, vendor, server;
