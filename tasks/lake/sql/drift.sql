-- How the cells of one server moved from one measurement to the next, largest change first. The name is `server` or
-- `vendor/server`.
-- @p_server The server.
CREATE MACRO drift(p_server) AS TABLE
SELECT model, weights, task, n_tokens, previous_at, measured_at, previous_tok_per_s, tok_per_s_median AS tok_per_s, ratio,
    within_noise, changed
FROM v_drift
WHERE p_server IN (server, vendor || '/' || server)
ORDER BY abs(ln(ratio)) DESC, model, task, n_tokens;
