-- The closing table of a sweep: server by model by cell, tokens per second with its spread, or why there is none.
-- In no order, as of a large lake sorting would take longer than all else: by model_bytes it is the order of the ladder.
-- of: cells
-- @tok_per_s [tok/s] Median of the repeats; of a cell that was stopped, of those that it finished.
-- @half_width_pct [%] Half the 95 % interval of the mean, as a share of the mean: the ± of the table.
CREATE VIEW v_speed AS
SELECT
    sweep_id,
    vendor,
    server,
    model,
    model_bytes,
    weights,
    task,
    n_tokens,
    outcome,
    reason,
    tok_per_s_median AS tok_per_s,
    (tok_per_s_ci95_high - tok_per_s_mean) / nullif(tok_per_s_mean, 0) * 100 AS half_width_pct,
    n_samples,
    tok_per_s_ci95_low,
    tok_per_s_ci95_high,
    tok_per_s_min,
    tok_per_s_max,
    min_tok_per_s,
    download_active,
    steal_share,
    build,
    backend,
    backend_used,
    cpu_fallback,
    layers_offloaded,
    layers_total,
    detail
FROM v_sweep_cells;
