-- US dollars for a million tokens at a price per hour and a speed; null where the speed is 0 or not known.
-- @p_usd_per_hour [USD/h] Price of the server.
-- @p_tok_per_s [tok/s] Speed.
CREATE MACRO usd_per_mtok(p_usd_per_hour, p_tok_per_s) AS
    CAST(p_usd_per_hour AS DOUBLE) / nullif(CAST(p_tok_per_s AS DOUBLE) * 3600, 0) * 1e6;
