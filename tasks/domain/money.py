"""Money of other currencies: kept as the vendor said it, converted once, with the rate, its date and its source.

A price that cannot be converted is an error, never a guess: a cap in dollars means nothing for a server whose price
is not known in dollars.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_UP, Decimal, InvalidOperation
from typing import Dict, Mapping, Optional

from tasks.domain.errors import ConfigError, UnsupportedError

USD = "USD"
NANO_USD = Decimal("1e-9")
STALE_AFTER_DAYS = 400
"""A rate older than this is refused: in any year since 2000 the euro has moved by up to 20 %."""


@dataclass(frozen=True)
class Rate:
    """What one unit of a currency is worth in USD, on which day, and who said so."""

    currency: str
    usd: Decimal
    day: date
    source: str

    def __str__(self) -> str:
        return f"1 {self.currency} = {self.usd:f} USD ({self.source}, {self.day.isoformat()})"


KNOWN_RATES: Mapping[str, Rate] = {
    "EUR": Rate("EUR", Decimal("1.1761"), date(2026, 5, 8), "European Central Bank reference rate"),
}
"""Used where the user gives none; from ecb.europa.eu/stats/eurofxref/eurofxref-daily.xml. Kept small on purpose: only
currencies that a vendor here prices in."""


@dataclass(frozen=True)
class Price:
    """An amount in the vendor's currency and the same in USD. `rate` is None where it was USD from the start."""

    amount: Decimal
    currency: str
    usd: Decimal
    rate: Optional[Rate] = None

    def basis(self) -> str:
        """How the USD came about, for the ledger, the plan and the lake: "0.0074 EUR, 1 EUR = 1.1761 USD (…)"."""
        return f"{self.amount:f} {self.currency}" + (f", {self.rate}" if self.rate else "")


