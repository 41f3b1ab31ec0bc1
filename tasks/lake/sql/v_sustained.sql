-- A long run of one short test: what the server gives in its first minute, and what is left in the last fifth of the time.
-- @measured_s [s] From the first piece to the last.
-- @burst_tok_per_s [tok/s] Median of the first minute.
-- @baseline_tok_per_s [tok/s] Median of the last fifth.
-- @baseline_ratio Baseline over burst.
-- @fell The baseline is below 90 % of the burst.
-- @mean_steal_share CPU time stolen by the hypervisor in the last fifth, 0 to 1.
-- of: variants, server_runs
CREATE VIEW v_sustained AS
SELECT
    sweep_id,
    server_run_id,
    vendor,
    server,
    model,
    r.burst_kind,
    r.burst_baseline_share,
    max(at_s) AS measured_s,
    median(tok_per_s_median) FILTER (WHERE at_s <= 60) AS burst_tok_per_s,
    median(tok_per_s_median) FILTER (WHERE rank_share > 0.8) AS baseline_tok_per_s,
    baseline_tok_per_s / burst_tok_per_s AS baseline_ratio,
    baseline_ratio < 0.9 AS fell,
    avg(steal_share) FILTER (WHERE rank_share > 0.8) AS mean_steal_share
FROM (
    SELECT
        *,
        epoch(started_at) - epoch(min(started_at) OVER run) AS at_s,
        percent_rank() OVER (PARTITION BY sweep_id, server_run_id ORDER BY started_at) AS rank_share
    FROM variants
    WHERE kind = 'sustain' AND tok_per_s_median IS NOT NULL
    WINDOW run AS (PARTITION BY sweep_id, server_run_id)
)
JOIN server_runs AS r USING (sweep_id, server_run_id, vendor, server)
GROUP BY ALL;
