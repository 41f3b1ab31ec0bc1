-- Every price that was read for a server, dated: where, on demand or spot, and when.
-- of: server_runs
-- @n_runs Server runs that were bought at this reading.
CREATE VIEW v_prices AS
SELECT
    vendor,
    server,
    place,
    coalesce(spot, false) AS spot,
    price_read_at,
    price_usd_per_hour,
    list_price_per_hour,
    currency,
    price_source,
    count(*) AS n_runs
FROM server_runs
WHERE price_usd_per_hour IS NOT NULL AND price_read_at IS NOT NULL
GROUP BY ALL
ORDER BY vendor, server, place, spot, price_read_at;
