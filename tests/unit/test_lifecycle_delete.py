"""Deleting and proving it, on a cloud that lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.clouds.base import ErrorKind, Scope
from tasks.clouds.deletion import STUCK_AFTER_S, list_owned, prove_gone
from tasks.clouds.lifecycle import delete_and_prove, request_delete
from tasks.domain.errors import CleanupError
from tasks.domain.lifecycle import Intent, LedgerError, LedgerRow, ResourceState
from tests.lifecycle_world import World
from tests.memory_cloud import CloudError, Fault


def world(tmp_path: Path, **options: Any) -> World:
    return World(tmp_path, options=options)


def weigh(w: World, row: LedgerRow) -> tuple[LedgerRow, str]:
    row, decision = prove_gone(w.cloud, w.ledger, row, list_owned(w.cloud, w.clock.now))
    return row, decision.reason


def marked(w: World) -> LedgerRow:
    live = w.create()
    w.clock.sleep(w.cloud.lag_s)
    assert request_delete(w.cloud, w.ledger, live.row)
    row = w.ledger.row(live.row.intent_id)
    assert row is not None
    return row


def test_delete_and_prove(tmp_path: Path) -> None:
    w = world(tmp_path, lag_s=20, delete_s=30)
    live = w.create()
    row = delete_and_prove(w.cloud, w.ledger, live.row, now=w.clock.now, sleep=w.clock.sleep)
    assert row.state is ResourceState.GONE
    assert "absent_from_complete_listings_unix_s" in row.proof
    assert "south-1a" in row.proof
    w.settle()


def test_a_first_absence_is_not_believed(tmp_path: Path) -> None:
    w = world(tmp_path)
    row = marked(w)
    row, reason = weigh(w, row)
    assert (row.state, reason) == (ResourceState.DELETING, "first_absence")
    w.clock.sleep(1)
    row, reason = weigh(w, row)
    assert (row.state, reason) == (ResourceState.GONE, "absent_twice")


def test_a_partial_listing_is_no_proof(tmp_path: Path) -> None:
    w = world(tmp_path)
    row = marked(w)
    w.cloud.unreachable = {"south-1a"}
    for _ in range(5):
        w.clock.sleep(100)
        row, reason = weigh(w, row)
        assert (row.state, reason) == (ResourceState.DELETING, "partial_listing")
    w.settle()


def test_a_failed_listing_is_no_proof(tmp_path: Path) -> None:
    w = world(tmp_path)
    row = marked(w)
    w.cloud.plant("list_owned", *[Fault(CloudError(ErrorKind.AUTH, scope=Scope.VENDOR))] * 3)
    for _ in range(3):
        w.clock.sleep(100)
        row, reason = weigh(w, row)
        assert (row.state, reason) == (ResourceState.DELETING, "partial_listing")
    w.settle()


def test_not_found_is_not_believed_once(tmp_path: Path) -> None:
    """The delete is answered as if it were gone, `get` denies it, and then it is there again."""
    w = world(tmp_path, lag_s=0)
    row = marked(w)
    server = w.cloud.things[row.cloud_id]
    shown = {**vars(server), "ends_unix_s": None}
    row, reason = weigh(w, row)
    assert reason == "first_absence"
    w.cloud.things[server.id] = type(server)(**shown)
    w.clock.sleep(1)
    row, reason = weigh(w, row)
    assert (row.state, reason) == (ResourceState.DELETING, "still_listed")
    assert row.absent_since_unix_s is None, "the absence is forgotten"
    w.settle()


def test_absent_from_the_listing_but_still_answering_is_not_gone(tmp_path: Path) -> None:
    w = world(tmp_path)
    row = marked(w)
    server = w.cloud.things[row.cloud_id]
    w.cloud.things[server.id] = type(server)(**{**vars(server), "ends_unix_s": None, "tags": {}})
    for _ in range(3):
        w.clock.sleep(100)
        row, reason = weigh(w, row)
        assert (row.state, reason) == (ResourceState.DELETING, "still_answers"), "its tags were stripped"
    w.reap()
    w.cloud.things[server.id] = type(server)(**{**vars(server), "ends_unix_s": w.clock.now()})
    w.settle()


def test_a_get_that_fails_is_no_proof(tmp_path: Path) -> None:
    w = world(tmp_path)
    row = marked(w)
    w.cloud.plant("get", Fault(CloudError(ErrorKind.AUTH)))
    row, reason = weigh(w, row)
    assert reason == "get_failed"
    assert row.absent_since_unix_s is None


def test_a_disk_that_outlives_its_server_is_deleted_too(tmp_path: Path) -> None:
    w = world(tmp_path)
    live = w.create()
    w.cloud.surviving = {"disk", "ip"}
    row = delete_and_prove(w.cloud, w.ledger, live.row, now=w.clock.now, sleep=w.clock.sleep)
    assert row.state is ResourceState.GONE
    assert w.cloud.existing() == []


def test_a_server_that_was_created_again_under_its_name_is_not_touched(tmp_path: Path) -> None:
    w = world(tmp_path)
    row = marked(w)
    again = w.cloud.add(row.name, {"owner": "somebody-else"}, place=row.place)
    delete_and_prove(w.cloud, w.ledger, row, now=w.clock.now, sleep=w.clock.sleep)
    assert again.exists(w.clock.now())
    assert w.cloud.things[again.id] == again


@pytest.mark.parametrize("kind", [ErrorKind.DELETE_BLOCKED, ErrorKind.AUTH, ErrorKind.RATE_LIMITED, ErrorKind.UNKNOWN])
def test_a_delete_that_is_refused_is_recorded_and_tried_again_for_ever(tmp_path: Path, kind: ErrorKind) -> None:
    w = world(tmp_path)
    live = w.create()
    w.cloud.plant("delete", *[Fault(CloudError(kind))] * 40)
    assert not request_delete(w.cloud, w.ledger, live.row)
    row = w.ledger.row(live.row.intent_id)
    assert row is not None
    assert kind.value in row.last_error
    with pytest.raises(CleanupError):
        delete_and_prove(w.cloud, w.ledger, row, now=w.clock.now, sleep=w.clock.sleep, timeout_s=10)
    for _ in range(5):
        w.clock.sleep(STUCK_AFTER_S)
        report = w.reap(prove_s=0)
    assert [row.name for row in report.stuck] == [live.row.name]
    assert report.stuck[0].delete_attempts > 5
    w.settle()


def test_a_delete_that_is_accepted_and_ignored_is_sent_again(tmp_path: Path) -> None:
    w = world(tmp_path)
    live = w.create()
    w.cloud.stuck = {live.row.name}
    with pytest.raises(CleanupError, match="still_listed"):
        delete_and_prove(w.cloud, w.ledger, live.row, now=w.clock.now, sleep=w.clock.sleep, timeout_s=60)
    assert w.cloud.calls["delete"] > 2
    assert w.cloud.calls["delete"] < 10, "and not at every poll"
    w.settle()


def test_deleting_what_is_gone_is_silent(tmp_path: Path) -> None:
    w = world(tmp_path)
    row = marked(w)
    w.cloud.plant("delete", Fault(CloudError(ErrorKind.NOT_FOUND)))
    assert request_delete(w.cloud, w.ledger, row)
    row = delete_and_prove(w.cloud, w.ledger, row, now=w.clock.now, sleep=w.clock.sleep)
    assert request_delete(w.cloud, w.ledger, row)
    assert row.state is ResourceState.GONE


def test_what_was_never_sent_is_closed_without_a_call(tmp_path: Path) -> None:
    w = world(tmp_path)
    live = w.create()
    intent = Intent(**{name: getattr(live.row, name) for name in Intent.__dataclass_fields__} | {"intent_id": "next"})
    row = w.ledger.intend(intent)
    calls = sum(w.cloud.calls.values())
    assert request_delete(w.cloud, w.ledger, row)
    assert sum(w.cloud.calls.values()) == calls
    closed = w.ledger.row("next")
    assert closed is not None
    assert closed.state is ResourceState.GONE
    assert closed.cost_usd == 0
    with pytest.raises(LedgerError):
        w.ledger.creating(row)


def test_a_broken_ledger_does_not_keep_a_server_alive(tmp_path: Path) -> None:
    w = world(tmp_path)
    live = w.create()
    for leftover in tmp_path.glob("ledger.sqlite-*"):
        leftover.unlink()
    (tmp_path / "ledger.sqlite").write_bytes(b"this is no database" * 1000)
    with pytest.raises(LedgerError):
        request_delete(w.cloud, w.ledger, live.row)
    assert w.cloud.existing() == []
