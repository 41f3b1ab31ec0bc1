"""A place that had none of a server type is left alone for a while, by every server run of the ledger."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.clouds.base import ErrorKind, Scope
from tasks.domain.errors import CapacityError
from tasks.domain.lifecycle import LedgerError
from tasks.domain.stockouts import DRY_S, Stockout, pass_over
from tasks.ledger import Ledger
from tests.lifecycle_world import World
from tests.memory_cloud import Clock, CloudError, Fault

NO_STOCK = Fault(CloudError(ErrorKind.CAPACITY))
NO_STOCK_IN_REGION = Fault(CloudError(ErrorKind.CAPACITY, scope=Scope.REGION))


def test_places_are_passed_over_for_as_long_as_they_are_dry_and_the_rest_keeps_its_order() -> None:
    places = ["c", "a", "b", "d"]
    seen = [Stockout("a", "NoStock", 900.0), Stockout("b", "NoStock", 1000.0 - DRY_S), Stockout("d", "Old", 600.0)]
    again = [*seen, Stockout("d", "NoStock", 990.0)]
    to_ask, decisions = pass_over("v", "small", places, again, now_unix_s=1000.0)
    assert to_ask == ["c", "b"]
    assert [(d.subject, d.action, d.reason) for d in decisions] == [
        ("v/small/a", "skip", "no_stock_lately"),
        ("v/small/d", "skip", "no_stock_lately"),
    ]
    assert decisions[0].evidence == {"code": "NoStock", "ago_s": 100.0, "asked_again_in_s": DRY_S - 100}
    assert decisions[1].evidence["code"] == "NoStock", "the newest of a place counts"
    assert pass_over("v", "small", places, again, now_unix_s=1000.0, dry_s=0.0) == (places, [])


def test_another_hosts_clock_that_is_far_ahead_dries_nothing_for_long() -> None:
    ahead = [Stockout("a", "NoStock", 1000.0 + 3600), Stockout("b", "NoStock", 1000.0 + 5)]
    assert pass_over("v", "small", ["a", "b"], ahead, now_unix_s=1000.0)[0] == ["a"]


def test_the_ledger_keeps_the_newest_of_each_place_for_every_process(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite", now=clock.now)
    ledger.out_of_stock("v", "small", ["a", "b"], spot=False, code="First")
    ledger.out_of_stock("v", "large", ["a"], spot=False, code="Large")
    ledger.out_of_stock("v", "small", ["a"], spot=True, code="Spot")
    clock.sleep(10)
    ledger.out_of_stock("v", "small", ["b"], spot=False, code="Second")
    other = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite", now=clock.now)
    assert set(other.stockouts("v", "small", spot=False)) == {
        Stockout("a", "First", clock.now() - 10),
        Stockout("b", "Second", clock.now()),
    }
    assert other.stockouts("v", "small", spot=True) == (Stockout("a", "Spot", clock.now() - 10),)
    assert other.stockouts("w", "small", spot=False) == ()


def test_a_ledger_of_an_older_version_learns_to_keep_them(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    old = Ledger(url)
    with old._transaction() as conn:
        for later in ("stockouts", "sweep_claims"):
            conn.exec_driver_sql(f"DROP TABLE {later}")
        conn.exec_driver_sql("ALTER TABLE resources DROP COLUMN account")
        conn.exec_driver_sql("UPDATE migrations SET version = 2")
    ledger = Ledger(url)
    assert ledger.ledger_id == old.ledger_id
    ledger.out_of_stock("v", "small", ["a"], spot=False, code="NoStock")
    assert len(ledger.stockouts("v", "small", spot=False)) == 1


def test_the_next_server_runs_do_not_ask_a_dry_zone_until_it_may_have_some_again(tmp_path: Path) -> None:
    w = World(tmp_path)
    w.cloud.plant("create", NO_STOCK)
    assert w.create("first").resource.place == "north-1b"
    n_asked = w.cloud.calls["create"]
    assert w.create("second").resource.place == "north-1b"
    assert w.cloud.calls["create"] == n_asked + 1, "one call, and none in vain"
    w.clock.sleep(w.cloud.traits.dry_s)
    assert w.create("third").resource.place == "north-1a"
    w.settle()


def test_spot_and_on_demand_run_dry_apart_and_so_do_server_types(tmp_path: Path) -> None:
    w = World(tmp_path)
    w.cloud.plant("create", NO_STOCK)
    assert w.create("first", spot=True).resource.place == "north-1b"
    assert w.create("second").resource.place == "north-1a"
    assert w.create("third", spot=True, server_type="large").resource.place == "north-1a"
    assert w.create("fourth", spot=True).resource.place == "north-1b"
    w.settle()


def test_a_region_that_is_dry_is_passed_over_with_all_its_zones(tmp_path: Path) -> None:
    w = World(tmp_path)
    w.cloud.plant("create", NO_STOCK_IN_REGION)
    assert w.create("first").resource.place == "south-1a"
    assert w.create("second", places=("north-1b", "south-1a")).resource.place == "south-1a"
    w.settle()


def test_when_every_place_is_dry_nothing_is_asked_and_it_is_said_when_it_will_be(tmp_path: Path) -> None:
    w = World(tmp_path)
    w.cloud.plant("create", NO_STOCK, NO_STOCK, NO_STOCK)
    with pytest.raises(CapacityError):
        w.create("first")
    n_asked = w.cloud.calls["create"]
    w.clock.sleep(100)
    with pytest.raises(CapacityError, match=r"north-1a: \S+ 10\d s ago; it is asked again in \d+ s.*north-1b.*south"):
        w.create("second")
    assert w.cloud.calls["create"] == n_asked
    assert w.ledger.rows_of_run("second") == ()
    w.settle()


def test_a_server_that_dies_while_it_boots_tells_of_its_zone_and_one_that_only_takes_long_does_not(
    tmp_path: Path,
) -> None:
    w = World(tmp_path, options={"dies_after_s": 1.0, "boot_s": 30.0})
    with pytest.raises(CapacityError):
        w.create("first", places=("north-1a",))
    w.cloud.dies_after_s = None
    assert w.create("second").resource.place == "north-1b"
    w.cloud.boot_s = 10_000.0
    with pytest.raises(CapacityError):
        w.create("third", places=("south-1a",))
    w.cloud.boot_s = 1.0
    assert w.create("fourth", places=("south-1a",)).resource.place == "south-1a"
    w.settle()


def test_what_is_no_stockout_makes_nothing_dry(tmp_path: Path) -> None:
    w = World(tmp_path)
    w.cloud.plant("create", Fault(CloudError(ErrorKind.QUOTA, scope=Scope.REGION)))
    assert w.create("first").resource.place == "south-1a"
    assert w.create("second").resource.place == "north-1a"
    w.settle()


def test_where_servers_come_and_go_in_seconds_a_place_is_asked_at_once(tmp_path: Path) -> None:
    w = World(tmp_path)
    w.cloud.traits = replace(w.cloud.traits, dry_s=0.0)
    w.cloud.plant("create", NO_STOCK)
    assert w.create("first").resource.place == "north-1b"
    assert w.create("second").resource.place == "north-1a"
    w.settle()


class NoRoom(Ledger):
    """A ledger that cannot take down a stockout."""

    def out_of_stock(self, *args: object, **kwargs: object) -> None:
        raise LedgerError("The ledger's disk is full.")


def test_a_stockout_that_cannot_be_noted_keeps_nobody_from_the_next_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    w = World(tmp_path)
    w.ledger = NoRoom(f"sqlite:///{tmp_path}/ledger.sqlite", now=w.clock.now)
    w.cloud.plant("create", NO_STOCK)
    with caplog.at_level(logging.WARNING):
        assert w.create("first").resource.place == "north-1b"
    assert "disk is full" in caplog.text
    w.settle()
