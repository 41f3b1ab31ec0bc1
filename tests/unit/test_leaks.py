"""What is left behind, for how long and how dear, and the proof when nothing is: as the command shows it."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from flows import commands, render
from tasks.clouds.base import DEADLINE_TAG, INTENT_TAG, Listing
from tasks.clouds.deletion import request_delete
from tasks.leaks import LeakReport, leaks
from tasks.ledger import Ledger
from tasks.provision import Order, ServerKeys, _create
from tasks.settings import Settings
from tasks.wiring import open_services
from tests.lifecycle_world import World
from tests.memory_cloud import MemoryCloud


def shown(report: LeakReport) -> str:
    with render.out.capture() as captured:
        render.leaks(report)
    return captured.get()


class PricedCloud(MemoryCloud):
    """A vendor whose listings tell the price of some kinds, and not that of its servers."""

    usd_of: dict[str, Decimal]

    def list_owned(self) -> Listing:
        listing = super().list_owned()
        priced = tuple(replace(r, usd_per_hour=self.usd_of.get(r.kind, Decimal(0))) for r in listing.resources)
        return replace(listing, resources=priced)


def priced(world: World, **usd_of: str) -> World:
    cloud = PricedCloud(world.clock.now, things=world.cloud.things, surviving=world.cloud.surviving)
    cloud.usd_of = {kind: Decimal(usd) for kind, usd in usd_of.items()}
    world.cloud = cloud
    return world


def left_behind(world: World) -> None:
    world.create("left", deadline_unix_s=world.clock.now() + 60)
    world.clock.sleep(3600)


def test_nothing_left_comes_with_what_was_listed_where_and_when(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.create("used")
    report = world.leaks()
    text = shown(report)
    assert report.clean
    assert "Nothing is left behind." in text
    assert "listed: memory at 2027-01-15 08:00:00 UTC, 3 of ours in north-1a, north-1b, south-1a: complete" in text
    assert "in use: memory/north-1a/tokensweep-" in text and "ends in 1 hour at the latest" in text


def test_no_listing_is_no_proof(tmp_path: Path) -> None:
    world = World(tmp_path)
    report = leaks([], world.ledger, world.clock.now)
    assert not report.clean
    assert "no vendor was listed, so nothing is proven" in shown(report)


def test_a_part_of_a_listing_is_no_proof_and_says_what_it_lacks(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.cloud.unreachable = {"south-1a"}
    text = shown(world.leaks())
    assert "Nothing is left behind" not in text
    assert "INCOMPLETE: south-1a cannot be reached" in text


def test_what_is_left_has_age_and_price_and_what_it_cost_so_far(tmp_path: Path) -> None:
    world = World(tmp_path)
    left_behind(world)
    report = world.leaks()
    assert report.verdict == "3 resources are left behind, at 0.3600 USD/h"
    (server,) = [leak for leak in report.items if leak.kind == "server"]
    assert (server.price, server.usd_so_far, server.why) == ("0.3600", Decimal("0.36"), "past deadline")
    assert {leak.kind: leak.price for leak in report.items} == {
        "server": "0.3600", "disk": "in its server's", "ip": "in its server's",
    }  # fmt: skip
    text = shown(report)
    assert "1 hour" in text and "0.3600" in text and "past deadline" in text


def test_a_price_that_only_the_ledger_knows_is_the_ledgers(tmp_path: Path) -> None:
    world = priced(World(tmp_path))
    left_behind(world)
    assert world.leaks().usd_per_hour == Decimal("0.36")


def test_a_price_that_nobody_knows_is_called_unknown_and_not_nothing(tmp_path: Path) -> None:
    world = priced(World(tmp_path), disk="0.01")
    left_behind(world)
    world.lose_ledger()
    report = world.leaks()
    assert {leak.kind: leak.price for leak in report.items} == {
        "server": "price unknown", "disk": "0.0100", "ip": "price unknown",
    }  # fmt: skip
    assert report.verdict == "3 resources are left behind, at 0.0100 USD/h and the unknown price of 2 of them"
    assert "price unknown" in shown(report)


def test_a_disk_that_outlived_its_server_is_not_in_its_servers_price(tmp_path: Path) -> None:
    world = priced(World(tmp_path, options={"surviving": {"disk"}}))
    left_behind(world)
    world.cloud.delete(next(r for r in world.cloud.list_owned().resources if r.kind == "server").ref())
    report = world.leaks()
    assert [(leak.kind, leak.price) for leak in report.items] == [("disk", "price unknown")]
    assert report.verdict == "1 resource is left behind, at an unknown price"


def test_what_no_vendor_charges_for_is_free(tmp_path: Path) -> None:
    world = priced(World(tmp_path))
    world.create()
    (tags, *_) = [thing.tags for thing in world.cloud.existing("server")]
    world.cloud.add("a-key", {**tags, INTENT_TAG: "of-nobody", DEADLINE_TAG: "1"}, kind="key")
    world.clock.sleep(1200)
    report = world.leaks()
    assert [(leak.kind, leak.price) for leak in report.items] == [("key", "free")]
    assert report.verdict == "1 resource is left behind, at 0.0000 USD/h"


def test_the_command_exits_with_6_and_what_is_left_and_after_the_reaper_with_0_and_the_proof(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(home=tmp_path)
    services = open_services(settings)
    now_unix_s = services.clock("sim").now()
    services.ledger_of("sim").beat("a reaper that has just passed", ("sim",))
    kind = services.cloud("sim").server_type(services.cloud("sim").default_server_types()[0])
    order = Order("sweep", "run", kind, now_unix_s + 900, Decimal(10), Decimal("0.36"))
    live = _create(order, services, ServerKeys(), threading.Event())
    patience_ends_s = time.monotonic() + 120
    while (exit_code := commands.show_leaks(settings, True)) == 0 and time.monotonic() < patience_ends_s:
        capsys.readouterr()
        time.sleep(0.5)
    told = json.loads(capsys.readouterr().out)
    assert (exit_code, told["clean"]) == (6, False)
    (server,) = [item for item in told["items"] if item["kind"] == "server"]
    assert (server["name"], server["reason"], server["age_s"] > 900) == (live.row.name, "past_deadline", True)
    assert Decimal(str(server["usd_per_hour"])) == Decimal("0.36")

    while commands.reap(settings, False, False, True) != 0 and time.monotonic() < patience_ends_s + 120:
        capsys.readouterr()
    capsys.readouterr()
    assert commands.show_leaks(settings, True) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["clean"], told["items"], told["unproven"]) == (True, [], [])
    sim = next(listed for listed in told["listed"] if listed["vendor"] == "sim")
    assert sim["complete"] and sim["places"] and sim["listed_unix_s"] > now_unix_s


def test_without_its_ledger_a_server_that_is_there_is_not_called_in_use(tmp_path: Path) -> None:
    """Its tags say until when it may live, and not that it has been marked for deletion since."""
    world = World(tmp_path)
    live = world.create("deleted")
    world.cloud.stuck = {live.resource.name}
    request_delete(world.cloud, world.ledger, live.row)
    assert [leak.reason for leak in world.leaks().items if leak.kind == "server"] == ["marked_for_deletion"]
    report = leaks([world.cloud], Ledger.volatile(now=world.clock.now), world.clock.now)
    assert not report.clean and "the ledger cannot be read" in report.verdict
    world.settle()
    assert leaks([world.cloud], Ledger.volatile(now=world.clock.now), world.clock.now).clean
