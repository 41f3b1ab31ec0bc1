"""Faults of creates: what exists although nobody was told, and what must not be tried before that is known."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import format_datetime
from typing import Any

import pytest

from tasks.clouds.base import INTENT_TAG, ErrorKind, Scope
from tasks.clouds.sending import retry_after_s
from tasks.domain.errors import AuthError, CapacityError, ConfigError, QuotaError, RateLimitedError
from tasks.domain.lifecycle import BudgetError, LedgerError, ResourceState
from tasks.ledger import RunState
from tests.chaos.stage import ELSEWHERE, SWEEP, USD_PER_HOUR, Stage, dead_controller, ended
from tests.chaos.trap import Death, How, Point, Trap
from tests.contract.memory_world import MemoryWorld
from tests.memory_cloud import LOST, Clock, CloudError, Fault, MemoryCloud


def staged(**options: Any) -> tuple[Stage, MemoryCloud]:
    clock = Clock()
    cloud = MemoryCloud(clock.now, **options)
    return Stage(MemoryWorld(cloud, clock)), cloud


def create(stage: Stage, run: str = "run", **changes: Any) -> Any:
    return stage.create(run, Trap(), **changes)


def test_a_create_that_was_refused_and_made_a_server_all_the_same_ends_it() -> None:
    """It said that it had no capacity; five minutes later the server is there."""
    stage, cloud = staged(lag_s=300)
    cloud.plant("create", Fault(CloudError(ErrorKind.CAPACITY), acts=True))
    live = create(stage)
    assert live.resource.place == "north-1b" and len(cloud.existing("server")) == 2
    stage.world.sleep(300)
    report = stage.reap(prove_s=700)
    assert [t.id for t in cloud.existing("server")] == [live.resource.cloud_id], "the other one is in use"
    assert "seen_after_gone" in {decision.reason for decision in report.decisions}
    stage.settle()


@pytest.mark.parametrize("options", [{"unique_names": True}, {"idempotency_token": True}, {}])
def test_nothing_is_tried_elsewhere_while_a_server_may_exist(options: dict[str, bool]) -> None:
    stage, cloud = staged(lag_s=45, **options)
    cloud.plant("create", Fault(LOST, acts=True))
    live = create(stage)
    assert [row.place for row in stage.ledger.rows()] == ["north-1a"]
    assert [t.id for t in cloud.existing("server")] == [live.resource.cloud_id]
    stage.settle()


def test_a_place_that_never_answers_stops_the_run_and_is_watched_until_its_deadline() -> None:
    stage, cloud = staged(lag_s=300)
    cloud.plant("create", Fault(LOST, acts=True))
    cloud.plant("list_owned", *[Fault(LOST)] * 300)
    cloud.plant("get", *[Fault(LOST)] * 300)
    assert ended(lambda: create(stage)) is not None
    assert [row.place for row in stage.ledger.rows()] == ["north-1a"], "no other place was tried"
    assert [row.state for row in stage.ledger.rows()] == [ResourceState.DELETING]
    cloud.faults.clear()
    stage.settle()


def test_an_address_without_its_server_is_ended_too() -> None:
    """The create made the address and the disk, and failed before the server."""
    stage, cloud = staged()
    cloud.plant("create", Fault(CloudError(ErrorKind.UNKNOWN, may_exist=True)))
    ended(lambda: create(stage))
    (row,) = stage.ledger.rows()
    live = create(stage, "other")
    cloud.add(row.name, {**cloud.things[live.resource.cloud_id].tags, INTENT_TAG: row.intent_id}, kind="ip")
    stage.reap(prove_s=0)
    assert [t.kind for t in cloud.existing() if t.tags[INTENT_TAG] == row.intent_id] == []
    stage.settle()


@pytest.mark.parametrize("state", ["stopped", "terminated"])
def test_a_server_that_was_accepted_and_failed_is_ended_before_the_next_place(state: str) -> None:
    stage, cloud = staged(boot_s=30, dies_after_s=5)
    assert isinstance(ended(lambda: create(stage)), CapacityError)
    assert cloud.existing() == []
    assert [row.state for row in stage.ledger.rows()] == [ResourceState.DELETING] * 3
    assert stage.violations == []
    stage.settle()


def test_a_token_that_answers_with_a_dead_server_is_not_used_again() -> None:
    """A vendor that remembers tokens gives back the server that is terminated: the next try has a token of its own."""
    stage, cloud = staged(idempotency_token=True)
    first = create(stage)
    thing = cloud.things[first.resource.cloud_id]
    cloud.delete(first.resource.ref())
    stage.world.sleep(5)
    again = create(stage)
    assert again.resource.cloud_id != thing.id and again.row.token != first.row.token
    assert again.resource.state == "running"
    stage.settle()


def test_a_quota_of_the_account_stops_all_places_and_one_of_the_region_only_those() -> None:
    stage, cloud = staged()
    cloud.plant("create", Fault(CloudError(ErrorKind.QUOTA, scope=Scope.VENDOR)))
    assert isinstance(ended(lambda: create(stage)), QuotaError)
    assert cloud.calls["create"] == 1
    cloud.plant("create", Fault(CloudError(ErrorKind.QUOTA, scope=Scope.REGION)))
    assert create(stage, "other").resource.place == "south-1a"
    stage.settle()


def test_a_suspended_account_creates_nothing_and_what_is_there_is_still_ended() -> None:
    """Credits are exhausted: storage still bills, and deletes are still taken."""
    stage, cloud = staged(surviving={"disk"})
    create(stage, deadline_unix_s=stage.world.now() + 60)
    cloud.plant("create", Fault(CloudError(ErrorKind.QUOTA, scope=Scope.VENDOR)))
    assert isinstance(ended(lambda: create(stage, "other")), QuotaError)
    stage.world.sleep(300)
    stage.reap(prove_s=60)
    assert cloud.existing() == []
    stage.settle()


def test_credentials_that_end_before_the_deadline_create_nothing() -> None:
    @dataclass
    class Ending(MemoryCloud):
        end_unix_s: float | None = None

        def credentials_end_unix_s(self) -> float | None:
            return self.end_unix_s

    clock = Clock()
    cloud = Ending(clock.now)
    stage = Stage(MemoryWorld(cloud, clock))
    cloud.end_unix_s = clock.now() + 3600 + stage.limits.overrun_s - 1
    end = ended(lambda: _create_directly(stage))
    assert isinstance(end, ConfigError) and end.reason == "credentials_end_too_soon"
    assert cloud.calls["create"] == 0 and stage.ledger.rows() == ()
    for cloud.end_unix_s in (clock.now() + 3600 + stage.limits.overrun_s, None):
        assert ended(lambda: _create_directly(stage)) is None
    stage.settle()


def _create_directly(stage: Stage) -> None:
    """The module itself, so that what it offers beside the protocol is seen."""
    from tasks.clouds.lifecycle import create_server
    from tests.chaos.stage import make_spec

    request = stage.request(f"run-{len(stage.ledger.rows())}")
    create_server(stage.world.cloud, stage.ledger, make_spec, request, now=stage.world.now, sleep=stage.world.sleep)


def test_credentials_that_end_in_the_middle_leave_the_server_to_a_reaper_with_its_own() -> None:
    stage, cloud = staged(boot_s=60)
    cloud.plant("get", *[Fault(CloudError(ErrorKind.AUTH, scope=Scope.VENDOR))] * 3)
    cloud.plant("delete", *[Fault(CloudError(ErrorKind.AUTH, scope=Scope.VENDOR))] * 3)
    assert isinstance(ended(lambda: create(stage)), AuthError)
    (row,) = stage.ledger.rows()
    assert row.state is ResourceState.DELETING and "auth" in row.last_error
    assert len(cloud.existing("server")) == 1
    cloud.faults.clear()  # rotated
    stage.reap(prove_s=60)
    assert cloud.existing() == []
    stage.settle()


@pytest.mark.parametrize("kind", [ErrorKind.AUTH])
def test_bad_credentials_halt_every_create_at_the_vendor(kind: ErrorKind) -> None:
    stage, cloud = staged()
    cloud.plant("create", Fault(CloudError(kind, scope=Scope.VENDOR)))
    assert isinstance(ended(lambda: create(stage)), AuthError)
    assert cloud.calls["create"] == 1
    stage.settle()


class _AnsweredError(CloudError):
    """Carries the answer's headers as requests, azure-core and google-api-core do."""

    def __init__(self, **headers: str) -> None:
        super().__init__(ErrorKind.RATE_LIMITED)
        self.response = type("Answer", (), {"headers": headers})()


