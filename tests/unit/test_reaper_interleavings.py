"""Creates, deletes, reapers, faults, lost ledgers and time, in any order: the meter always ends flat."""

from __future__ import annotations

import tempfile
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tasks.clouds.base import ErrorKind, Scope
from tasks.clouds.lifecycle import CreateLimits, LiveServer, request_delete
from tasks.domain.errors import TokensweepError
from tasks.domain.lifecycle import ResourceState
from tasks.ledger import RunState
from tests.lifecycle_world import World
from tests.memory_cloud import LOST, CloudError, Fault

create_faults = st.sampled_from(
    [
        Fault(LOST),
        Fault(LOST, acts=True),
        Fault(KeyboardInterrupt()),
        Fault(KeyboardInterrupt(), acts=True),
        Fault(ValueError("no JSON"), acts=True),
        Fault(CloudError(ErrorKind.CAPACITY)),
        Fault(CloudError(ErrorKind.CAPACITY, may_exist=True), acts=True),
        Fault(CloudError(ErrorKind.QUOTA, scope=Scope.REGION)),
        Fault(CloudError(ErrorKind.RATE_LIMITED)),
        Fault(CloudError(ErrorKind.AUTH, scope=Scope.VENDOR)),
    ]
)
other_faults = st.sampled_from(
    [
        Fault(LOST),
        Fault(LOST, acts=True),
        Fault(CloudError(ErrorKind.NOT_FOUND)),
        Fault(CloudError(ErrorKind.RATE_LIMITED)),
        Fault(CloudError(ErrorKind.DELETE_BLOCKED)),
        Fault(ValueError("no JSON")),
    ]
)
caps = st.sampled_from([Decimal(1), Decimal(100)])


class Interleavings(RuleBasedStateMachine):
    @initialize(
        lag_s=st.sampled_from([0, 45]),
        delete_s=st.sampled_from([0, 20]),
        boot_s=st.sampled_from([0, 20]),
        recognises=st.sampled_from([{}, {"unique_names": True}, {"idempotency_token": True}]),
    )
    def begin(self, lag_s: float, delete_s: float, boot_s: float, recognises: dict[str, bool]) -> None:
        shared_memory = Path("/dev/shm")
        self.folder = tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None)
        options = {"lag_s": lag_s, "delete_s": delete_s, "boot_s": boot_s, **recognises}
        self.world = World(Path(self.folder.name), options=options, limits=CreateLimits(resolve_s=30, throttled_s=60))
        self.live: dict[str, LiveServer] = {}
        self.n_runs = 0

    @rule(faults=st.lists(create_faults, max_size=3), double=st.booleans(), cap_usd=caps)
    def create(self, faults: list[Fault], double: bool, cap_usd: Decimal) -> None:
        self.n_runs += 1
        run = f"run-{self.n_runs}"
        self.world.cloud.plant("create", *faults)
        self.world.cloud.double = double
        self.world.ledger.begin_run(run, sweep_id="sweep", server="small", vendor="memory")
        try:
            self.live[run] = self.world.create(run, cap_usd=cap_usd)
        except (TokensweepError, KeyboardInterrupt):
            if self.n_runs % 2:
                self.world.ledger.end_run(run, RunState.INTERRUPTED)
        finally:
            self.world.cloud.faults.pop("create", None)
            self.world.cloud.double = False
        assert self.world.ledger.spent("sweep").reserved_usd <= cap_usd or cap_usd == 1

    @precondition(lambda self: self.live)
    @rule(data=st.data(), ends=st.booleans())
    def delete(self, data: st.DataObject, ends: bool) -> None:
        run = data.draw(st.sampled_from(sorted(self.live)))
        live = self.live.pop(run)
        request_delete(self.world.cloud, self.world.ledger, live.row)
        if ends and self.world.ledger.server_run(run):
            self.world.ledger.end_run(run, RunState.LANDED)

    @rule(method=st.sampled_from(["get", "list_owned", "delete"]), fault=other_faults)
    def fault(self, method: str, fault: Fault) -> None:
        self.world.cloud.plant(method, fault)

    @rule(place=st.sampled_from(["north-1a", "south-1a"]))
    def lose_sight(self, place: str) -> None:
        self.world.cloud.unreachable = {place}

    @rule()
    def lie(self) -> None:
        self.world.cloud.lies += 1

    @rule(kinds=st.sets(st.sampled_from(["disk", "ip"])))
    def leave_behind(self, kinds: set[str]) -> None:
        self.world.cloud.surviving = kinds

    @precondition(lambda self: self.world.cloud.existing("server"))
    @rule()
    def ignore_a_delete(self) -> None:
        self.world.cloud.stuck = {self.world.cloud.existing("server")[0].name}

    @rule()
    def mend(self) -> None:
        self.world.mend()

    @rule(prove_s=st.sampled_from([0.0, 30.0]), expired_only=st.booleans())
    def reap(self, prove_s: float, expired_only: bool) -> None:
        alive = {live.resource.cloud_id for live in self.live.values()} & {t.id for t in self.world.cloud.existing()}
        began_unix_s = self.world.clock.now()
        self.world.reap(prove_s=prove_s, expired_only=expired_only)
        left = {thing.id for thing in self.world.cloud.existing()}
        if all(live.row.deadline_unix_s > began_unix_s + 60 for live in self.live.values()):
            assert alive <= left, "the server of a living, unexpired run was deleted"

    @rule(seconds=st.sampled_from([1, 20, 70, 700]))
    def wait(self, seconds: float) -> None:
        self.world.clock.sleep(seconds)

    @rule()
    def lose_the_ledger(self) -> None:
        self.world.lose_ledger()
        self.live.clear()
        self.world.reap(prove_s=0)

    @invariant()
    def foreign_resources_are_as_they_were(self) -> None:
        foreign = self.world.foreign
        assert self.world.cloud.things[foreign.id] == foreign

    @invariant()
    def nothing_is_gone_that_exists(self) -> None:
        existing = {thing.id for thing in self.world.cloud.existing()}
        gone = {row.cloud_id for row in self.world.ledger.rows() if row.state is ResourceState.GONE}
        assert not existing & gone

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()
            self.folder.cleanup()


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestInterleavings = pytest.mark.timeout(600)(TestInterleavings)
