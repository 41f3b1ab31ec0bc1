-- Cells that a gate spared, what each would have cost at least, and how near it was: the audit of the gates.
-- of: cells, server_runs
-- @fastest_tok_per_s [tok/s] The most it could have reached: the optimistic prediction, else the gate itself.
-- @spared_s [s] Time that 5 repeats and a warm-up would have taken at least; a text is warmed up with one token.
-- @spared_usd [USD] The same at the price of the server.
-- @near_miss The optimistic prediction reached 80 % of the gate; null without a prediction.
CREATE VIEW v_gates AS
SELECT
    sweep_id,
    vendor,
    server,
    model,
    task,
    n_tokens,
    reason,
    detail,
    min_tok_per_s,
    predicted_low_tok_per_s,
    predicted_high_tok_per_s,
    coalesce(predicted_high_tok_per_s, min_tok_per_s) AS fastest_tok_per_s,
    (5 * n_tokens + if(task = 'pp', n_tokens, 1)) / nullif(fastest_tok_per_s, 0) AS spared_s,
    CAST(price_usd_per_hour AS DOUBLE) * spared_s / 3600 AS spared_usd,
    predicted_high_tok_per_s >= 0.8 * min_tok_per_s AS near_miss
FROM v_sweep_cells
WHERE outcome = 'gated'
ORDER BY sweep_id, vendor, server, model_bytes, model, task, n_tokens;
