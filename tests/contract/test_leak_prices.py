"""The ledger is lost, and what is left has a price all the same: the listing names its type, the vendor the price."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from tasks.domain.money import BILLED_APART, KNOWN_RATES
from tasks.domain.reaping import SERVER
from tasks.leaks import Leak, leaks
from tasks.ledger import Ledger
from tests.contract.world import VendorWorld
from tests.contract.worlds import open_world, spoken_to_over_http
from tests.emulators.emulated import spec_of


@pytest.fixture(params=spoken_to_over_http())
def world(request: pytest.FixtureRequest) -> Iterator[VendorWorld]:
    with open_world(request.param) as opened:
        yield opened


def left_behind(world: VendorWorld) -> dict[str, list[Leak]]:
    """What is left by kind, of a server that nobody remembers, half an hour old."""
    world.cloud.create(spec_of(world))
    world.sleep(1800)
    report = leaks([world.cloud], Ledger.volatile(), world.now)
    found: dict[str, list[Leak]] = {}
    for leak in report.items:
        found.setdefault(leak.kind, []).append(leak)
    return found


def test_a_server_that_only_the_listing_knows_has_the_price_of_its_type(world: VendorWorld) -> None:
    sold = world.cloud.server_type(world.server_type)
    price = sold.price_in(world.places[0])
    assert price > 0
    found = left_behind(world)
    (server,) = found.pop(SERVER)
    usd_per_hour = server.usd_per_hour
    assert usd_per_hour is not None
    expected = price * KNOWN_RATES[sold.currency].usd if sold.currency != "USD" else price
    assert abs(usd_per_hour - expected) < Decimal("1e-6")
    assert server.usd_so_far and usd_per_hour / 3 < server.usd_so_far < usd_per_hour
    if world.cloud.vendor not in BILLED_APART:
        assert {leak.price for kind in ("ip", "disk") for leak in found.get(kind, [])} == {"in its server's"}


def test_get_and_listing_name_the_type_that_was_asked_for(world: VendorWorld) -> None:
    made = world.cloud.create(spec_of(world))
    world.sleep(world.cloud.traits.visibility_lag_s + 60)
    again = world.cloud.get(made.ref())
    (listed,) = [r for r in world.cloud.list_owned().resources if r.kind == SERVER]
    assert again is not None
    assert made.server_type == again.server_type == listed.server_type == world.server_type


def test_a_price_list_that_cannot_be_read_hides_no_leak(world: VendorWorld) -> None:
    made = world.cloud.create(spec_of(world))
    world.sleep(1800)

    class NoPrices:
        def __getattr__(self, name: str) -> object:
            if name == "server_type":
                raise PermissionError("these credentials may list and delete, and read no prices")
            return getattr(world.cloud, name)

    report = leaks([NoPrices()], Ledger.volatile(), world.now)  # type: ignore[list-item]
    (server,) = [leak for leak in report.items if leak.kind == SERVER]
    assert server.cloud_id == made.cloud_id and not report.clean
    assert server.price == "price unknown" or server.usd_per_hour, "Azure's listing is priced by what the module knows"
