"""The reaper over whole clouds."""

from __future__ import annotations

import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

from tasks.clouds.base import DEADLINE_TAG, INTENT_TAG, OWNER, OWNER_TAG, SWEEP_TAG, ErrorKind
from tasks.clouds.lifecycle import request_delete
from tasks.clouds.tags import LEDGER_TAG
from tasks.domain.lifecycle import ResourceState
from tasks.domain.reaping import Rules
from tasks.ledger import Ledger, RunState
from tasks.reaper import reap
from tests.lifecycle_world import FOREIGN, TTL_S, World
from tests.memory_cloud import LOST, CloudError, Fault, MemoryCloud


def world(tmp_path: Path, **options: Any) -> World:
    return World(tmp_path, options=options)


def ours(w: World, **tags: str) -> dict[str, str]:
    return {OWNER_TAG: OWNER, INTENT_TAG: "x", SWEEP_TAG: "sweep", DEADLINE_TAG: str(int(w.clock.now() + 9000))} | tags


def reasons(report: Any) -> set[str]:
    return {decision.reason for decision in report.decisions}


def test_an_expired_server_goes_and_a_running_one_stays(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.create("short", deadline_unix_s=w.clock.now() + 60)
    kept = w.create("long")
    w.clock.sleep(300)
    report = w.reap()
    assert report.finished
    assert [thing.name for thing in w.cloud.existing("server")] == [kept.row.name]
    assert {"past_deadline", "in_use", "absent_twice"} <= reasons(report)
    assert report.n_deletes_sent == 1
    w.settle()


def test_a_run_that_has_ended_keeps_no_server(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.ledger.begin_run("run", sweep_id="sweep", server="small", vendor="memory")
    w.create("run")
    w.reap()
    assert len(w.cloud.existing("server")) == 1
    w.ledger.end_run("run", RunState.INTERRUPTED)
    w.reap()
    assert w.cloud.existing() == []
    w.settle()


def test_with_the_ledger_lost_tags_alone_end_everything_at_its_deadline(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.create("one")
    w.create("two", deadline_unix_s=w.clock.now() + 60)
    w.lose_ledger()
    w.clock.sleep(1000)
    report = w.reap()
    assert report.finished
    assert len(w.cloud.existing("server")) == 1, "the controller of the other one is alive"
    w.settle()
    assert {row.state for row in w.ledger.rows()} == {ResourceState.GONE}
    assert all(row.cost_usd for row in w.ledger.rows("sweep") if row.server_type == "server")


def test_another_ledgers_servers_are_spared_until_their_deadline_unless_the_account_is_ours_alone(
    tmp_path: Path,
) -> None:
    w = world(tmp_path)
    w.cloud.add("theirs", ours(w, **{LEDGER_TAG: "another"}))
    w.clock.sleep(1000)
    assert w.reap().n_deletes_sent == 0
    assert w.reap(rules=Rules(sole_ledger=True)).n_deletes_sent == 1
    w.settle()


def test_an_old_copy_of_the_ledger_does_not_leave_a_server(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.cloud.add("forgotten", ours(w, **{LEDGER_TAG: w.ledger.ledger_id}))
    assert w.reap().n_deletes_sent == 0, "young: the row may be about to come"
    w.clock.sleep(601)
    assert "unknown_to_ledger" in reasons(w.reap())
    assert w.cloud.existing() == []
    w.settle()


def test_foreign_resources_are_never_touched(tmp_path: Path) -> None:
    w = world(tmp_path)
    live = w.create()
    named_alike = w.cloud.add(live.row.name, FOREIGN)
    almost = w.cloud.add("almost", {OWNER_TAG: "tokensweep2", INTENT_TAG: live.row.intent_id})
    w.settle()
    w.reap(rules=Rules(sole_ledger=True), force=True)
    for thing in (named_alike, almost):
        assert w.cloud.things[thing.id] == thing


def test_unreadable_deadlines_end_by_age(tmp_path: Path) -> None:
    w = world(tmp_path)
    for text in ("", "soon", "1e18", "nan"):
        w.cloud.add(f"bad-{text}", ours(w, **{DEADLINE_TAG: text, INTENT_TAG: f"bad-{text}"}))
    w.reap()
    assert len(w.cloud.existing()) == 4
    w.clock.sleep(601)
    w.reap()
    assert w.cloud.existing() == []
    w.settle()


def test_a_partial_listing_concludes_nothing_about_what_it_lacks(tmp_path: Path) -> None:
    w = world(tmp_path, stock={"north-1a": 0, "north-1b": 0})
    live = w.create()
    assert live.resource.place == "south-1a"
    w.clock.sleep(TTL_S + 200)
    w.cloud.unreachable = {"south-1a"}
    w.cloud.plant("delete", *[Fault(CloudError(ErrorKind.UNKNOWN))] * 50)
    w.cloud.plant("get", *[Fault(CloudError(ErrorKind.UNKNOWN))] * 50)
    for _ in range(5):
        report = w.reap(prove_s=30)
        assert not report.finished
        assert report.gone == []
    assert not w.leaks().clean, "what could not be listed is not proven"
    assert w.cloud.existing("server")
    w.settle()


def test_what_a_partial_listing_does_show_is_still_ended(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.create()
    w.clock.sleep(TTL_S + 200)
    w.cloud.unreachable = {"south-1a"}
    w.reap(prove_s=0)
    assert w.cloud.existing() == []
    w.settle()


def test_one_broken_vendor_does_not_keep_the_reaper_from_the_others(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.create()
    w.clock.sleep(TTL_S + 200)
    broken = MemoryCloud(w.clock.now, vendor="broken")
    broken.plant("list_owned", *[Fault(RuntimeError("no JSON"))] * 50)
    report = reap([broken, w.cloud], w.ledger, w.clock.now, w.clock.sleep)
    assert w.cloud.existing() == []
    assert [listed.complete for listed in report.listed] == [False, True]
    assert "no JSON" in report.listed[0].problems[0]
    assert not report.finished
    assert w.ledger.last_beat("broken") is None
    assert w.ledger.last_beat("memory") is not None


def test_visible_only_after_a_minute_and_reaped_meanwhile(tmp_path: Path) -> None:
    w = world(tmp_path, lag_s=60)
    live = w.create()
    for _ in range(8):
        assert w.reap(prove_s=0).gone == []
        w.clock.sleep(15)
    row = w.ledger.row(live.row.intent_id)
    assert row is not None
    assert row.state is ResourceState.LIVE
    w.settle()


def test_cancelled_while_invisible_is_deleted_when_it_appears(tmp_path: Path) -> None:
    w = world(tmp_path, lag_s=60)
    live = w.create()
    w.cloud.plant("delete", Fault(CloudError(ErrorKind.NOT_FOUND)))
    request_delete(w.cloud, w.ledger, live.row)
    assert w.cloud.existing(), "the vendor denied it, and it is there"
    w.reap(prove_s=300)
    assert w.cloud.existing() == []
    assert w.leaks().clean
    w.settle()


def test_credentials_of_another_account_conclude_nothing_and_delete_nothing(tmp_path: Path) -> None:
    """Their listing is complete, and the vendor answers them that there is no such server: it lives all the same."""
    w = world(tmp_path)
    w.cloud.account_id = "mine"
    w.reap()
    live = w.create(deadline_unix_s=w.clock.now() + 60)
    marked = w.create("marked")
    w.ledger.deleting(marked.row)
    w.clock.sleep(301)
    mine, yours = w.cloud, MemoryCloud(w.clock.now, account_id="yours")
    w.cloud = yours
    for _ in range(3):
        report = w.reap()
        w.clock.sleep(120)
    assert (report.n_deletes_sent, report.gone, yours.calls["delete"]) == (0, [], 0)
    assert {row.name for row in report.elsewhere} == {live.row.name, marked.row.name}
    assert not report.finished
    assert any("belongs to the account mine" in alert for alert in report.alerts())
    told = w.leaks()
    assert not told.clean
    assert {leak.reason for leak in told.unproven} == {"of_another_account"}

    w.cloud = mine
    assert len(mine.existing("server")) == 2
    assert w.reap().finished
    w.settle()


def test_a_retry_with_other_credentials_does_not_take_a_refused_delete_for_the_end(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.cloud.account_id = "mine"
    w.reap()
    left = w.create()
    mine, w.cloud = w.cloud, MemoryCloud(w.clock.now, account_id="yours")
    w.reap()
    again = w.create()
    row = w.ledger.row(left.row.intent_id)
    assert row is not None
    assert (row.state, row.last_delete_unix_s) == (ResourceState.DELETING, None)
    assert row.last_error == "It is in the account mine; these credentials are of yours."
    request_delete(w.cloud, w.ledger, again.row)
    w.cloud = mine
    w.reap()
    assert mine.existing() == []


def test_an_account_that_cannot_be_told_proves_nothing_and_keeps_no_delete_back(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.cloud.account_id = "mine"
    w.reap()
    live = w.create()

    def refuse() -> str:
        raise CloudError(ErrorKind.AUTH)

    w.cloud.account = refuse  # type: ignore[method-assign]
    assert not w.reap().listed[0].complete
    assert request_delete(w.cloud, w.ledger, live.row)
    assert w.cloud.existing() == []
    del w.cloud.account
    w.settle()


def test_the_brake_holds_what_one_wrong_ledger_would_take_down(tmp_path: Path) -> None:
    w = world(tmp_path)
    for n in range(8):
        w.cloud.add(f"s{n}", ours(w, **{INTENT_TAG: f"i{n}"}))
    w.clock.sleep(700)
    report = w.reap()
    assert len(report.braked) == 8
    assert not report.finished
    assert len(w.cloud.existing()) == 8
    assert not w.leaks().clean
    w.reap(force=True)
    assert w.cloud.existing() == []
    w.settle()


def test_the_brake_does_not_hold_what_is_past_its_deadline(tmp_path: Path) -> None:
    w = world(tmp_path)
    for n in range(8):
        w.cloud.add(f"s{n}", ours(w, **{INTENT_TAG: f"i{n}", DEADLINE_TAG: str(int(w.clock.now() + 10))}))
    w.clock.sleep(700)
    assert w.reap().finished
    assert w.cloud.existing() == []


def test_expired_only(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.ledger.begin_run("ended", sweep_id="sweep", server="small", vendor="memory")
    kept = w.create("ended")
    w.ledger.end_run("ended", RunState.LANDED)
    w.create("short", deadline_unix_s=w.clock.now() + 60)
    w.clock.sleep(300)
    w.reap(expired_only=True)
    assert [thing.name for thing in w.cloud.existing("server")] == [kept.row.name]
    w.reap()
    assert w.cloud.existing() == []


def test_only_one_sweeps_servers(tmp_path: Path) -> None:
    w = world(tmp_path)
    beat = w.ledger.last_beat("memory")
    w.create("one", deadline_unix_s=w.clock.now() + 60)
    other = w.create("two", deadline_unix_s=w.clock.now() + 60, sweep_id="other")
    w.clock.sleep(300)
    w.reap(sweep_id="sweep")
    assert [thing.name for thing in w.cloud.existing("server")] == [other.row.name]
    assert w.ledger.last_beat("memory") == beat, "half a pass is no heartbeat"
    w.settle()


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.create(deadline_unix_s=w.clock.now() + 60)
    w.clock.sleep(300)
    before = (w.ledger.rows(), w.ledger.last_beat("memory"), dict(w.cloud.things))
    report = w.reap(dry_run=True)
    assert "past_deadline" in reasons(report)
    assert (w.ledger.rows(), w.ledger.last_beat("memory"), dict(w.cloud.things)) == before


def test_an_unwritable_ledger_does_not_keep_the_reaper_from_deleting(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.create()
    w.clock.sleep(TTL_S + 200)

    read_only = Ledger(f"sqlite:///file:{tmp_path}/ledger.sqlite?mode=ro&uri=true", now=w.clock.now)
    report = reap([w.cloud], read_only, w.clock.now, w.clock.sleep)
    assert w.cloud.existing() == []
    assert "readonly" in report.errors[0]
    assert not report.finished
    w.settle()


def test_a_reaper_on_another_host_waits_longer_between_two_absences(tmp_path: Path) -> None:
    w = world(tmp_path)
    live = w.create()
    request_delete(w.cloud, w.ledger, live.row)

    class Elsewhere(Ledger):
        @property
        def clock(self) -> str:
            return "elsewhere/1"

    w.reap(prove_s=0)
    elsewhere = Elsewhere(str(w.ledger.url), now=w.clock.now)
    w.clock.sleep(10)
    report = reap([w.cloud], elsewhere, w.clock.now, w.clock.sleep, prove_s=0)
    assert report.gone == []
    w.clock.sleep(Rules().skew_s)
    assert len(reap([w.cloud], elsewhere, w.clock.now, w.clock.sleep, prove_s=0).gone) == 1


def test_two_reapers_at_once(tmp_path: Path) -> None:
    w = world(tmp_path, delete_s=1)
    for n in range(6):
        w.create(f"run-{n}")
    w.cloud.add("unknown", ours(w))
    w.pass_deadlines()
    failures: list[BaseException] = []

    def one() -> None:
        try:
            ledger = Ledger(str(w.ledger.url), now=w.clock.now)
            reap([w.cloud], ledger, w.clock.now, w.clock.sleep, prove_s=200)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    w.settle()
    assert len(w.ledger.rows()) == 7


def test_leaks_tells_what_where_how_old_and_how_dear(tmp_path: Path) -> None:
    w = world(tmp_path)
    assert w.leaks().clean
    w.create("kept")
    left = w.create("left", deadline_unix_s=w.clock.now() + 60)
    w.clock.sleep(600)
    report = w.leaks()
    assert not report.clean
    (server,) = [leak for leak in report.items if leak.kind == "server"]
    assert (server.name, server.place, server.reason) == (left.row.name, "north-1a", "past_deadline")
    assert server.age_s is not None
    assert server.age_s >= 600
    assert report.usd_per_hour == Decimal("0.36")
    assert {leak.kind for leak in report.items} == {"server", "disk", "ip"}
    assert [decision.reason for decision in report.in_use] == ["in_use"]
    (listed,) = report.listed
    assert (listed.vendor, listed.places, listed.complete) == ("memory", w.cloud.places, True)
    assert listed.listed_unix_s == w.clock.now()
    w.reap()
    assert w.leaks().clean


def test_leaks_is_not_clean_before_the_proof(tmp_path: Path) -> None:
    w = world(tmp_path)
    live = w.create()
    request_delete(w.cloud, w.ledger, live.row)
    report = w.leaks()
    assert (report.items, report.clean) == ((), False)
    assert [leak.name for leak in report.unproven] == [live.row.name]
    w.reap()
    assert w.leaks().clean


def test_the_verdict_says_what_is_left_at_what_price_and_what_is_not_proven(tmp_path: Path) -> None:
    w = world(tmp_path, lag_s=30)
    assert w.leaks().verdict == "Nothing is left behind"
    w.create("one", deadline_unix_s=w.clock.now() + 60)
    two = w.create("two")
    w.clock.sleep(300)
    w.cloud.unreachable = {"south-1a"}
    request_delete(w.cloud, w.ledger, two.row)
    w.clock.sleep(60)
    assert w.leaks().verdict == (
        "3 resources are left behind, at 0.3600 USD/h; 1 deletion is not proven yet; "
        "of memory nothing is proven, because it could not be listed whole"
    )
    w.settle()
    assert w.leaks().verdict == "Nothing is left behind"


def test_a_lost_create_is_watched_and_not_a_leak(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.cloud.plant("create", Fault(LOST))
    try:
        w.create()
    except Exception as exc:
        assert "not answered" in str(exc)
    report = w.reap()
    assert [row.state for row in report.watched] == [ResourceState.DELETING]
    assert report.finished
    assert w.leaks().clean
    assert len(w.leaks().watched) == 1
    w.settle()


def test_every_decision_is_recorded_with_its_evidence(tmp_path: Path) -> None:
    w = world(tmp_path)
    w.create(deadline_unix_s=w.clock.now() + 60)
    w.clock.sleep(300)
    (decision,) = [d for d in w.reap().decisions if d.reason == "past_deadline" and d.evidence.get("kind") == "server"]
    assert decision.evidence["left_s"] == -240.0
    assert decision.subject.startswith("memory/north-1a/tokensweep-")
