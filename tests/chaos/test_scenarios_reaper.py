"""Faults around deleting and reaping: what does not go, what only seems gone, and what is not ours."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.clouds.base import DEADLINE_TAG, INTENT_TAG, OWNER_TAG, ErrorKind, Scope
from tasks.clouds.deletion import STUCK_AFTER_S, request_delete
from tasks.clouds.tags import LEDGER_TAG
from tasks.domain.errors import TokensweepError
from tasks.domain.lifecycle import ResourceState
from tasks.domain.reaping import Rules
from tasks.leaks import leaks
from tasks.reaper import ReapReport
from tests.chaos.stage import ELSEWHERE, TTL_S, dead_controller, ended
from tests.chaos.test_scenarios_create import create, staged
from tests.chaos.trap import How, Point, Trap
from tests.memory_cloud import CloudError, Fault

REFUSED = Fault(CloudError(ErrorKind.DELETE_BLOCKED))


def reasons(report: ReapReport) -> set[str]:
    return {decision.reason for decision in report.decisions}


def test_a_delete_that_never_completes_is_sent_for_ever_and_calls_somebody() -> None:
    stage, cloud = staged()
    live = create(stage, deadline_unix_s=stage.world.now() + 60)
    cloud.stuck = {live.row.name}
    for hour in range(48):
        stage.world.sleep(3600)
        report = stage.reap(prove_s=0)
        assert report.n_deletes_sent == 1, f"given up after {hour} hours"
    (row,) = report.stuck
    assert row.delete_attempts == 48 and row.cloud_id == live.resource.cloud_id
    (alert,) = report.alerts()
    for told in ("STUCK", row.name, row.place, "48 deletes", "0.36 USD/h"):
        assert told in alert
    found = leaks([cloud], stage.ledger, stage.world.now)
    assert [leak.stuck for leak in found.items if leak.kind == "server"] == [True] and not found.clean
    cloud.stuck.clear()
    stage.settle()


@pytest.mark.parametrize("kind", [ErrorKind.DELETE_BLOCKED, ErrorKind.AUTH, ErrorKind.RATE_LIMITED, ErrorKind.UNKNOWN])
def test_a_delete_that_is_refused_is_sent_at_every_pass_and_says_why(kind: ErrorKind) -> None:
    """Locked, permission revoked, throttled, or nobody knows."""
    stage, cloud = staged()
    create(stage, deadline_unix_s=stage.world.now() + 60)
    stage.world.sleep(300)
    cloud.plant("delete", *[Fault(CloudError(kind, scope=Scope.VENDOR))] * 40)
    for _ in range(40):
        report = stage.reap(prove_s=0)
        stage.world.sleep(60)
    assert cloud.calls["delete"] == 40
    assert report.stuck and kind.value in report.alerts()[0]
    stage.settle()


def test_a_server_whose_tags_were_taken_off_is_deleted_by_its_id() -> None:
    """No listing of ours shows it any more, and its first delete is refused."""
    stage, cloud = staged()
    live = create(stage)
    thing = cloud.things[live.resource.cloud_id]
    cloud.things[thing.id] = replace(thing, tags={})
    stage.foreign = [x for x in stage.foreign_now() if x[1] != thing.id]
    cloud.plant("delete", *[REFUSED] * 3)
    request_delete(cloud, stage.ledger, live.row)
    for _ in range(5):
        stage.reap(prove_s=0)
        stage.world.sleep(20)
    assert cloud.things[thing.id].ends_unix_s is not None
    stage.settle()


def test_a_delete_that_was_accepted_and_forgotten_is_sent_again_although_no_listing_shows_the_server() -> None:
    stage, cloud = staged()
    live = create(stage)
    thing = cloud.things[live.resource.cloud_id]
    cloud.stuck = {thing.name}
    request_delete(cloud, stage.ledger, live.row)
    cloud.stuck.clear()
    cloud.things[thing.id] = replace(thing, tags={})
    stage.foreign = [x for x in stage.foreign_now() if x[1] != thing.id]
    stage.world.sleep(60)
    stage.reap(prove_s=120)
    assert cloud.things[thing.id].ends_unix_s is not None
    stage.settle()


def test_not_found_for_the_wrong_reason_is_no_proof() -> None:
    """A dark region answers that there is nothing, to `get` and to `delete`; only its listing says that it fails."""
    stage, cloud = staged()
    live = create(stage)
    cloud.dark = {"north-1a"}
    request_delete(cloud, stage.ledger, live.row)
    for _ in range(20):
        report = stage.reap(prove_s=0)
        stage.world.sleep(120)
    (row,) = stage.ledger.rows()
    assert row.state is ResourceState.DELETING and row.stuck
    assert any("INCOMPLETE" in alert for alert in report.alerts())
    assert len(cloud.existing("server")) == 1
    cloud.dark.clear()
    stage.settle()


@pytest.mark.parametrize("interrupted", ["create", "get"], ids=["before its id is known", "after its id is known"])
def test_not_found_once_is_not_believed(interrupted: str) -> None:
    """The listing is behind and so is `get`: both deny a server that exists, until they do not."""
    stage, cloud = staged(lag_s=60, boot_s=5, unique_names=True)
    cloud.plant(interrupted, Fault(KeyboardInterrupt(), acts=True))
    cloud.plant("delete", *[REFUSED] * 3)
    with pytest.raises(KeyboardInterrupt):
        create(stage)
    (row,) = stage.ledger.rows()
    assert bool(row.cloud_id) is (interrupted == "get")
    for _ in range(3):
        stage.reap(prove_s=0)
        (row,) = stage.ledger.rows()
        assert row.state is ResourceState.DELETING, "it exists, and cannot be seen yet"
        stage.world.sleep(19)
    stage.reap(prove_s=300)
    assert cloud.existing() == []
    stage.settle()


def test_a_create_that_was_not_answered_is_watched_until_its_deadline() -> None:
    """However often it is absent: forty minutes later it is there."""
    stage, cloud = staged()
    cloud.plant("create", Fault(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        create(stage)
    for _ in range(20):
        report = stage.reap(prove_s=30)
        assert [row.state for row in report.watched] == [ResourceState.DELETING] and report.gone == []
        stage.world.sleep(120)
    (row,) = stage.ledger.rows()
    tags = {OWNER_TAG: "tokensweep", INTENT_TAG: row.intent_id, DEADLINE_TAG: str(int(row.deadline_unix_s))}
    cloud.add(row.name, tags)
    stage.reap(prove_s=60)
    assert cloud.existing() == []
    stage.settle()


def test_a_row_that_is_marked_for_deletion_while_its_create_is_answered_stays_marked() -> None:
    stage, cloud = staged()

    def mark(point: Point) -> None:
        if point == Point("commit live", 0):
            (row,) = stage.ledger.rows()
            stage.ledger.deleting(row)

    assert isinstance(ended(lambda: stage.create("run", Trap(watch=mark))), TokensweepError)
    assert [row.state for row in stage.ledger.rows()] == [ResourceState.DELETING]
    assert cloud.existing() == []
    stage.settle()


def test_a_refusal_does_not_close_the_row_of_a_server_that_a_reaper_has_seen() -> None:
    """The first answer is lost, the reaper finds the server, and the second try is refused for want of capacity."""
    stage, cloud = staged(lag_s=10, unique_names=True)
    cloud.plant("create", Fault(CloudError(ErrorKind.CAPACITY), acts=True))

    def adopt(point: Point) -> None:
        if point == Point("commit gone", 0):
            (row, *_) = stage.ledger.rows()
            stage.ledger.identify(row, cloud.existing("server")[0].id)

    live = stage.create("run", Trap(watch=adopt))
    first, second = stage.ledger.rows()
    assert (first.state, second.state) == (ResourceState.DELETING, ResourceState.LIVE)
    assert [t.id for t in cloud.existing("server")] == [live.resource.cloud_id]
    stage.settle()


def test_a_name_that_was_given_again_between_the_listing_and_the_delete_is_spared() -> None:
    """Names are no identity: somebody else's server has had the name of ours since just now."""
    stage, cloud = staged()
    live = create(stage, deadline_unix_s=stage.world.now() + 60)
    stage.world.sleep(300)
    theirs = []

    def swap(point: str) -> None:
        if point == "list_owned after" and not theirs:
            cloud.things[live.resource.cloud_id] = replace(
                cloud.things[live.resource.cloud_id], ends_unix_s=stage.world.now()
            )
            theirs.append(cloud.add(live.row.name, {"owner": "somebody-else"}))

    cloud.on_call = swap
    stage.reap(prove_s=60)
    assert cloud.things[theirs[0].id] == theirs[0]
    stage.foreign = stage.foreign_now()
    stage.settle()