def test_a_rate_limit_is_waited_out_as_long_as_the_vendor_says() -> None:
    stage, cloud = staged()
    cloud.plant("create", Fault(_AnsweredError(**{"Retry-After": "77"})))
    began_unix_s = stage.world.now()
    live = create(stage)
    assert stage.world.now() - began_unix_s >= 77
    assert live.resource.place == "north-1a", "another place would be throttled too, and is not what was asked for"
    stage.settle()


def test_a_rate_limit_without_end_never_goes_elsewhere() -> None:
    stage, cloud = staged()
    cloud.plant("create", *[Fault(CloudError(ErrorKind.RATE_LIMITED))] * 99)
    assert isinstance(ended(lambda: create(stage)), RateLimitedError)
    assert {row.place for row in stage.ledger.rows()} == {"north-1a"}
    stage.settle()


@pytest.mark.parametrize(
    ("exc", "seconds"),
    [
        (_AnsweredError(**{"retry-after": "12"}), 12.0),
        (_AnsweredError(**{"Retry-After": format_datetime(datetime.fromtimestamp(1_800_000_030, UTC))}), 30.0),
        (_AnsweredError(**{"Retry-After": format_datetime(datetime.fromtimestamp(1_700_000_000, UTC))}), 0.0),
        (_AnsweredError(**{"Retry-After": "soon"}), 0.0),
        (_AnsweredError(), 0.0),
        (ValueError("no answer at all"), 0.0),
    ],
)
def test_retry_after_is_read_wherever_the_sdk_keeps_it(exc: Exception, seconds: float) -> None:
    assert retry_after_s(exc, 1_800_000_000.0) == seconds


