"""What a vendor bills beside a server's price is reserved and recorded too."""

from __future__ import annotations

import threading
import time
from decimal import Decimal
from pathlib import Path

import pytest

from tasks.clouds.aws.images import Image
from tasks.clouds.request import LiveServer
from tasks.domain.lifecycle import BudgetError
from tasks.domain.money import BEYOND_INCLUDED, BILLED_APART, billed_apart_usd_per_hour
from tasks.provision import Order, ServerKeys, _create
from tasks.settings import Settings
from tasks.wiring import Services
from tests.memory_cloud import MemoryCloud

GIB = 2**30
PRICE = Decimal("0.0094")


def create(home: Path, vendor: str, disk_gib: int, cap_usd: str = "1") -> tuple[LiveServer, Services]:
    """At a cloud in memory that goes by that vendor's name."""
    cloud = MemoryCloud(time.time, vendor=vendor)
    services = Services(Settings(home=home), {vendor: cloud})
    services.ledger.beat("a reaper that has just passed", (vendor,))
    order = Order(
        sweep_id="sweep",
        server_run_id="run",
        server_type=cloud.server_type("small"),
        deadline_unix_s=time.time() + 3600,
        cap_usd=Decimal(cap_usd),
        usd_per_hour=PRICE,
        disk_bytes=disk_gib * GIB,
    )
    return _create(order, services, ServerKeys(), threading.Event()), services


@pytest.mark.parametrize(
    "vendor, disk_gib, usd_per_hour",
    [
        ("aws", 0, Decimal("0.005") + Decimal("0.08") * 8 * 2 / 730),  # the image's 8 GiB
        ("aws", 63, Decimal("0.005") + Decimal("0.08") * 63 * 2 / 730),
        ("aws", 100, Decimal("0.005") + (Decimal("0.08") * 100 + Decimal("0.04") * (500 - 125)) * 2 / 730),
        ("azure", 0, Decimal("0.005") + Decimal("0.165") * 32 * 2 / 730),
        ("azure", 33, Decimal("0.005") + Decimal("0.165") * 64 * 2 / 730),  # the next size that there is
        ("azure", 64, Decimal("0.005") + Decimal("0.165") * 64 * 2 / 730),
        ("gcp", 33, Decimal("0.005") + Decimal("0.10") * 33 * 2 / 730),
        ("hetzner", 100, Decimal(0)),
        ("upcloud", 0, Decimal(0)),  # plans with storage: in their price
        ("upcloud", 20, Decimal(0)),
        ("upcloud", 100, Decimal("0.27") * 75 * 2 / 730),  # plans without: 25 GiB are in their price
    ],
)
def test_disk_and_address_cost_what_their_vendor_asks(vendor: str, disk_gib: int, usd_per_hour: Decimal) -> None:
    found = billed_apart_usd_per_hour(vendor, disk_gib * GIB)
    assert usd_per_hour <= found < usd_per_hour + Decimal("1e-8"), "rounded up, never down"


def test_the_disks_that_aws_is_asked_for_fast_are_those_that_are_counted_so() -> None:
    image = Image(image_id="ami-1", root_device="/dev/sda1", devices={"/dev/sda1": 8})
    apart = BILLED_APART["aws"]
    for gib in (apart.fast_from_gib - 1, apart.fast_from_gib):
        (root,) = image.block_device_mappings(gib * GIB)
        beyond_the_free = root["Ebs"].get("Throughput", 125) - 125
        counted = apart.fast_usd_per_month if gib >= apart.fast_from_gib else Decimal(0)
        assert beyond_the_free * Decimal("0.04") == counted


def test_every_rate_has_its_day_and_source() -> None:
    for apart in (*BILLED_APART.values(), *BEYOND_INCLUDED.values()):
        assert apart.day.year >= 2026 and "/" in apart.source


@pytest.mark.parametrize("vendor", ["aws", "azure", "gcp", "hetzner"])
def test_the_ledger_reserves_and_records_the_server_with_disk_and_address(tmp_path: Path, vendor: str) -> None:
    live, services = create(tmp_path, vendor, 30)
    apart = billed_apart_usd_per_hour(vendor, 30 * GIB)
    assert live.row.usd_per_hour == PRICE + apart
    spent = services.ledger.spent("sweep")
    assert spent.reserved_usd >= PRICE + apart, "an hour of it"
    assert live.row.price_basis == (f"{apart:f} USD of it for disk and address" if apart else "")


def test_a_cap_that_holds_the_server_and_not_its_disk_and_address_creates_nothing(tmp_path: Path) -> None:
    hour_and_overrun = PRICE * (3600 + 300 + 5) / 3600
    create(tmp_path / "with them in its price", "hetzner", 30, f"{hour_and_overrun:f}")
    with pytest.raises(BudgetError):
        create(tmp_path / "apart", "aws", 30, f"{hour_and_overrun:f}")
