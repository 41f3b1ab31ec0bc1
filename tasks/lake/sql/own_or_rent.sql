-- A machine of one's own against every measured server, at equal work: the rent of as many servers (or as much of one)
-- as give the same tokens per second, and after how many hours of use the machine has paid for itself. Null: never.
-- @p_model Name of the model.
-- @p_task pp or tg.
-- @p_n_tokens [tokens] Length.
-- @p_tok_per_s [tok/s] Speed of the own machine in this cell.
-- @p_purchase_usd [USD] Its price.
-- @p_watts [W] Power it draws.
-- @p_usd_per_kwh [USD/kWh] Price of electricity.
CREATE MACRO own_or_rent(p_model, p_task, p_n_tokens, p_tok_per_s, p_purchase_usd, p_watts, p_usd_per_kwh) AS TABLE
SELECT
    vendor,
    server,
    place,
    spot,
    weights,
    price_usd_per_hour,
    tok_per_s_median AS tok_per_s,
    p_tok_per_s / tok_per_s_median AS n_servers_equivalent,
    CAST(price_usd_per_hour AS DOUBLE) * n_servers_equivalent AS equivalent_rent_usd_per_hour,
    break_even_h(p_purchase_usd, equivalent_rent_usd_per_hour, p_watts, p_usd_per_kwh) AS break_even_h,
    ownership_roi(p_purchase_usd, equivalent_rent_usd_per_hour, p_watts, p_usd_per_kwh, 8760) AS roi_first_year
FROM v_latest
WHERE model = p_model AND task = p_task AND n_tokens = p_n_tokens AND price_usd_per_hour IS NOT NULL
ORDER BY equivalent_rent_usd_per_hour, vendor, server;