def test_a_server_with_our_name_that_is_not_ours_is_neither_adopted_nor_deleted() -> None:
    """Its name is that of a create of ours whose answer was lost, and which has made nothing."""
    stage, cloud = staged()
    cloud.plant("create", Fault(KeyboardInterrupt()))
    names = []

    def watch(point: Point) -> None:
        if point.what == "create":
            names.append(stage.ledger.rows()[0].name)
            cloud.add(names[0], {"owner": "somebody-else"})

    with pytest.raises(KeyboardInterrupt):
        stage.create("run", Trap(watch=watch))
    theirs = [thing for thing in cloud.existing(ours=False) if thing.name == names[0]]
    stage.foreign = stage.foreign_now()
    for _ in range(3):
        stage.reap(prove_s=60)
    (row,) = stage.ledger.rows()
    assert row.cloud_id == "" and [cloud.things[t.id] for t in theirs] == theirs
    stage.settle()


def test_something_that_is_in_use_elsewhere_may_take_its_time_to_be_free() -> None:
    """An interface that the vendor reserves for three minutes after its server has failed."""
    stage, cloud = staged()
    live = create(stage)
    tags = cloud.things[live.resource.cloud_id].tags
    cloud.add("nic", {**tags, INTENT_TAG: "of-a-failed-create", DEADLINE_TAG: "1"}, kind="nic")
    cloud.plant("delete", *[REFUSED] * 4)
    for _ in range(4):
        stage.reap(prove_s=0)
        stage.world.sleep(45)
    assert [t.kind for t in cloud.existing() if t.kind == "nic"] == ["nic"]
    stage.reap(prove_s=30)
    assert [t.kind for t in cloud.existing() if t.kind == "nic"] == []
    stage.settle()


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_a_reaper_whose_clock_is_an_hour_wrong(ahead_s: float) -> None:
    """It may come early or late by that hour, and leaves nothing and takes nothing else."""
    stage, cloud = staged()
    live = create(stage, deadline_unix_s=stage.world.now() + 3 * 3600)
    stage.create("other", Trap(), ELSEWHERE, deadline_unix_s=stage.world.now() + 3 * 3600)
    stage.reap(ahead_s=ahead_s, prove_s=0)
    assert len(cloud.existing("server")) == 2
    stage.world.sleep(3 * 3600 + 3600 + 130)
    stage.reap(ahead_s=ahead_s, prove_s=60)
    assert cloud.existing() == []
    assert stage.ledger.row(live.row.intent_id) is not None
    stage.settle()