def test_retry_after_is_read_from_botocore() -> None:
    from botocore.exceptions import ClientError

    answer: Any = {"Error": {"Code": "Throttling"}, "ResponseMetadata": {"HTTPHeaders": {"retry-after": "9"}}}
    assert retry_after_s(ClientError(answer, "RunInstances"), 0.0) == 9.0


def test_a_reaper_that_has_not_passed_lately_closes_the_gate() -> None:
    stage, cloud = staged()
    stage.world.sleep(stage.limits.heartbeat_s + 1)
    end = ended(lambda: create(stage))
    assert isinstance(end, ConfigError) and end.reason == "no_reaper"
    assert cloud.calls["create"] == 0
    stage.reap(prove_s=0)
    create(stage)
    stage.settle()


def test_subflows_that_reserve_at_once_never_pass_the_cap() -> None:
    """Every other controller comes in between the reservation and the create of the first."""
    stage, cloud = staged()
    cap_usd = USD_PER_HOUR * Decimal("3.5")
    refused = []

    def another(point: Point) -> None:
        if point.what == "create" and len(stage.ledger.rows()) < 8:
            end = ended(lambda: stage.create(f"run-{len(stage.ledger.rows())}-{len(refused)}", trap(), cap_usd=cap_usd))
            refused.extend([end] if end else [])
            assert len(refused) < 5

    def trap() -> Trap:
        return Trap(watch=another if len(refused) < 3 else lambda point: None)

    stage.create("run", trap(), cap_usd=cap_usd)
    assert refused and all(isinstance(end, BudgetError) for end in refused)
    assert stage.ledger.spent(SWEEP).reserved_usd <= cap_usd
    assert len(cloud.existing("server")) == 3
    stage.settle()


def test_a_full_disk_under_the_ledger_creates_nothing() -> None:
    stage, cloud = staged()
    for what in ("commit intend", "commit creating"):
        end = ended(lambda what=what: stage.create(f"run {what}", Trap({Point(what, 0): How.REFUSED})))
        assert isinstance(end, LedgerError)
    assert cloud.calls["create"] == 0
    stage.settle()


def test_a_disk_that_fills_up_after_the_create_takes_the_server_along() -> None:
    stage, cloud = staged()
    full = {Point(what, n): How.REFUSED for what in ("commit live", "commit deleting") for n in range(9)}
    assert isinstance(ended(lambda: stage.create("run", Trap(full))), LedgerError)
    assert cloud.existing() == []
    stage.settle()


def test_the_same_server_run_is_not_run_by_two_and_ends_what_a_dead_one_left() -> None:
    """Prefect's retry starts the same flow run again, perhaps while the first still lives."""
    stage, cloud = staged()
    here = stage.ledger.seen_by(None, dead_controller())
    here.begin_run("run", sweep_id=SWEEP, server="small", vendor="memory")
    left = stage.create("run", Trap(), dead_controller())
    elsewhere = stage.ledger.seen_by(None, ELSEWHERE)
    elsewhere.begin_run("taken", sweep_id=SWEEP, server="small", vendor="memory")
    with pytest.raises(LedgerError):
        stage.ledger.begin_run("taken", sweep_id=SWEEP, server="small", vendor="memory")
    stage.server_run("run", Trap())
    assert cloud.things[left.resource.cloud_id].ends_unix_s is not None, "what the first try left has gone"
    run = stage.ledger.server_run("run")
    assert run is not None and run.state is RunState.LANDED
    stage.settle()


def test_a_death_is_not_swallowed() -> None:
    """The harness itself: after its death nothing that the controller would still do gets through."""
    stage, cloud = staged()
    trap = Trap({Point("create", 0): How.DIES_AFTER})
    assert isinstance(ended(lambda: stage.create("run", trap, dead_controller())), Death)
    n_calls = sum(cloud.calls.values())
    with pytest.raises(Death):
        stage.cloud_of(trap).list_owned()
    with pytest.raises(Death):
        stage.ledger.seen_by(trap).open_rows()
    assert sum(cloud.calls.values()) == n_calls
    assert len(cloud.existing("server")) == 1, "its `finally` did nothing"
    stage.settle()
