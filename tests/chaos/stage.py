"""One vendor, one ledger, a controller that things happen to, and the oracle: nothing of ours is left.

The stage watches every create from outside: what must be true before one is sent is checked when it is sent.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import Any, cast

from tasks.clouds.accounts import account_of
from tasks.clouds.base import Cloud, CreateSpec, Listing
from tasks.clouds.deletion import delete_and_prove, request_delete
from tasks.clouds.lifecycle import create_server
from tasks.clouds.request import Draft, LiveServer, ServerRequest
from tasks.clouds.sending import CreateLimits
from tasks.domain.errors import CleanupError, TokensweepError
from tasks.domain.lifecycle import ResourceState
from tasks.domain.reaping import DEFAULT_RULES, SERVER, TERMINATED, Liveness, Rules
from tasks.ledger import RunState, liveness
from tasks.reaper import ReapReport, leaks, reap
from tests.chaos.trap import Death, MortalLedger, Point, Trap, TrappedCloud, sqlite_of, trapped_http
from tests.contract.memory_world import MemoryWorld
from tests.contract.world import VendorWorld
from tests.emulators.base import Existing

TTL_S = 3600.0
CAP_USD = Decimal(100)
USD_PER_HOUR = Decimal("0.36")
SWEEP = "sweep"
ELSEWHERE = "0-0-1-1-1"
"""The tag of a controller on a host that cannot be seen from here: never provably dead."""
LIMITS = CreateLimits(resolve_s=30.0, throttled_s=120.0, boot_s=300.0)


class Aftermath(StrEnum):
    """What the reaper has to work with after a crash."""

    SAME_HOST = "a reaper that sees that the controller is dead"
    ELSEWHERE = "a reaper on another host"
    LOST_LEDGER = "the ledger is lost"
    OLD_BACKUP = "the ledger is restored from before the run"
    TWO_REAPERS = "two reapers at once"


@cache
def dead_controller() -> str:
    """The tag of a process that has really been killed."""
    context = multiprocessing.get_context("fork")
    there, here = context.Pipe()

    def wait() -> None:
        from tasks.ledger import this_process

        here.send(this_process().tag())
        time.sleep(60)

    process = context.Process(target=wait)
    process.start()
    tag: str = there.recv()
    process.kill()
    process.join()
    if liveness(tag) is not Liveness.DEAD:
        raise RuntimeError("The death of a process cannot be proven here; the crash tests need /proc.")
    return tag


def make_spec(draft: Draft) -> CreateSpec:
    return CreateSpec(
        **vars(draft),
        client_public_key="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4yH1EwYhGmPEqkkJ5m2yIuFhXkEjRr0YgY2s3wxyzA client",
        host_private_key="-----BEGIN OPENSSH PRIVATE KEY-----\nNOT-TO-BE-SHOWN\n-----END OPENSSH PRIVATE KEY-----\n",
        host_public_key="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4yH1EwYhGmPEqkkJ5m2yIuFhXkEjRr0YgY2s3wxyzB host",
    )


@dataclass
class Stage:
    """over_http: the vendor's calls are trapped as HTTP requests, else as calls of the protocol."""

    world: VendorWorld
    over_http: bool = False
    rules: Rules = DEFAULT_RULES
    limits: CreateLimits = LIMITS
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sent: set[str] = set()
        self.skew_s = 0.0
        self.ledger = self.new_ledger()
        if not any(not x.ours for x in self.world.existing()):
            self.world.add_foreign()
        self.foreign = self.foreign_now()
        cloud = self.world.cloud
        self.ledger.beat("a reaper that has just passed", (cloud.vendor,), account=account_of(cloud))
        self.back_up()

    def new_ledger(self) -> MortalLedger:
        return MortalLedger.opened(now=self.world.now)

    def back_up(self) -> None:
        """Keep a copy of the ledger as it is now."""
        self.backup = sqlite_of(self.ledger).serialize()

    def restore(self) -> None:
        self.ledger = MortalLedger.opened(self.backup, now=self.world.now)

    def lose_ledger(self) -> None:
        self.ledger = self.new_ledger()

    def request(self, run: str, **changes: Any) -> ServerRequest:
        request = ServerRequest(
            sweep_id=SWEEP,
            server_run_id=run,
            server_type=self.world.server_type,
            places=self.world.places,
            deadline_unix_s=self.world.now() + TTL_S,
            usd_per_hour=USD_PER_HOUR,
            cap_usd=CAP_USD,
        )
        return replace(request, **changes)

    # The controller: everything it does goes through the trap.

    def cloud_of(self, trap: Trap) -> Cloud:
        trapped = TrappedCloud(self.world.cloud, trap, over_http=self.over_http, on_create=self.check_create)
        return cast("Cloud", trapped)

    def create(
        self,
        run: str,
        trap: Trap,
        tag: str = "",
        cancelled: Callable[[], bool] = lambda: False,
        ahead_s: float = 0.0,
        **changes: Any,
    ) -> LiveServer:
        self.skew_s = max(self.skew_s, abs(ahead_s))
        return create_server(
            self.cloud_of(trap),
            self.ledger.seen_by(trap, tag, ahead_s=ahead_s),
            make_spec,
            self.request(run, **{"deadline_unix_s": self.world.now() + ahead_s + TTL_S, **changes}),
            now=lambda: self.world.now() + ahead_s,
            sleep=self.world.sleep,
            limits=self.limits,
            cancelled=cancelled,
        )

    def server_run(
        self, run: str, trap: Trap, tag: str = "", cancelled: Callable[[], bool] = lambda: False, **changes: Any
    ) -> None:
        """One server run from begin to proof, as the product does it. Raises Death and everything that a run raises."""
        ledger, cloud = self.ledger.seen_by(trap, tag), self.cloud_of(trap)
        with self.trapped(trap):
            ledger.begin_run(run, sweep_id=SWEEP, server=self.world.server_type, vendor=cloud.vendor)
            try:
                self.create(run, trap, tag, cancelled, **changes)
            finally:
                for row in ledger.rows_of_run(run):
                    if row.state is not ResourceState.GONE:
                        request_delete(cloud, ledger, row)
                ledger.end_run(run, RunState.LANDED)
            lag_s = cloud.traits.visibility_lag_s
            for row in ledger.rows_of_run(run):
                if row.state is not ResourceState.GONE:
                    delete_and_prove(
                        cloud, ledger, row, now=self.world.now, sleep=self.world.sleep, timeout_s=60 + 3 * lag_s
                    )

    @contextmanager
    def trapped(self, trap: Trap) -> Iterator[None]:
        if not self.over_http:
            yield
            return
        with trapped_http(trap):
            yield

    def check_create(self, spec: CreateSpec) -> None:
        """What must be true whenever a create is sent. Kept, not raised: the code under test must not swallow it."""
        ledger, first = self.ledger, spec.intent_id not in self._sent
        self._sent.add(spec.intent_id)
        row = ledger.row(spec.intent_id)
        if row is None or row.sent_unix_s is None:
            self.violations.append("a create was sent whose intent was not committed")
            return
        spent = ledger.spent(row.sweep_id)
        left_s = Decimal(max(0.0, row.deadline_unix_s - self.world.now()))
        if row.reserved_usd < row.usd_per_hour * left_s / 3600 and not self.skew_s:
            self.violations.append("a create was sent without its worst-case cost being reserved")
        if spent.committed_usd > CAP_USD:
            self.violations.append("more than the cap is committed")
        beat_unix_s = ledger.last_beat(row.vendor)
        if first and (beat_unix_s is None or self.world.now() - beat_unix_s > self.limits.heartbeat_s + self.skew_s):
            self.violations.append("a create was sent although no reaper has passed lately")
        for other in ledger.rows_of_run(row.server_run_id):
            if other.attempt < row.attempt and other.state not in (ResourceState.DELETING, ResourceState.GONE):
                self.violations.append("a create was sent while an earlier one of the same run may still be there")

    # The reaper: another process, so no trap, unless it is the one that dies.

    def reap(self, *, trap: Trap | None = None, ahead_s: float = 0.0, **options: Any) -> ReapReport:
        """ahead_s: of the true time is the clock of the reaper's host."""
        self.skew_s = max(self.skew_s, abs(ahead_s))
        options = {"rules": self.rules, **options}
        ledger = self.ledger.seen_by(trap, ahead_s=ahead_s)

        def now() -> float:
            return self.world.now() + ahead_s

        if trap is None:
            report = reap([self.world.cloud], ledger, now, self.world.sleep, **options)
        else:
            with self.trapped(trap):
                report = reap([self.cloud_of(trap)], ledger, now, self.world.sleep, **options)
        self.check_gone()
        return report

    def check_gone(self) -> None:
        """GONE is a proof. Two reapers whose clocks differ by an hour may be wrong for a while; nobody else may."""
        gone = {row.cloud_id for row in self.ledger.rows() if row.state is ResourceState.GONE}
        wrong = [x.name for x in self.world.existing() if x.kind == SERVER and x.cloud_id in gone]
        if wrong and not self.skew_s:
            self.violations.append(f"GONE in the ledger, and there: {', '.join(wrong)}")

    def two_reapers(self) -> None:
        """One starts while the other is in the middle of its pass."""
        n_left = 3

        def second(_point: Point) -> None:
            nonlocal n_left
            n_left -= 1
            if n_left == 0:
                self.reap(prove_s=0)

        trap = Trap(watch=second)
        view = self.ledger.seen_by(trap, "")
        reap([self.cloud_of(trap)], view, self.world.now, self.world.sleep, prove_s=30, rules=self.rules)

    def existing(self) -> list[Existing]:
        """What is ours and exists."""
        return [x for x in self.world.existing() if x.ours]

    def foreign_now(self) -> list[tuple[str, str]]:
        return sorted((x.kind, x.cloud_id) for x in self.world.existing() if not x.ours)

    def pass_deadlines(self) -> None:
        lag_s = self.world.cloud.traits.visibility_lag_s
        self.world.sleep(TTL_S + self.skew_s + self.rules.skew_s + self.rules.unknown_grace_s + lag_s + 1)

    def come_after(self, aftermath: Aftermath) -> None:
        """What the world does once the controller is gone, up to quiescence, and the oracle."""
        if aftermath is Aftermath.LOST_LEDGER:
            self.lose_ledger()
        elif aftermath is Aftermath.OLD_BACKUP:
            self.restore()
        elif aftermath is Aftermath.TWO_REAPERS:
            self.two_reapers()
        elif aftermath is Aftermath.SAME_HOST:
            self.reap(prove_s=120)
        self.settle()

    def settle(self) -> None:
        """Pass every deadline and reap until nothing more happens; then check.

        The reaper is on a host whose clock is right: what a wrong clock puts off is not counted as left behind.
        """
        if isinstance(self.world, MemoryWorld):
            self.world.mend()
        self.pass_deadlines()
        lag_s = self.world.cloud.traits.visibility_lag_s
        report = self.reap(prove_s=4 * lag_s + 120)
        for _ in range(5):
            if report.finished and not report.watched and not self.existing():
                break
            self.world.sleep(lag_s + 30)
            report = self.reap(prove_s=4 * lag_s + 120)
        self.check(report)

    def check(self, report: ReapReport) -> None:
        left = self.existing()
        problems = list(self.violations)
        if left:
            usd = sum((x.usd_per_hour for x in left), Decimal(0))
            problems.append(f"left behind at {usd} USD/h: {', '.join(f'{x.kind} {x.name}' for x in left)}")
        if self.foreign_now() != self.foreign:
            problems.append("somebody else's resources were touched")
        if not report.finished:
            problems.append(
                f"the reaper is not finished: waiting {[r.name for r in report.waiting]}, braked {report.braked}, "
                f"errors {report.errors}, listed {report.listed}"
            )
        open_rows = [f"{row.name} is {row.state.value}" for row in self.ledger.open_rows()]
        shown = _Shown(self.world.cloud)
        told = leaks([cast("Cloud", shown)], self.ledger, self.world.now, rules=self.rules)
        listed = [r.name for listing in shown.listings for r in listing.resources if r.state != TERMINATED]
        complete = shown.listings[-1].complete
        if open_rows or listed or not complete:
            problems.append(
                f"ledger and listing differ: open {open_rows}, listed {listed} {shown.listings[-1].problems}"
            )
        if not told.clean:
            problems.append(f"the leak report is not clean: {told.verdict}")
        spent = self.ledger.spent(SWEEP)
        costs = sum((row.cost_usd or Decimal(0) for row in self.ledger.rows(SWEEP)), Decimal(0))
        if spent.reserved_usd or spent.settled_usd != costs:
            problems.append(f"money is not settled: {spent}, rows cost {costs}")
        assert not problems, "; ".join(problems)


class _Shown:
    """A cloud that keeps what its listings showed, so that a report can be held against its own ground."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud, self.listings = cloud, list[Listing]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cloud, name)

    def list_owned(self) -> Listing:
        self.listings.append(self._cloud.list_owned())
        return self.listings[-1]


def ended(act: Callable[[], object]) -> BaseException | None:
    """What the controller ended with: nothing, an error of ours, or its death. Anything else is a bug and goes up."""
    try:
        act()
    except (TokensweepError, CleanupError, Death) as exc:
        return exc
    return None