def test_a_clock_that_is_behind_is_said() -> None:
    stage, _ = staged()
    create(stage)
    report = stage.reap(ahead_s=-3600.0, prove_s=0)
    assert any("3600 s behind" in alert for alert in report.alerts())
    assert not any("behind" in alert for alert in stage.reap(prove_s=0).alerts())
    stage.settle()


def test_a_suspended_controller_finds_its_server_deleted_and_makes_no_other() -> None:
    """A laptop sleeps for two hours in the middle of a create."""
    stage, cloud = staged(boot_s=30)

    def suspend(point: Point) -> None:
        if point.what == "get":
            stage.world.sleep(TTL_S + 600)
            stage.reap(prove_s=60)

    end = ended(lambda: stage.create("run", Trap(watch=suspend)))
    assert end is not None
    assert cloud.existing() == [] and cloud.calls["create"] == 1
    stage.settle()


def test_a_server_that_is_created_while_a_reaper_lists_is_known_to_it() -> None:
    """The listing comes before the ledger. The reaper's clock is an hour ahead, so that the server looks old, and its
    controller is on another host: only the ledger says that it is in use."""
    stage, cloud = staged()
    made = []

    def meanwhile(point: str) -> None:
        if point == "list_owned before" and not made:
            made.append(None)
            made.append(stage.create("run", Trap(), ELSEWHERE, deadline_unix_s=stage.world.now() + 3 * 3600))

    cloud.on_call = meanwhile
    report = stage.reap(ahead_s=3600.0, prove_s=0)
    assert report.n_deletes_sent == 0 and reasons(report) == {"in_use"}
    assert len(cloud.existing("server")) == 1
    stage.world.sleep(2 * 3600)
    stage.settle()


