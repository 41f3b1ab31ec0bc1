-- Hours of use after which an owned machine has cost less than renting one of the same speed, or has earned its price
-- where it is rented out: purchase over rent less electricity. Null where electricity costs as much as the rent.
-- @p_purchase_usd [USD] Price of the machine.
-- @p_rent_usd_per_hour [USD/h] Rent saved or earned.
-- @p_watts [W] Power drawn by the owned machine.
-- @p_usd_per_kwh [USD/kWh] Price of electricity.
CREATE MACRO break_even_h(p_purchase_usd, p_rent_usd_per_hour, p_watts, p_usd_per_kwh) AS
    CASE
        WHEN CAST(p_rent_usd_per_hour AS DOUBLE) > energy_usd_per_hour(p_watts, p_usd_per_kwh)
            THEN CAST(p_purchase_usd AS DOUBLE)
            / (CAST(p_rent_usd_per_hour AS DOUBLE) - energy_usd_per_hour(p_watts, p_usd_per_kwh))
    END;
