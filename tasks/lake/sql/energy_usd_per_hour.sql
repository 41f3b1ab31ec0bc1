-- What an hour of electricity costs.
-- @p_watts [W] Power drawn.
-- @p_usd_per_kwh [USD/kWh] Price of electricity.
CREATE MACRO energy_usd_per_hour(p_watts, p_usd_per_kwh) AS
    CAST(p_watts AS DOUBLE) / 1000 * CAST(p_usd_per_kwh AS DOUBLE);
