-- How tightly downloads and benches of a server run interlock: makespan over its lower bound.
-- @makespan_s [s] From the beginning of the first download to the end of the last bench.
-- @lower_bound_s [s] The longer of all downloads plus the last bench, and the first download plus all benches.
-- @tightness Makespan over lower bound; 1 is as tight as it can be.
-- @downloads_s [s] All downloads one after another, pauses left out.
-- @benches_s [s] All llama-bench processes.
-- @guard_paused_s [s] Time for which downloads were paused to leave measurements undisturbed.
-- of: server_runs
CREATE VIEW v_pipeline AS
WITH d AS (
    SELECT
        server_run_id,
        sweep_id,
        min(started_at) AS begun_at,
        sum(seconds - paused_s) AS downloads_s,
        first(seconds - paused_s ORDER BY started_at) AS first_download_s,
        sum(paused_s) AS guard_paused_s
    FROM downloads
    GROUP BY ALL
),
b AS (
    SELECT
        server_run_id,
        sweep_id,
        max(epoch(started_at) + seconds) AS ended_s,
        sum(seconds) AS benches_s,
        sum(seconds) FILTER (model = last_model) AS last_bench_s
    FROM (
        SELECT *, last(model ORDER BY started_at) OVER (PARTITION BY sweep_id, server_run_id) AS last_model
        FROM phases
        WHERE name = 'bench'
    )
    GROUP BY ALL
)
SELECT
    r.sweep_id,
    r.server_run_id,
    r.vendor,
    r.server,
    r.guard,
    b.ended_s - epoch(d.begun_at) AS makespan_s,
    greatest(d.downloads_s + b.last_bench_s, d.first_download_s + b.benches_s) AS lower_bound_s,
    makespan_s / nullif(lower_bound_s, 0) AS tightness,
    d.downloads_s,
    b.benches_s,
    d.guard_paused_s
FROM server_runs AS r
JOIN d USING (sweep_id, server_run_id)
JOIN b USING (sweep_id, server_run_id)
ORDER BY r.sweep_id, r.server_run_id;
