"""Whole lives of servers at UpCloud: the shared life cycle, ledger and reaper over the adapter and its emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tasks.domain.errors import AmbiguousError, AuthError, CapacityError, QuotaError
from tasks.domain.lifecycle import ResourceState
from tasks.ledger import Ledger
from tests.contract.test_hetzner_life import Life
from tests.emulators.base import Fault
from tests.emulators.upcloud_state import Account
from tests.emulators.upcloud_world import UpCloudWorld, open_world

Start = Callable[..., Life]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Opens a life with options of the emulator."""
    with ExitStack() as opened:
        yield lambda **options: Life(opened.enter_context(open_world(**options)), tmp_path)


def account(life: Life) -> Account:
    assert isinstance(life.world, UpCloudWorld)
    return life.world.emulator.account


def credentials(life: Life) -> set[str]:
    assert isinstance(life.world, UpCloudWorld)
    return life.world.emulator.credentials


def test_a_server_lives_and_is_proven_gone(start: Start) -> None:
    life = start(create_s=25.0, stop_s=15.0, storage_delete_s=10.0, lag_s=5.0)
    server = life.create()
    assert server.resource.state == "running"
    assert server.resource.address
    assert life.delete(server)
    assert life.servers() != []
    life.settle()


def test_the_reaper_takes_it_from_stopped_to_gone(start: Start) -> None:
    """What `finally` sends only stops a server that runs; the rest is the reaper's."""
    life = start(stop_s=30.0)
    life.delete(life.create())
    report = life.reap()
    assert report.finished
    assert life.ours() == []


@pytest.mark.parametrize("how", ["drop", "html_502", "truncated"])
def test_an_answer_lost_after_the_create_finds_that_server(start: Start, how: Any) -> None:
    life = start(lag_s=10.0)
    life.world.plant(Fault("POST /server", how=how, after=True))
    server = life.create()
    assert [thing.cloud_id for thing in life.servers()] == [server.resource.cloud_id]
    assert life.world.calls().count("POST /server") == 1
    life.settle()


@pytest.mark.parametrize("how", ["drop", "html_502", "truncated"])
def test_an_answer_lost_before_the_create_is_never_sent_again(start: Start, how: Any) -> None:
    """With nothing unique and no token a second request could make a second server."""
    life = start()
    life.world.plant(Fault("POST /server", how=how))
    with pytest.raises(AmbiguousError):
        life.create()
    assert life.world.calls().count("POST /server") == 1
    assert life.ours() == []
    (row,) = life.ledger.rows()
    assert row.state is ResourceState.DELETING
    life.settle()


def test_what_fails_before_the_create_is_sent_is_no_ambiguity(start: Start) -> None:
    life = start()
    life.world.plant(Fault("GET /storage/template"))
    assert life.create().resource.place == "us-chi1"
    life.settle()


def test_a_server_that_appears_late_is_still_found(start: Start) -> None:
    life = start(lag_s=20.0)
    life.world.plant(Fault("POST /server", after=True))
    server = life.create()
    assert [thing.cloud_id for thing in life.servers()] == [server.resource.cloud_id]
    life.settle()


def test_stockouts_go_on_to_the_next_zone(start: Start) -> None:
    life = start(stock={"de-fra1": 0, "us-chi1": 0})
    assert life.create().resource.place == "fi-hel1"
    life.settle()


def test_a_plan_that_a_zone_does_not_sell_goes_on_to_the_next(start: Start) -> None:
    life = start()
    server = life.create(server_type="HICPU-8xCPU-12GB", places=("us-chi1", "fi-hel1"))
    assert server.resource.place == "fi-hel1"
    life.settle()


def test_a_server_in_error_is_deleted_and_the_next_zone_taken(start: Start) -> None:
    life = start(fails_later={"de-fra1"}, create_s=10.0)
    assert life.create().resource.place == "us-chi1"
    life.reap()
    assert {thing.place for thing in life.ours()} == {"us-chi1"}
    life.settle()


def test_no_zone_has_it(start: Start) -> None:
    life = start(stock={"1xCPU-2GB": 0})
    with pytest.raises(CapacityError, match=r"de-fra1.*us-chi1.*fi-hel1"):
        life.create()
    assert life.ours() == []
    life.settle()


