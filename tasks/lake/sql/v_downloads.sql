-- Every download with where it ran: what a vendor's network gives, and what pausing for the benches cost.
-- of: downloads, server_runs
-- @bytes_moved [B] Bytes that came over the network.
-- @paused_share Share of its time in which it was paused, 0 to 1.
CREATE VIEW v_downloads AS
SELECT
    d.*,
    r.place,
    r.region,
    greatest(d.bytes - d.bytes_resumed, 0) AS bytes_moved,
    d.paused_s / nullif(d.seconds, 0) AS paused_share
FROM downloads AS d
JOIN server_runs AS r USING (sweep_id, server_run_id)
ORDER BY d.sweep_id, d.server_run_id, d.started_at;
