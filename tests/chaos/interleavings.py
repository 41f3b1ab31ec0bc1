"""Everything that can happen around one account, in any order: the meter always ends flat.

Controllers create, crash, try again and tear down; reapers pass, crash, and pass two at once; ledgers are lost and
restored; clocks are wrong; the vendor is late, throttles, refuses, shows half, lies once, takes spot servers back; and
somebody else works in the same account.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from decimal import Decimal
from typing import ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tasks.clouds.base import DEADLINE_TAG, ErrorKind, Scope
from tasks.clouds.deletion import request_delete
from tasks.clouds.lifecycle import LiveServer
from tasks.clouds.sending import CreateLimits
from tasks.domain.errors import TokensweepError
from tasks.domain.lifecycle import BudgetError, ResourceState, server_name
from tasks.ledger import RunState
from tests.chaos.stage import ELSEWHERE, SWEEP, USD_PER_HOUR, Stage, dead_controller, ended
from tests.chaos.trap import Death, Trap
from tests.contract.memory_world import MemoryWorld
from tests.memory_cloud import LOST, Clock, CloudError, Fault, MemoryCloud, Thing

LIMITS = CreateLimits(resolve_s=30, throttled_s=60, boot_s=120)
RUNS = ("run-1", "run-2", "run-3")

create_faults = st.sampled_from(
    [
        Fault(LOST),
        Fault(LOST, acts=True),
        Fault(ValueError("no JSON"), acts=True),
        Fault(CloudError(ErrorKind.CAPACITY)),
        Fault(CloudError(ErrorKind.CAPACITY, may_exist=True), acts=True),
        Fault(CloudError(ErrorKind.CAPACITY), acts=True),  # "failed", and there it is
        Fault(CloudError(ErrorKind.QUOTA, scope=Scope.REGION)),
        Fault(CloudError(ErrorKind.RATE_LIMITED)),
        Fault(CloudError(ErrorKind.AUTH, scope=Scope.VENDOR)),
        Fault(KeyboardInterrupt(), acts=True),
    ]
)
other_faults = st.sampled_from(
    [
        Fault(LOST),
        Fault(LOST, acts=True),
        Fault(CloudError(ErrorKind.NOT_FOUND)),
        Fault(CloudError(ErrorKind.RATE_LIMITED)),
        Fault(CloudError(ErrorKind.DELETE_BLOCKED)),
        Fault(CloudError(ErrorKind.AUTH, scope=Scope.VENDOR)),
        Fault(ValueError("no JSON")),
    ]
)
deaths = st.one_of(st.none(), st.none(), st.integers(0, 25))
clocks = st.sampled_from([0.0, 0.0, 0.0, 0.0, 3600.0, -3600.0])
hosts = st.sampled_from(["here", "here", "elsewhere"])


class Interleavings(RuleBasedStateMachine):
    n_examples: ClassVar[int] = 0
    steps: ClassVar[Counter[str]] = Counter()

    @initialize(
        lag_s=st.sampled_from([0, 45]),
        delete_s=st.sampled_from([0, 20]),
        boot_s=st.sampled_from([0, 20]),
        recognises=st.sampled_from([{}, {"unique_names": True}, {"idempotency_token": True}]),
        surviving=st.sampled_from([set(), {"disk"}, {"disk", "ip"}]),
    )
    def begin(
        self, lag_s: float, delete_s: float, boot_s: float, recognises: dict[str, bool], surviving: set[str]
    ) -> None:
        Interleavings.n_examples += 1
        clock = Clock()
        self.cloud = MemoryCloud(
            clock.now, lag_s=lag_s, delete_s=delete_s, boot_s=boot_s, surviving=surviving, **recognises
        )
        self.stage = Stage(MemoryWorld(self.cloud, clock), limits=LIMITS)
        self.live: dict[str, LiveServer] = {}
        self.stripped: set[str] = set()
        self.forgotten = False  # whether the ledger has ever known less than it does now

    def _did(self, what: str) -> None:
        Interleavings.steps[what] += 1

    def _alive(self, ahead_s: float = 0.0) -> set[str]:
        """Servers that a living controller uses, and that no clock in play may call expired."""
        now_unix_s = self.stage.world.now() + max(ahead_s, self.stage.skew_s)
        existing = {thing.id for thing in self.cloud.existing("server")}
        return existing & {x.resource.cloud_id for x in self.live.values() if x.row.deadline_unix_s > now_unix_s + 600}

    def _there(self) -> set[str]:
        return {thing.id for thing in self.cloud.existing(ours=False)}

    # Controllers

    @rule(
        run=st.sampled_from(RUNS),
        faults=st.lists(create_faults, max_size=3),
        double=st.booleans(),
        dies_at=deaths,
        host=hosts,
        ahead_s=clocks,
        cap_usd=st.sampled_from([Decimal("0.5"), Decimal(100)]),
    )
    def create(
        self,
        run: str,
        faults: list[Fault],
        double: bool,
        dies_at: int | None,
        host: str,
        ahead_s: float,
        cap_usd: Decimal,
    ) -> None:
        """A first try, or a second one of a run that has crashed; a run that is alive is not started twice."""
        self._did("create")
        if run in self.live:
            return
        self.stage.ledger.begin_run(run, sweep_id=SWEEP, server="small", vendor="memory")
        self.cloud.plant("create", *faults)
        self.cloud.double = double
        tag = ELSEWHERE if host == "elsewhere" else "" if dies_at is None else dead_controller()
        trap = Trap(dies_at=dies_at)
        committed_usd = self.stage.ledger.spent(SWEEP).committed_usd

        def act() -> None:
            self.live[run] = self.stage.create(run, trap, tag, cap_usd=cap_usd, ahead_s=ahead_s)

        try:
            end = ended(act)
        except KeyboardInterrupt:
            end = None
        self.cloud.faults.pop("create", None)
        self.cloud.double = False
        if trap.dead:
            assert isinstance(end, Death), "its death was swallowed"
            self._did("crash in a create")
        if dies_at is not None:
            self.live.pop(run, None)  # it was named as a dead controller's from the start
        spent = self.stage.ledger.spent(SWEEP)
        if isinstance(end, BudgetError):
            assert spent.committed_usd + 2 * USD_PER_HOUR > cap_usd, "refused although there was money"
        assert spent.committed_usd <= max(cap_usd, committed_usd), "the cap was passed"

    @precondition(lambda self: self.live)
    @rule(data=st.data(), dies_at=deaths)
    def tear_down(self, data: st.DataObject, dies_at: int | None) -> None:
        self._did("tear down")
        run = data.draw(st.sampled_from(sorted(self.live)))
        live = self.live.pop(run)
        trap = Trap(dies_at=dies_at)
        view = self.stage.ledger.seen_by(trap)
        ended(lambda: request_delete(self.stage.cloud_of(trap), view, live.row))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def controller_is_killed(self, data: st.DataObject) -> None:
        """While its server is in use. Nobody can prove it, so the server lives until its deadline."""
        self._did("killed in use")
        self.live.pop(data.draw(st.sampled_from(sorted(self.live))))

    @rule(run=st.sampled_from(RUNS))
    def run_ends(self, run: str) -> None:
        if run in self.live:
            return
        self._did("end of a run")
        ledger = self.stage.ledger
        try:
            ledger.begin_run(run, sweep_id=SWEEP, server="small", vendor="memory")
        except TokensweepError:
            return
        ledger.end_run(run, RunState.INTERRUPTED)

    # Reapers

    @rule(
        prove_s=st.sampled_from([0.0, 30.0]),
        expired_only=st.booleans(),
        force=st.booleans(),
        dies_at=deaths,
        ahead_s=clocks,
    )
    def reap(self, prove_s: float, expired_only: bool, force: bool, dies_at: int | None, ahead_s: float) -> None:
        self._did("reap" if dies_at is None else "crash of a reaper")
        alive = self._alive(ahead_s)
        trap = Trap(dies_at=dies_at)
        end = ended(
            lambda: self.stage.reap(trap=trap, ahead_s=ahead_s, prove_s=prove_s, expired_only=expired_only, force=force)
        )
        assert not trap.dead or isinstance(end, Death), "its death was swallowed"
        assert self.forgotten or alive <= self._there(), "a server in use was deleted"

    @rule()
    def two_reapers(self) -> None:
        self._did("two reapers")
        alive = self._alive()
        self.stage.two_reapers()
        assert self.forgotten or alive <= self._there(), "a server in use was deleted"

    @precondition(lambda self: not self.forgotten)
    @rule(ahead_s=clocks)
    def somebody_creates_while_a_reaper_lists(self, ahead_s: float) -> None:
        """On another host, so that only the ledger can say that the server is in use."""
        self._did("create during a listing")
        n_left, run = 1, "run-meanwhile"

        def create(point: str) -> None:
            nonlocal n_left
            if point == "list_owned before" and n_left:
                n_left = 0
                ended(lambda: self.live.update({run: self.stage.create(run, Trap(), ELSEWHERE)}))

        if run in self.live:
            return
        self.cloud.on_call = create
        self.stage.reap(ahead_s=ahead_s, prove_s=0)
        self.cloud.on_call = lambda point: None
        if run in self.live and run not in self._marked():
            (server,) = [t for t in self.cloud.things.values() if t.id == self.live[run].resource.cloud_id]
            assert server.exists(self.stage.world.now()), "a server was deleted that the ledger tells of"

    def _marked(self) -> set[str]:
        open_rows = self.stage.ledger.open_rows()
        return {row.server_run_id for row in open_rows if row.state is ResourceState.DELETING}

    # Ledgers

    @rule()
    def back_up(self) -> None:
        self.stage.back_up()

    @precondition(lambda self: not self.stripped)
    @rule(restored=st.booleans())
    def forget(self, restored: bool) -> None:
        """The ledger is lost, or an old copy is put in its place. The controllers that live go on."""
        self._did("restored backup" if restored else "lost ledger")
        if restored:
            self.stage.restore()
        else:
            self.stage.lose_ledger()
            self.stage.reap(prove_s=0)
        self.forgotten = True

    # The vendor

    @rule(method=st.sampled_from(["get", "list_owned", "delete"]), fault=other_faults)
    def fail(self, method: str, fault: Fault) -> None:
        self._did(f"{method} fails")
        self.cloud.plant(method, fault)

    @rule(place=st.sampled_from(["north-1a", "south-1a"]))
    def show_a_part(self, place: str) -> None:
        self._did("partial listing")
        self.cloud.unreachable = {place}

    @rule(place=st.sampled_from(["north-1a", "south-1a"]))
    def lose_a_region(self, place: str) -> None:
        """It answers that there is nothing; only its listing says that it fails."""
        self._did("dark region")
        self.cloud.dark = {place}

    @rule()
    def lie(self) -> None:
        self._did("NotFound once")
        self.cloud.lies += 1

    @rule(places=st.sets(st.sampled_from(["north-1a", "north-1b", "south-1a"])))
    def sell_out(self, places: set[str]) -> None:
        self.cloud.stock = dict.fromkeys(places, 0)

    @precondition(lambda self: self.cloud.existing("server"))
    @rule()
    def ignore_deletes(self) -> None:
        self._did("stuck delete")
        self.cloud.stuck = {self.cloud.existing("server")[0].name}

    @precondition(lambda self: self.cloud.existing("server"))
    @rule(data=st.data())
    def take_a_spot_server_back(self, data: st.DataObject) -> None:
        self._did("spot preemption")
        thing = self._one_of_ours(data)
        self.cloud.things[thing.id] = replace(thing, ends_unix_s=self.stage.world.now())

    @rule()
    def mend(self) -> None:
        self._mend()

    def _mend(self) -> None:
        self.cloud.faults.clear()
        self.cloud.unreachable.clear()
        self.cloud.dark.clear()
        self.cloud.stuck.clear()
        self.cloud.stock.clear()
        self.cloud.lies = 0

    @rule(seconds=st.sampled_from([1, 20, 70, 700, 4000]))
    def wait(self, seconds: float) -> None:
        self.stage.world.sleep(seconds)

    # Somebody else in the same account

    @rule(ours=st.sampled_from(["nothing", "name"]))
    def somebody_makes_a_server(self, ours: str) -> None:
        """Perhaps with a name as ours have: a name is nobody's property."""
        self._did("foreign server")
        rows = self.stage.ledger.rows()
        name = rows[-1].name if rows and ours == "name" else server_name("of somebody else")
        self.cloud.add(name, {"owner": "somebody-else"})
        self.stage.foreign = self._foreign()

    @rule(data=st.data())
    def somebody_deletes_their_own(self, data: st.DataObject) -> None:
        foreign = [t for t in self.cloud.existing(ours=False) if (t.kind, t.id) in self.stage.foreign]
        if len(foreign) > 1:
            gone = data.draw(st.sampled_from(foreign))
            self.cloud.things[gone.id] = replace(gone, ends_unix_s=self.stage.world.now())
            self.stage.foreign = self._foreign()

    @precondition(lambda self: self.live and not self.forgotten)
    @rule(data=st.data())
    def somebody_takes_our_tags_off(self, data: st.DataObject) -> None:
        """Off a server whose id the ledger has: that alone must do. Without both, nobody could know it."""
        self._did("tags taken off")
        ids = {live.resource.cloud_id for live in self.live.values()}
        things = [thing for thing in self.cloud.existing("server") if thing.id in ids]
        if things:
            thing = data.draw(st.sampled_from(things))
            self.cloud.things[thing.id] = replace(thing, tags={})
            self.stripped.add(thing.id)

    @precondition(lambda self: self.cloud.existing("server"))
    @rule(data=st.data(), text=st.sampled_from(["", "soon", "1e400", "18000000000000", "-1"]))
    def somebody_spoils_a_deadline(self, data: st.DataObject, text: str) -> None:
        self._did("spoilt deadline")
        thing = self._one_of_ours(data)
        self.cloud.things[thing.id] = replace(thing, tags={**thing.tags, DEADLINE_TAG: text})

    def _one_of_ours(self, data: st.DataObject) -> Thing:
        things = self.cloud.existing("server")
        return things[data.draw(st.integers(0, len(things) - 1))]

    # What is true at any time, and at the end

    def _foreign(self) -> list[tuple[str, str]]:
        return [x for x in self.stage.foreign_now() if x[1] not in self.stripped]

    @invariant()
    def what_is_not_ours_is_as_it_was(self) -> None:
        if hasattr(self, "stage"):
            assert self._foreign() == self.stage.foreign

    @invariant()
    def every_create_was_allowed(self) -> None:
        if hasattr(self, "stage"):
            assert self.stage.violations == []

    @invariant()
    def nothing_is_gone_that_exists(self) -> None:
        if hasattr(self, "stage") and not self.stage.skew_s:
            existing = {thing.id for thing in self.cloud.existing(ours=False)}
            gone = {row.cloud_id for row in self.stage.ledger.rows() if row.state is ResourceState.GONE}
            assert not existing & gone, "a row is GONE and its server exists"

    def teardown(self) -> None:
        if hasattr(self, "stage"):
            self._mend()
            self.stage.settle()
            assert not self.stripped & {thing.id for thing in self.cloud.existing(ours=False)}, "left without tags"


def run_interleavings(n_examples: int, *, seed: int, n_steps: int = 20, shrink: bool = True) -> None:
    """Run so many random ones; raises the shortest failing one that Hypothesis finds. Counts into the class."""
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    budget = settings(
        max_examples=n_examples,
        stateful_step_count=n_steps,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(with_seed(seed)(type("Seeded", (Interleavings,), {})), settings=budget)
