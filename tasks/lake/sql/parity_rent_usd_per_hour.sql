-- The rent at which machines pay for themselves within given hours: purchase over hours, plus electricity.
-- Renting for less than this is cheaper than owning for as long.
-- @p_purchase_usd [USD] Price of one machine.
-- @p_watts [W] Power drawn by one.
-- @p_usd_per_kwh [USD/kWh] Price of electricity.
-- @p_hours [h] Hours of use.
-- @p_n_machines How many of them do the work.
CREATE MACRO parity_rent_usd_per_hour(p_purchase_usd, p_watts, p_usd_per_kwh, p_hours, p_n_machines) AS
    p_n_machines
    * (CAST(p_purchase_usd AS DOUBLE) / nullif(CAST(p_hours AS DOUBLE), 0) + energy_usd_per_hour(p_watts, p_usd_per_kwh));
