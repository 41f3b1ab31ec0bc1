-- GPU throttling per server run, from its telemetry: the share of busy seconds in which the GPU said that heat or
-- power slowed it down. Runs without GPU readings have no row.
-- @n_busy Readings with the GPU at least half busy.
-- @throttled_share Share of them with a hardware slowdown, thermal slowdown or power brake, 0 to 1.
-- @power_capped_share Share of them held at the power limit, which is normal for large GPUs, 0 to 1.
-- of: telemetry
CREATE VIEW v_throttling AS
SELECT
    sweep_id,
    server_run_id,
    count(*) AS n_busy,
    avg(CAST(gpu_throttle_reasons & 232 <> 0 AS INTEGER)) AS throttled_share,
    avg(CAST(gpu_throttle_reasons & 4 <> 0 AS INTEGER)) AS power_capped_share
FROM telemetry
WHERE gpu_throttle_reasons IS NOT NULL AND gpu_busy_share >= 0.5
GROUP BY ALL;