def test_a_storm_of_rate_limits_during_a_mass_teardown_ends_and_leaves_nothing() -> None:
    """Sixty servers, an API that takes a third of the calls, and creates that want it too."""
    stage, cloud = staged()
    for n in range(60):
        create(stage, f"run-{n}", deadline_unix_s=stage.world.now() + 60)
    stage.world.sleep(300)
    storm = [Fault(CloudError(ErrorKind.RATE_LIMITED)), Fault(CloudError(ErrorKind.RATE_LIMITED)), None]
    cloud.plant("delete", *[fault for _ in range(90) for fault in storm if fault is not None])
    began_unix_s = stage.world.now()
    report = stage.reap(prove_s=600)
    assert cloud.existing() == [] and len(report.gone) == 60 and report.finished
    assert stage.world.now() - began_unix_s < 600
    stage.settle()


def test_deletes_do_not_wait_behind_creates() -> None:
    """While a create waits out its rate limit, a teardown sends its deletes at once."""
    stage, cloud = staged()
    live = create(stage)
    order: list[str] = []

    def tear_down_meanwhile(point: Point) -> None:
        order.append(point.what)
        if point == Point("create", 1):
            request_delete(cloud, stage.ledger, live.row)
            order.append("deleted")

    cloud.plant("create", *[Fault(CloudError(ErrorKind.RATE_LIMITED))] * 3)
    stage.create("other", Trap(watch=tear_down_meanwhile))
    assert order.index("deleted") < len(order) - 1 - order[::-1].index("create")
    assert cloud.things[live.resource.cloud_id].ends_unix_s is not None
    stage.settle()


def test_a_spot_server_that_is_taken_back_leaves_no_disk() -> None:
    stage, cloud = staged(surviving={"disk"}, boot_s=0)
    live = create(stage)
    thing = cloud.things[live.resource.cloud_id]
    cloud.things[thing.id] = replace(thing, ends_unix_s=stage.world.now())
    stage.reap(prove_s=0)
    assert cloud.existing("disk"), "its run has not ended yet"
    request_delete(cloud, stage.ledger, live.row)
    stage.reap(prove_s=60)
    assert cloud.existing() == []
    (row,) = stage.ledger.rows()
    assert row.state is ResourceState.GONE
    stage.settle()


def test_a_server_that_the_guest_has_switched_off_still_bills_and_is_ended() -> None:
    """Stopped is not gone: its timer has powered it off, and the vendor bills on."""
    stage, cloud = staged(dies_after_s=1800)
    create(stage)
    stage.world.sleep(TTL_S + 200)
    assert cloud.existing("server"), "powered off, and there"
    assert cloud.list_owned().resources[0].state == "stopped"
    stage.reap(prove_s=60)
    assert cloud.existing() == []
    stage.settle()


def test_a_guest_that_hangs_is_ended_from_outside() -> None:
    """No timer in the guest fires, its controller is on a host that nobody can see, and its ledger is lost."""
    stage, cloud = staged()
    stage.create("run", Trap(), ELSEWHERE)
    stage.lose_ledger()
    stage.world.sleep(TTL_S - 100)
    stage.reap(prove_s=0)
    assert cloud.existing("server"), "its deadline has not passed"
    stage.world.sleep(300)
    stage.reap(prove_s=60)
    assert cloud.existing() == []
    stage.settle()


def test_with_ledger_and_deadline_lost_age_ends_it() -> None:
    stage, cloud = staged()
    live = stage.create("run", Trap(), ELSEWHERE)
    thing = cloud.things[live.resource.cloud_id]
    for spoilt in (thing, *[t for t in cloud.existing() if t.parent == thing.id]):
        cloud.things[spoilt.id] = replace(spoilt, tags={**spoilt.tags, DEADLINE_TAG: "next tuesday"})
    stage.lose_ledger()
    stage.world.sleep(700)
    assert "unreadable_deadline" in reasons(stage.reap(prove_s=60))
    assert cloud.existing() == []
    stage.settle()


def test_a_wrong_ledger_does_not_take_a_running_sweep_down_and_its_deadlines_still_hold() -> None:
    stage, cloud = staged()
    for n in range(9):
        stage.create(f"run-{n}", Trap(), ELSEWHERE)
    stage.lose_ledger()
    for thing in cloud.existing():
        cloud.things[thing.id] = replace(thing, tags={**thing.tags, LEDGER_TAG: stage.ledger.ledger_id})
    stage.world.sleep(700)
    report = stage.reap(prove_s=0)
    assert len(cloud.existing("server")) == 9 and report.n_deletes_sent == 0
    assert len([alert for alert in report.alerts() if "BRAKED" in alert]) >= 9
    stage.world.sleep(TTL_S)
    stage.reap(prove_s=60)
    assert cloud.existing() == []
    stage.settle()


