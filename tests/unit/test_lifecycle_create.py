"""Creating a server: the order of what is committed and sent, and what becomes of each kind of failure."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tasks.clouds.base import DEADLINE_TAG, INTENT_TAG, OWNER, OWNER_TAG, SWEEP_TAG, ErrorKind, Scope
from tasks.clouds.lifecycle import CreateCancelledError, CreateLimits, create_server, delete_and_prove, region_of
from tasks.clouds.request import places_left
from tasks.clouds.tags import CONTROLLER_TAG, LEDGER_TAG
from tasks.domain.errors import (
    AmbiguousError,
    AuthError,
    CapacityError,
    CleanupError,
    ConfigError,
    RateLimitedError,
    UnsupportedError,
)
from tasks.domain.lifecycle import BudgetError, LedgerError, ResourceState
from tests.lifecycle_world import TTL_S, World, make_spec, server_request
from tests.memory_cloud import LOST, CloudError, Fault


def world(tmp_path: Path, **options: Any) -> World:
    return World(tmp_path, options=options)


def test_a_created_server_is_live_in_the_ledger_and_carries_every_tag(tmp_path: Path) -> None:
    w = world(tmp_path, boot_s=30, lag_s=10)
    live = w.create()
    row = w.ledger.row(live.row.intent_id)
    assert row is not None
    assert (row.state, row.cloud_id, row.address) == (ResourceState.LIVE, live.resource.cloud_id, "192.0.2.1")
    assert row.host_public_key == "pinned"
    assert row.controller == w.ledger.controller
    assert live.resource.state == "running"
    assert live.resource.tags == {
        OWNER_TAG: OWNER,
        INTENT_TAG: row.intent_id,
        DEADLINE_TAG: str(int(row.deadline_unix_s)),
        SWEEP_TAG: "sweep",
        LEDGER_TAG: w.ledger.ledger_id,
        CONTROLLER_TAG: w.ledger.controller,
    }
    assert all(len(tag) <= 63 and tag == tag.lower() for tag in live.resource.tags.values())
    assert w.reap().n_deletes_sent == 0, "a running sweep's server is kept"
    w.settle()


def test_intent_is_committed_before_anything_is_sent(tmp_path: Path) -> None:
    w = world(tmp_path)
    seen: list[ResourceState] = []

    def look(point: str) -> None:
        if point == "create before":
            seen.extend(row.state for row in w.ledger.open_rows())

    w.cloud.on_call = look
    w.create()
    assert seen == [ResourceState.CREATING]


def test_no_reaper_no_create(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.clock.sleep(w.limits.heartbeat_s + 1)
    with pytest.raises(ConfigError, match="reaper"):
        w.create()
    w.reap()
    w.create()
    w.lose_ledger()
    with pytest.raises(ConfigError, match="never"):
        w.create("other")
    assert w.cloud.calls["create"] == 1


def test_a_heartbeat_of_the_future_does_not_hold_the_gate_open(tmp_path: Path) -> None:
    """Of a reaper whose host's clock was an hour ahead when it passed for the last time."""
    w = world(tmp_path)
    w.ledger.timed_by(lambda: w.clock.now() + 3600).beat("ahead", (w.cloud.vendor,))
    w.create("first")
    w.clock.sleep(w.limits.heartbeat_s + 1)
    with pytest.raises(ConfigError, match="reaper"):
        w.create("second")


