-- Several sequences decoded at once by llama-batched-bench: static batching in the engine, without a server and without
-- requests that come and go. Each number was measured once.
-- @n_sequences Sequences decoded at once.
-- @tg_tok_per_s [tok/s] Generated tokens of all sequences together.
-- @tok_per_s_per_sequence [tok/s] What one of them sees.
-- @speedup Over a single sequence of the same measurement.
-- @usd_per_mtok [USD] For a million generated tokens at that speed and the run's price.
-- of: variants, server_runs
CREATE VIEW v_concurrency AS
SELECT
    v.sweep_id,
    v.server_run_id,
    v.vendor,
    v.server,
    v.model,
    v.weights,
    v.n_prompt,
    v.n_gen,
    v.n_sequences,
    v.pp_tok_per_s,
    v.tg_tok_per_s,
    v.tg_tok_per_s / v.n_sequences AS tok_per_s_per_sequence,
    v.tg_tok_per_s / max(v.tg_tok_per_s) FILTER (WHERE v.n_sequences = 1) OVER one AS speedup,
    usd_per_mtok(r.price_usd_per_hour, v.tg_tok_per_s) AS usd_per_mtok
FROM variants AS v
JOIN server_runs AS r USING (sweep_id, server_run_id)
WHERE v.kind = 'batched' AND v.tg_tok_per_s IS NOT NULL
WINDOW one AS (PARTITION BY v.sweep_id, v.server_run_id, v.variant);