def test_many_deadlines_that_cannot_be_read_end_by_age_in_spite_of_the_brake() -> None:
    stage, cloud = staged()
    live = create(stage)
    tags = cloud.things[live.resource.cloud_id].tags
    for n in range(12):
        cloud.add(f"spoilt-{n}", {**tags, INTENT_TAG: f"spoilt-{n}", DEADLINE_TAG: "?"})
    stage.world.sleep(700)
    assert stage.reap(prove_s=0).braked, "so many at once is a matter for a person"
    stage.world.sleep(Rules().max_ttl_s)
    stage.reap(prove_s=60)
    assert cloud.existing() == []
    stage.settle()


def test_a_ledger_that_cannot_be_written_does_not_keep_the_reaper_from_deleting() -> None:
    stage, cloud = staged()
    create(stage, deadline_unix_s=stage.world.now() + 60)
    stage.world.sleep(300)
    writes = ("deleting", "delete_sent", "found", "absent", "beat", "gone", "identify", "present", "stuck")
    full = {Point(f"commit {what}", n): How.REFUSED for what in writes for n in range(50)}
    report = stage.reap(trap=Trap(full), prove_s=0)
    assert cloud.existing() == []
    assert any("disk is full" in alert for alert in report.alerts()) and not report.finished
    stage.settle()


def test_a_region_that_is_new_is_swept_as_soon_as_the_vendor_names_it() -> None:
    """Places are asked of the vendor at every pass, not of a list of ours."""
    stage, cloud = staged()
    live = create(stage)
    tags = cloud.things[live.resource.cloud_id].tags
    cloud.places += ("moon-1a",)
    cloud.add("far-away", {**tags, INTENT_TAG: "lost", DEADLINE_TAG: "1"}, place="moon-1a")
    cloud.add("of-a-new-kind", {**tags, INTENT_TAG: "lost too", DEADLINE_TAG: "1"}, kind="quantum-disk")
    report = stage.reap(prove_s=60)
    assert "moon-1a" in report.listed[0].places
    assert {t.id for t in cloud.existing("server")} == {live.resource.cloud_id}
    assert cloud.existing("quantum-disk") == [], "what is ours is known by its tags, whatever it is"
    stage.settle()


def test_almost_our_tags_are_not_our_tags() -> None:
    stage, cloud = staged()
    live = create(stage)
    tags = cloud.things[live.resource.cloud_id].tags
    almost: list[dict[str, str]] = [
        {**tags, OWNER_TAG: "tokensweep2"},
        {key: value for key, value in tags.items() if key != OWNER_TAG},
    ]
    for n, changed in enumerate(almost):
        cloud.add(f"almost-{n}", {**changed, DEADLINE_TAG: "1"})
    stage.foreign = stage.foreign_now()
    stage.settle()


def test_reapers_that_crash_at_every_point_still_leave_nothing() -> None:
    """One after the other, each dying one call later than the one before."""
    stage, cloud = staged(lag_s=30, delete_s=10, surviving={"disk"})
    stage.create("run", Trap(), dead_controller())
    for n in range(40):
        trap = Trap(dies_at=n)
        ended(lambda trap=trap: stage.reap(trap=trap, prove_s=0))
        stage.world.sleep(5)
    assert cloud.existing() == []
    stage.settle()


def test_a_deletion_that_is_watched_by_nobody_is_not_called_stuck() -> None:
    """A reaper that comes late finds it gone: that is no matter for a person."""
    stage, cloud = staged()
    live = create(stage)
    request_delete(cloud, stage.ledger, live.row)
    stage.world.sleep(10 * STUCK_AFTER_S)
    report = stage.reap(prove_s=60)
    assert report.stuck == [] and report.alerts() == []
    stage.settle()


def test_the_leak_report_and_the_reaper_say_the_same() -> None:
    stage, cloud = staged()
    create(stage, deadline_unix_s=stage.world.now() + 60)
    create(stage, "other")
    stage.world.sleep(300)
    report = leaks([cloud], stage.ledger, stage.world.now)
    dry = stage.reap(dry_run=True, prove_s=0)
    doomed = {d.evidence["cloud_id"] for d in dry.decisions if d.action == "delete"}
    assert {leak.cloud_id for leak in report.items} == doomed
    (server,) = [leak for leak in report.items if leak.kind == "server"]
    assert server.age_s == 300 and str(server.usd_per_hour) == "0.36"
    stage.settle()
