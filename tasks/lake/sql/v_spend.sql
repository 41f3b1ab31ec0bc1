-- What each sweep cost per vendor, how many servers it reached, and what a measured cell cost.
-- of: server_runs
-- @n_servers Servers that were tried.
-- @n_runs Server runs, new attempts included.
-- @n_servers_measured Servers with at least one measured cell.
-- @n_runs_failed Runs that failed, were interrupted or cancelled.
-- @main_failure The most frequent reason of those.
-- @n_cells_measured Cells that these runs measured themselves.
-- @begun_at When the first of them began.
-- @last_ended_at When the last of them ended.
-- @billed_h [h] Billed server hours.
-- @spent_usd [USD] Cost of all of them.
-- @usd_per_measured_cell [USD] Cost over measured cells.
-- @bytes_downloaded [B] Model bytes that came over the network.
CREATE VIEW v_spend AS
SELECT
    sweep_id,
    vendor,
    count(DISTINCT server) AS n_servers,
    count(*) AS n_runs,
    count(DISTINCT server) FILTER (n_measured > 0) AS n_servers_measured,
    count(*) FILTER (outcome IN ('failed', 'interrupted', 'cancelled')) AS n_runs_failed,
    mode(reason) FILTER (outcome IN ('failed', 'interrupted', 'cancelled')) AS main_failure,
    CAST(sum(n_measured - n_resumed) AS BIGINT) AS n_cells_measured,
    min(started_at) AS begun_at,
    max(ended_at) AS last_ended_at,
    sum(billed_s) / 3600 AS billed_h,
    sum(cost_usd) AS spent_usd,
    CAST(sum(cost_usd) AS DOUBLE) / nullif(sum(n_measured - n_resumed), 0) AS usd_per_measured_cell,
    CAST(sum(bytes_downloaded) AS BIGINT) AS bytes_downloaded
FROM server_runs
GROUP BY sweep_id, vendor
ORDER BY begun_at, sweep_id, vendor;
