-- Every decision in its order, with its evidence: why a server run went as it did.
-- of: decisions, server_runs
-- @run_outcome How the server run ended.
CREATE VIEW v_decisions AS
SELECT d.*, r.place, r.policy, r.outcome AS run_outcome
FROM decisions AS d
JOIN server_runs AS r USING (sweep_id, server_run_id)
ORDER BY d.sweep_id, d.server_run_id, d.decided_at, d.made_by, d.k;