@dataclass(frozen=True)
class BilledApart:
    """What stands on the bill beside a server's price: its public address, and its boot disk by size and time.

    disk_usd_per_gib_month: the list price in the vendor's cheapest large region. image_gib: the disk's size where none
    is asked for. in_tiers: a size is billed as the next power of two. day: when it was written down. included_gib: what
    of the disk the server's price has in it. fast_usd_per_month: for the throughput that disks of fast_from_gib and
    more are asked for.
    """

    address_usd_per_hour: Decimal
    disk_usd_per_gib_month: Decimal
    image_gib: int
    in_tiers: bool
    day: date
    source: str
    included_gib: int = 0
    fast_from_gib: int = 0
    fast_usd_per_month: Decimal = Decimal(0)

    def usd_per_hour(self, disk_bytes: int) -> Decimal:
        """Of address and disk together, the disk at DEAREST_REGION times its list price: a cap must hold anywhere."""
        gib = max(0, max(self.image_gib, -(-disk_bytes // 2**30)) - self.included_gib)
        if self.in_tiers:
            gib = 1 << (gib - 1).bit_length()
        usd_per_month = self.disk_usd_per_gib_month * gib
        if gib >= self.fast_from_gib:
            usd_per_month += self.fast_usd_per_month
        disk = usd_per_month * DEAREST_REGION / HOURS_PER_MONTH
        return (self.address_usd_per_hour + disk).quantize(NANO_USD, rounding=ROUND_UP)


HOURS_PER_MONTH = 730
DEAREST_REGION = 2
"""Other regions ask up to twice as much for disks."""

BILLED_APART: Mapping[str, BilledApart] = {
    "aws": BilledApart(  # gp3, from 64 GiB on with 375 MiB/s more than it has for nothing, at 0.04 each
        Decimal("0.005"),
        Decimal("0.08"),
        8,
        False,
        date(2026, 7, 1),
        "aws.amazon.com/ebs/pricing, /vpc/pricing",
        fast_from_gib=64,
        fast_usd_per_month=Decimal(15),
    ),
    "azure": BilledApart(  # premium SSD: P4 has 32 GiB, and larger ones cost less by the GiB
        Decimal("0.005"),
        Decimal("0.165"),
        32,
        True,
        date(2026, 6, 18),
        "azure.microsoft.com/pricing/details/managed-disks",
    ),
    "gcp": BilledApart(  # balanced
        Decimal("0.005"), Decimal("0.10"), 10, False, date(2026, 8, 1), "cloud.google.com/compute/disks-image-pricing"
    ),
}
"""Hetzner's and UpCloud's prices have address and disk in them; `local` and `sim` have none apart.

List prices of the vendors' public pages, written down by hand. No API was asked, no bill was compared, and the days are
not verified; no catalogue of ours carries them, so nothing overrides them. Others quote the same: AWS 0.005 USD an hour
for each public IPv4 since 2024-02-01; Google 0.005 for an address in use (cloud.google.com/vpc/network-pricing, as read
on 2026-10-16; half of it on spot) and about 0.10 for balanced disks (c3x.dev/blog/gcp-persistent-disk-types-cost). Of
Azure only the larger P10 was found: 19.71 USD for 128 GiB, 0.154 by the GiB (searchcloudcomputing.techtarget.com);
0.165 for P4 is confirmed by nothing. DEAREST_REGION doubles the disk's. Of the cheapest servers' cost address and disk
are 39 to 54 % by these figures, of a usual one's a few percent.
"""


BEYOND_INCLUDED: Mapping[str, BilledApart] = {
    "upcloud": BilledApart(  # MaxIOPS, for the plans without storage, which alone are asked for with a disk
        Decimal(0),
        Decimal("0.27"),
        0,
        False,
        date(2026, 11, 21),
        "api.upcloud.com/1.3/price, storage_maxiops: 0.031 euro cents per GiB and hour",
        included_gib=25,
    ),
}
"""Of a vendor whose prices have address and disk in them, but not a disk of any size."""


def billed_apart_usd_per_hour(vendor: str, disk_bytes: int) -> Decimal:
    """What a server of the vendor costs an hour beside its own price; 0 where its price is everything."""
    apart = BILLED_APART.get(vendor) or BEYOND_INCLUDED.get(vendor)
    return apart.usd_per_hour(disk_bytes) if apart else Decimal(0)


def to_usd(amount: Decimal, currency: str, rates: Mapping[str, Rate], *, today: date) -> Price:
    """Convert once, rounded up to a nano-dollar, so that no cap is passed by rounding.

    rates: `KNOWN_RATES` overlaid with the user's (`read_rates`). Raises UnsupportedError for a currency without a
    rate and for a rate that is older than STALE_AFTER_DAYS.
    """
    if not amount.is_finite() or amount < 0:
        raise ConfigError(f"A price of {amount} {currency} is none: it must be a number of at least 0.")
    if currency == USD:
        return Price(amount, USD, amount)
    rate = rates.get(currency)
    if rate is None:
        known = ", ".join(sorted(rates)) or "none"
        raise UnsupportedError(
            f"A price is in {currency}, and no rate to USD is known (known: {known}).",
            reason="no_exchange_rate",
            next_step=f"Set TOKENSWEEP_RATES={currency}=<USD for one {currency}>@<day of the rate, YYYY-MM-DD>.",
        )
    age_days = (today - rate.day).days
    if age_days > STALE_AFTER_DAYS:
        raise UnsupportedError(
            f"The rate for {currency} is {age_days} days old: {rate}.",
            reason="stale_exchange_rate",
            next_step=f"Set TOKENSWEEP_RATES={currency}=<USD for one {currency}>@{today.isoformat()}.",
        )
    usd = (amount * rate.usd).quantize(NANO_USD, rounding=ROUND_UP)
    return Price(amount, currency, usd, rate)


def read_rates(text: str, *, today: date) -> Dict[str, Rate]:
    """The known rates, overlaid with the user's: "EUR=1.1761@2026-05-08, GBP=1.36@2026-05-08".

    Raises ConfigError for what is no rate, and for a day that has not come yet.
    """
    rates = dict(KNOWN_RATES)
    for part in filter(None, (part.strip() for part in text.split(","))):
        rate = _read_rate(part)
        if rate.day > today:
            raise ConfigError(f"The rate {part!r} is of a day that has not come yet (today is {today.isoformat()}).")
        rates[rate.currency] = rate
    return rates


def _read_rate(part: str) -> Rate:
    found = re.fullmatch(r"([A-Z]{3})=([0-9.]+)@(\d{4}-\d{2}-\d{2})", part)
    try:
        if found is None:
            raise ValueError(part)
        usd, day = Decimal(found[2]), date.fromisoformat(found[3])
        if not usd > 0 or found[1] == USD:
            raise ValueError(part)
    except (ValueError, InvalidOperation):
        raise ConfigError(
            f"{part!r} is no exchange rate.", next_step="Write it like EUR=1.1761@2026-05-08; join several with commas."
        ) from None
    return Rate(found[1], usd, day, "set by the user")
