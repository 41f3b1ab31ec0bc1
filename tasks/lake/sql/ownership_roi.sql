-- Return on owning a machine after hours of use, as a share of its price: 0 at break-even, 1 when it has earned twice
-- what it cost.
-- @p_purchase_usd [USD] Price of the machine.
-- @p_rent_usd_per_hour [USD/h] Rent saved or earned.
-- @p_watts [W] Power drawn.
-- @p_usd_per_kwh [USD/kWh] Price of electricity.
-- @p_hours [h] Hours of use.
CREATE MACRO ownership_roi(p_purchase_usd, p_rent_usd_per_hour, p_watts, p_usd_per_kwh, p_hours) AS
    (CAST(p_rent_usd_per_hour AS DOUBLE) - energy_usd_per_hour(p_watts, p_usd_per_kwh)) * p_hours
    / nullif(CAST(p_purchase_usd AS DOUBLE), 0) - 1;