def test_a_reaper_of_another_account_does_not_open_the_gate(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.cloud.account_id = "yours"
    w.reap()
    w.cloud.account_id = "mine"
    with pytest.raises(ConfigError, match=r"memory, account mine: .* the last one passed never"):
        w.create()
    assert w.cloud.calls["create"] == 0
    w.reap()
    assert w.create().row.account == "mine"


def test_a_reaper_that_cannot_list_everything_does_not_open_the_gate(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.lose_ledger()
    w.cloud.unreachable = {"south-1a"}
    w.reap()
    with pytest.raises(ConfigError, match="reaper"):
        w.create()
    assert w.cloud.calls["create"] == 0


def test_no_create_past_the_deadline(tmp_path: Path) -> None:
    w = world(tmp_path)
    with pytest.raises(ConfigError, match="deadline"):
        w.create(deadline_unix_s=w.clock.now())
    assert w.cloud.calls["create"] == 0


def test_no_money_no_create(tmp_path: Path) -> None:
    w = world(tmp_path)
    with pytest.raises(BudgetError):
        w.create(cap_usd=Decimal("0.36"))  # an hour costs that, and the reservation is for a little longer
    assert w.cloud.calls["create"] == 0
    assert w.ledger.rows() == ()
    w.create(cap_usd=Decimal("0.40"))


def test_an_unwritable_ledger_stops_the_create(tmp_path: Path) -> None:
    w = world(tmp_path)
    ledger_file = tmp_path / "ledger.sqlite"
    for leftover in tmp_path.glob("ledger.sqlite-*"):
        leftover.unlink()
    ledger_file.write_bytes(b"this is no database" * 1000)
    with pytest.raises(LedgerError):
        w.create()
    assert w.cloud.calls["create"] == 0


def test_capacity_goes_on_to_the_next_zone_and_the_next_region(tmp_path: Path) -> None:
    w = world(tmp_path, stock={"north-1a": 0, "north-1b": 0})
    live = w.create()
    assert live.resource.place == "south-1a"
    assert [row.state for row in w.ledger.rows()] == [ResourceState.GONE, ResourceState.GONE, ResourceState.LIVE]
    refused = w.ledger.rows()[0]
    assert refused.cost_usd == 0
    assert "capacity" in refused.proof
    assert len({row.token for row in w.ledger.rows()}) == 3
    assert w.ledger.spent("sweep").reserved_usd == live.row.reserved_usd, "what was refused reserves nothing"
    w.settle()


def test_no_place_left(tmp_path: Path) -> None:
    w = world(tmp_path, stock={"north-1a": 0, "north-1b": 0, "south-1a": 0})
    with pytest.raises(CapacityError, match="north-1b"):
        w.create()
    assert w.ledger.open_rows() == ()


def test_a_region_that_is_full_is_left_with_all_its_zones(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.cloud.plant("create", Fault(CloudError(ErrorKind.QUOTA, scope=Scope.REGION)))
    assert w.create().resource.place == "south-1a"
    assert w.cloud.calls["create"] == 2


@pytest.mark.parametrize(
    ("kind", "scope", "error"),
    [
        (ErrorKind.AUTH, Scope.VENDOR, AuthError),
        (ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, UnsupportedError),
    ],
)
def test_what_no_other_place_can_mend_ends_it(
    tmp_path: Path, kind: ErrorKind, scope: Scope, error: type[Exception]
) -> None:
    w = world(tmp_path)
    w.cloud.plant("create", Fault(CloudError(kind, scope=scope)))
    with pytest.raises(error):
        w.create()
    assert w.cloud.calls["create"] == 1
    assert w.ledger.open_rows() == ()


def test_rate_limits_are_waited_out_in_the_same_place(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.cloud.plant("create", *[Fault(CloudError(ErrorKind.RATE_LIMITED))] * 5)
    began = w.clock.now()
    assert w.create().resource.place == "north-1a"
    assert w.clock.now() > began
    assert len(w.ledger.rows()) == 1


def test_rate_limits_without_end_do_not_fail_over(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.cloud.plant("create", *[Fault(CloudError(ErrorKind.RATE_LIMITED))] * 200)
    with pytest.raises(RateLimitedError):
        w.create()
    assert {row.place for row in w.ledger.rows()} == {"north-1a"}
    assert w.ledger.open_rows() == ()


@pytest.mark.parametrize("options", [{}, {"unique_names": True}, {"idempotency_token": True}])
@pytest.mark.parametrize("lag_s", [0, 60])
def test_a_lost_response_is_resolved_to_the_one_server_that_was_made(
    tmp_path: Path, options: dict[str, Any], lag_s: float
) -> None:
    w = world(tmp_path, lag_s=lag_s, **options)
    w.cloud.plant("create", Fault(LOST, acts=True))
    live = w.create()
    assert [thing.id for thing in w.cloud.existing("server")] == [live.resource.cloud_id]
    assert live.resource.place == "north-1a"
    w.settle()


@pytest.mark.parametrize("options", [{"unique_names": True}, {"idempotency_token": True}])
def test_a_lost_request_is_sent_again_where_that_is_safe(tmp_path: Path, options: dict[str, Any]) -> None:
    w = world(tmp_path, **options)
    w.cloud.plant("create", Fault(LOST))
    w.create()
    assert len(w.cloud.existing("server")) == 1


def test_a_lost_request_is_never_sent_again_where_it_could_make_a_second_server(tmp_path: Path) -> None:
    w = world(tmp_path, lag_s=20)
    w.cloud.plant("create", Fault(LOST))
    with pytest.raises(AmbiguousError, match="not answered"):
        w.create()
    assert w.cloud.calls["create"] == 1, "neither again, nor in the next zone"
    (row,) = w.ledger.open_rows()
    assert row.state is ResourceState.DELETING
    w.settle()


def test_a_lost_create_that_appears_late_is_deleted_although_listings_lacked_it(tmp_path: Path) -> None:
    w = world(tmp_path, lag_s=300)
    w.cloud.plant("create", Fault(LOST, acts=True))
    w.limits = CreateLimits(resolve_s=-550)
    with pytest.raises(AmbiguousError):
        w.create()
    assert len(w.ledger.open_rows()) == 1
    report = w.reap(prove_s=0)
    assert report.gone == [], "a create without an answer is not gone before its deadline"
    w.clock.sleep(301)
    w.reap(prove_s=700)
    assert w.cloud.existing() == []
    assert w.leaks().clean
    w.settle()


@pytest.mark.parametrize("options", [{"unique_names": True}, {"idempotency_token": True}])
def test_a_refusal_after_a_lost_request_proves_that_nothing_was_made(tmp_path: Path, options: dict[str, Any]) -> None:
    w = world(tmp_path, lag_s=10, stock={"north-1a": 0}, **options)
    w.cloud.plant("create", Fault(LOST))
    assert w.create().resource.place == "north-1b"
    w.settle()


def test_bad_credentials_after_a_lost_response_prove_nothing(tmp_path: Path) -> None:
    w = world(tmp_path, idempotency_token=True)
    w.cloud.plant("create", Fault(LOST), *[Fault(CloudError(ErrorKind.AUTH, scope=Scope.VENDOR))] * 100)
    with pytest.raises(AmbiguousError):
        w.create()
    assert len(w.ledger.open_rows()) == 1
    w.settle()


def test_a_vendor_that_answers_nothing_at_all_leaves_the_row_for_the_reaper(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.cloud.plant("create", Fault(LOST, acts=True))
    for method in ("get", "list_owned", "delete"):
        w.cloud.plant(method, *[Fault(LOST)] * 100)
    with pytest.raises(AmbiguousError):
        w.create()
    w.mend()
    w.reap()
    assert w.cloud.existing() == []
    w.settle()


def test_an_sdk_that_sends_twice_leaves_one_server(tmp_path: Path) -> None:
    w = world(tmp_path, double=True)
    live = w.create()
    assert len(w.cloud.existing("server")) == 2
    w.cloud.double = False
    report = w.reap()
    assert [thing.id for thing in w.cloud.existing("server")] == [live.resource.cloud_id]
    assert "duplicate" in {decision.reason for decision in report.decisions}
    w.settle()


def test_a_server_that_dies_while_it_boots_is_deleted_before_the_next_zone(tmp_path: Path) -> None:
    w = world(tmp_path, boot_s=60, dies_after_s=10)
    with pytest.raises(CapacityError, match="state_stopped"):
        w.create()
    assert w.cloud.existing() == []
    assert {row.state for row in w.ledger.rows()} == {ResourceState.DELETING}
    w.settle()


def test_a_server_that_never_boots_is_deleted(tmp_path: Path) -> None:
    w = world(tmp_path, boot_s=10**6)
    with pytest.raises(CapacityError, match="boot_timeout"):
        w.create(places=("north-1a",))
    assert w.cloud.existing() == []
    w.settle()


def test_a_boot_failure_whose_delete_is_refused_does_not_go_on(tmp_path: Path) -> None:
    w = world(tmp_path, boot_s=10**6)
    w.cloud.plant("delete", Fault(CloudError(ErrorKind.DELETE_BLOCKED)))
    with pytest.raises(CleanupError, match="north-1a"):
        w.create()
    assert w.cloud.calls["create"] == 1
    w.settle()


@pytest.mark.parametrize("point", ["create before", "create after", "get after"])
def test_an_interrupt_leaves_nothing_that_the_reaper_does_not_delete_at_once(tmp_path: Path, point: str) -> None:
    w = world(tmp_path, boot_s=30)

    def interrupt(at: str) -> None:
        if at == point:
            w.cloud.on_call = lambda point: None
            raise KeyboardInterrupt

    w.cloud.on_call = interrupt
    with pytest.raises(KeyboardInterrupt):
        w.create()
    assert {row.state for row in w.ledger.open_rows()} <= {ResourceState.DELETING}
    w.reap()
    assert w.cloud.existing() == []
    w.settle()


def test_a_cancelled_run_gets_no_server(tmp_path: Path) -> None:
    w = world(tmp_path, boot_s=60)
    with pytest.raises(CreateCancelledError):
        create_server(
            w.cloud,
            w.ledger,
            make_spec,
            server_request("run", w.clock.now()),
            now=w.clock.now,
            sleep=w.clock.sleep,
            cancelled=lambda: w.cloud.calls["create"] > 0,
        )
    assert w.cloud.existing() == []
    w.settle()


def test_a_row_marked_for_deletion_during_the_create_takes_its_server_along(tmp_path: Path) -> None:
    w = world(tmp_path)

    def mark(point: str) -> None:
        if point == "create after":
            (row,) = w.ledger.open_rows()
            w.ledger.deleting(row)

    w.cloud.on_call = mark
    with pytest.raises(CreateCancelledError):
        w.create()
    assert w.cloud.existing() == []
    w.settle()


def test_a_ledger_that_breaks_after_the_create_takes_the_server_along(tmp_path: Path) -> None:
    w = world(tmp_path)

    def break_ledger(point: str) -> None:
        if point == "create after":
            for leftover in tmp_path.glob("ledger.sqlite-*"):
                leftover.unlink()
            (tmp_path / "ledger.sqlite").write_bytes(b"this is no database" * 1000)

    w.cloud.on_call = break_ledger
    with pytest.raises(LedgerError):
        w.create()
    assert w.cloud.existing() == []


@pytest.mark.parametrize("boot_s", [0, 60])
def test_a_ledger_that_is_replaced_during_the_create_takes_the_server_along(tmp_path: Path, boot_s: float) -> None:
    """By an older copy of itself, which knows nothing of it."""
    w = world(tmp_path, boot_s=boot_s)
    w.reap()

    def replace_ledger(point: str) -> None:
        if point == "create after":
            with w.ledger._engine.begin() as conn:
                conn.execute(sa.text("DELETE FROM resources"))

    w.cloud.on_call = replace_ledger
    with pytest.raises(LedgerError, match="no longer has the row"):
        w.create()
    assert w.cloud.existing() == []


def test_a_refusal_ends_although_the_ledger_was_replaced_meanwhile(tmp_path: Path) -> None:
    w = world(tmp_path)

    def replace_ledger(point: str) -> None:
        if point == "create before":
            with w.ledger._engine.begin() as conn:
                conn.execute(sa.text("DELETE FROM resources"))

    w.cloud.on_call = replace_ledger
    w.cloud.plant("create", Fault(CloudError(ErrorKind.AUTH, scope=Scope.VENDOR)))
    with pytest.raises(LedgerError, match="no longer has the row"):
        w.create()
    assert w.cloud.existing() == []


def test_cancelled_while_it_is_rate_limited_it_gives_its_money_back_at_once(tmp_path: Path) -> None:
    """Everything that was sent was refused: to wait until the deadline for what cannot appear would keep the money from
    the sweep that is started again."""
    w = world(tmp_path)
    w.cloud.plant("create", *[Fault(CloudError(ErrorKind.RATE_LIMITED))] * 3)
    with pytest.raises(CreateCancelledError):
        create_server(
            w.cloud,
            w.ledger,
            make_spec,
            server_request("run", w.clock.now()),
            now=w.clock.now,
            sleep=w.clock.sleep,
            cancelled=lambda: w.cloud.calls["create"] == 2,
        )
    assert w.cloud.calls["create"] == 2
    (row,) = w.ledger.rows()
    assert (row.state, row.cost_usd) == (ResourceState.GONE, 0) and "cancelled" in row.proof
    assert w.ledger.spent("sweep").committed_usd == 0
    w.settle()


def test_nothing_is_sent_after_the_deadline_however_long_the_vendor_made_us_wait(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.cloud.plant("create", *[Fault(CloudError(ErrorKind.RATE_LIMITED))] * 6)
    with pytest.raises(ConfigError, match="deadline"):
        w.create(deadline_unix_s=w.clock.now() + 30)
    assert 1 < w.cloud.calls["create"] < 7
    assert w.ledger.open_rows() == () and w.ledger.spent("sweep").committed_usd == 0


def test_a_second_try_of_the_same_run_deletes_what_the_first_left(tmp_path: Path) -> None:
    w = world(tmp_path)
    first = w.create()
    second = w.create()
    assert [thing.id for thing in w.cloud.existing("server")] == [second.resource.cloud_id]
    assert first.row.intent_id != second.row.intent_id
    w.settle()


def test_zones_and_regions() -> None:
    zones = {"us-east-1a": "us-east-1", "us-central1-a": "us-central1", "westeurope-1": "westeurope"}
    assert {zone: region_of(zone) for zone in zones} == zones
    for region in ("us-east-1", "us-central1", "westeurope", "fsn1", "de-fra1", "local"):
        assert region_of(region) == region
    places = ["us-east-1a", "us-east-1b", "eu-west-1a"]
    assert places_left(places, Scope.ZONE, region_of) == ["us-east-1b", "eu-west-1a"]
    assert places_left(places, Scope.REGION, region_of) == ["eu-west-1a"]


def test_the_reservation_is_the_worst_case_and_the_cost_the_real_one(tmp_path: Path) -> None:
    w = world(tmp_path)
    live = w.create()
    assert live.row.reserved_usd >= live.row.usd_per_hour * Decimal(TTL_S) / 3600
    w.clock.sleep(600)
    row = delete_and_prove(w.cloud, w.ledger, live.row, now=w.clock.now, sleep=w.clock.sleep)
    assert row.cost_usd == Decimal("0.06"), "ten minutes at 0.36 an hour"
    assert w.ledger.spent("sweep").committed_usd == row.cost_usd
    w.settle()


def test_the_vendors_billing_minimum_is_paid(tmp_path: Path) -> None:
    w = world(tmp_path)
    live = w.create()
    row = delete_and_prove(w.cloud, w.ledger, live.row, now=w.clock.now, sleep=w.clock.sleep)
    assert row.cost_usd == Decimal("0.006"), "one minute at 0.36 an hour"


def test_a_server_that_boots_for_long_is_looked_at_less_and_less_often(tmp_path: Path) -> None:
    w = world(tmp_path, boot_s=300.0)
    began_unix_s = w.clock.now()
    assert w.create().resource.state == "running"
    assert w.clock.now() - began_unix_s <= 300 * 1.1 + w.limits.poll_s
    assert w.cloud.calls["get"] <= 50, "every two seconds it would be 150"
