-- Resources that were not proven gone when their run was landed. The ledger and `tokensweep leaks` tell how it is now.
-- of: resources, server_runs
-- @known_until When the run was landed.
-- @open_s [s] From its creation until then.
-- @usd_so_far [USD] What it had cost by then, at the run's price where the ledger has no figure.
CREATE VIEW v_leaks AS
SELECT
    x.sweep_id,
    x.server_run_id,
    x.vendor,
    x.server,
    x.kind,
    x.name,
    x.cloud_id,
    x.place,
    x.state,
    x.created_at,
    x.deleted_at,
    r.ended_at AS known_until,
    epoch(r.ended_at) - epoch(x.created_at) AS open_s,
    r.price_usd_per_hour,
    coalesce(CAST(x.usd AS DOUBLE), CAST(r.price_usd_per_hour AS DOUBLE) * open_s / 3600) AS usd_so_far
FROM resources AS x
JOIN server_runs AS r USING (sweep_id, server_run_id)
WHERE x.gone_at IS NULL
ORDER BY x.created_at, x.name;
