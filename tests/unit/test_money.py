"""Currencies: converted once with a dated rate, never guessed, never rounded under the price."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.errors import ConfigError, UnsupportedError
from tasks.domain.money import KNOWN_RATES, STALE_AFTER_DAYS, read_rates, to_usd

TODAY = date(2026, 6, 1)


def test_dollars_stay_as_they_are() -> None:
    price = to_usd(Decimal("0.0104"), "USD", {}, today=TODAY)
    assert (price.usd, price.rate, price.basis()) == (Decimal("0.0104"), None, "0.0104 USD")


def test_the_basis_names_amount_rate_day_and_source() -> None:
    price = to_usd(Decimal("0.0074"), "EUR", KNOWN_RATES, today=TODAY)
    assert price.usd == Decimal("0.0074") * Decimal("1.1761")
    assert (price.amount, price.currency) == (Decimal("0.0074"), "EUR")
    assert price.basis() == "0.0074 EUR, 1 EUR = 1.1761 USD (European Central Bank reference rate, 2026-05-08)"


def test_a_currency_without_a_rate_is_refused_with_the_setting_that_mends_it() -> None:
    with pytest.raises(UnsupportedError, match="TOKENSWEEP_RATES=SEK="):
        to_usd(Decimal(1), "SEK", KNOWN_RATES, today=TODAY)


def test_a_rate_that_is_too_old_is_refused() -> None:
    last_day = KNOWN_RATES["EUR"].day + timedelta(days=STALE_AFTER_DAYS)
    to_usd(Decimal(1), "EUR", KNOWN_RATES, today=last_day)
    with pytest.raises(UnsupportedError, match="days old"):
        to_usd(Decimal(1), "EUR", KNOWN_RATES, today=last_day + timedelta(days=1))


def test_the_users_rate_comes_before_the_known_one() -> None:
    rates = read_rates("EUR=1.20@2026-05-31, GBP=1.37@2026-05-30", today=TODAY)
    assert to_usd(Decimal(10), "EUR", rates, today=TODAY).usd == 12
    assert to_usd(Decimal(10), "GBP", rates, today=TODAY).basis().endswith("(set by the user, 2026-05-30)")
    assert read_rates("", today=TODAY) == dict(KNOWN_RATES)


@pytest.mark.parametrize(
    "text",
    [
        "EUR",
        "EUR=1.2",
        "EUR=0@2026-01-01",
        "EUR=1.2.3@2026-01-01",
        "EUR=1.2@2026-13-01",
        "eur=1.2@2026-01-01",
        "USD=2@2026-01-01",
        "EUR=-1@2026-01-01",
        "EUR=1.2@2026-06-02",
    ],
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read_rates(text, today=TODAY)


@pytest.mark.parametrize("amount", [Decimal("NaN"), Decimal(-1), Decimal("Infinity")])
def test_what_is_no_price_is_refused(amount: Decimal) -> None:
    with pytest.raises(ConfigError):
        to_usd(amount, "EUR", KNOWN_RATES, today=TODAY)


@given(st.decimals(min_value=0, max_value=1000, places=6), st.decimals(min_value="0.0001", max_value=200, places=4))
def test_rounding_never_falls_short(amount: Decimal, rate: Decimal) -> None:
    usd = to_usd(amount, "EUR", read_rates(f"EUR={rate}@2026-01-01", today=TODAY), today=TODAY).usd
    assert amount * rate <= usd < amount * rate + Decimal("1e-9")