@pytest.mark.parametrize("options", [{"core_limit": 1}, {"credits": 0.0}])
def test_limits_and_credits_of_the_account_stop_at_once(start: Start, options: dict[str, float]) -> None:
    life = start(**options)
    with pytest.raises(QuotaError):
        life.create()
    assert life.world.calls().count("POST /server") == 1
    life.settle()


def test_rate_limits_are_waited_out(start: Start) -> None:
    life = start(requests_per_minute=8)
    for number in range(4):
        life.delete(life.create(f"run-{number}"))
    life.settle()


def test_a_revoked_password_halts_creates_and_loses_nothing(start: Start) -> None:
    life = start()
    first = life.create("first")
    kept = credentials(life).copy()
    credentials(life).clear()
    with pytest.raises(AuthError):
        life.create("second")
    assert not life.delete(first)
    assert not life.reap(prove_s=0).finished
    credentials(life).update(kept)
    life.settle()


def test_a_server_stuck_in_maintenance_is_tried_until_it_comes_out(start: Start) -> None:
    life = start()
    server = life.create()
    thing = account(life).find("server", server.resource.cloud_id)
    thing.data["busy_until_unix_s"] = life.world.now() + 10**6
    assert not life.delete(server)
    life.world.sleep(2000)
    assert [row.name for row in life.reap().stuck] == [server.row.name]
    thing.data["busy_until_unix_s"] = 0.0
    life.settle()


def test_storages_that_outlive_their_server_are_found_and_deleted(start: Start) -> None:
    """As the console deletes a server unless told otherwise."""
    life = start()
    server = life.create()
    thing = account(life).find("server", server.resource.cloud_id)
    account(life).stop(thing)
    account(life).delete_server(thing, storages=False, backups="keep")
    assert [left.kind for left in life.ours()] == ["disk"]
    life.settle()


def test_backups_of_a_server_of_ours_go_with_it(start: Start) -> None:
    life = start()
    life.create()
    (disk,) = (thing for thing in account(life).alive("storage") if thing.data.get("made_for_ours"))
    backup = account(life).add(
        "storage", "by hand", disk.zone, {}, size=50, tier="maxiops", type="backup", origin=disk.uuid
    )
    life.settle()
    assert not backup.exists(life.world.now())


def test_an_address_told_to_stay_goes_all_the_same(start: Start) -> None:
    life = start()
    life.create()
    (ip,) = (thing for thing in account(life).alive("ip") if thing.data.get("made_for_ours"))
    ip.data["release_policy"] = "keep"
    life.settle()
    assert not ip.exists(life.world.now())


def test_a_floating_address_that_somebody_attached_to_a_server_of_ours_stays(start: Start) -> None:
    life = start()
    server = life.create()
    theirs = account(life).add(
        "ip", "", "de-fra1", {}, server=server.resource.cloud_id, floating="yes", release_policy="keep"
    )
    life.before = [thing for thing in life.world.existing() if not thing.ours]
    assert life.world.cloud.list_owned().complete
    assert theirs.uuid not in {r.address for r in life.world.cloud.list_owned().resources if r.kind == "ip"}
    life.world.sleep(5000)
    for _ in range(3):
        life.reap()
    assert life.ours() == []
    assert theirs.exists(life.world.now())


def test_with_the_ledger_lost_everything_goes_by_its_labels(start: Start, tmp_path: Path) -> None:
    life = start(stop_s=10.0)
    life.create()
    life.ledger = Ledger(f"sqlite:///{tmp_path}/another.sqlite", now=life.world.now)
    life.settle()


def test_a_stopped_server_still_bills_and_still_goes(start: Start) -> None:
    life = start()
    server = life.create()
    account(life).stop(account(life).find("server", server.resource.cloud_id))
    before = account(life).bill_eur()
    life.world.sleep(7200)
    assert account(life).bill_eur() > before
    life.settle()
    flat = account(life).bill_eur()
    foreign_per_hour = sum((thing.usd_per_hour for thing in life.before), Decimal(0))
    life.world.sleep(3600)
    assert account(life).bill_eur() - flat <= foreign_per_hour
