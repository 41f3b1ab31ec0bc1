-- Every phase with its share of the run. Phases overlap, so shares add up to more than 1.
-- of: phases, server_runs
-- @ended_at When it ended.
-- @run_share Share of the server run's time, 0 to 1.
CREATE VIEW v_phases AS
SELECT
    p.*,
    p.started_at + to_microseconds(CAST(p.seconds * 1e6 AS BIGINT)) AS ended_at,
    r.place,
    p.seconds / nullif(epoch(r.ended_at) - epoch(r.started_at), 0) AS run_share
FROM phases AS p
JOIN server_runs AS r USING (sweep_id, server_run_id)
ORDER BY p.sweep_id, p.server_run_id, p.k;
