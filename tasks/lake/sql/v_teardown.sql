-- The proof that a sweep left nothing behind, per vendor: resources created, proven gone, and how soon.
-- of: resources
-- @n_resources Resources that were created or may have been.
-- @n_proven_gone Thereof proven gone.
-- @n_open Thereof not proven when their run was landed: the rows of v_leaks.
-- @first_created_at When the first intent was committed.
-- @last_gone_at When the last proof came.
-- @median_teardown_s [s] From asking for the deletion to its proof.
-- @max_teardown_s [s] The slowest.
CREATE VIEW v_teardown AS
SELECT
    sweep_id,
    vendor,
    count(*) AS n_resources,
    count(gone_at) AS n_proven_gone,
    count(*) - count(gone_at) AS n_open,
    min(created_at) AS first_created_at,
    max(gone_at) AS last_gone_at,
    median(epoch(gone_at) - epoch(deleted_at)) AS median_teardown_s,
    max(epoch(gone_at) - epoch(deleted_at)) AS max_teardown_s
FROM resources
GROUP BY sweep_id, vendor
ORDER BY first_created_at, sweep_id, vendor;
