"""The reaper: lists every cloud, then reads the ledger, deletes what nobody may use, and proves it gone.

It may run anywhere, at any time, twice at once, beside a running sweep, or with a fresh ledger when the old one is
lost: tags alone then tell what is ours. It never gives up on anything; what is left, the next pass tries again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import ParamSpec

from tasks.clouds.base import Cloud, Resource
from tasks.clouds.clock import Clock, WallClock, clock_of
from tasks.clouds.deletion import (
    earliest_proof_in_s,
    mark,
    may_resend,
    prove_gone,
    remains_of,
    request_delete,
    send_again,
    send_delete,
)
from tasks.domain.actions import Decision
from tasks.domain.lifecycle import Intent, LedgerError, LedgerRow, ResourceState, StaleRowError
from tasks.domain.reaping import (
    ADOPT,
    DEFAULT_RULES,
    DELETE,
    GONE,
    LOST_CREATE,
    OF_ANOTHER_ACCOUNT,
    SERVER,
    TERMINATED,
    UNPROVEN_KILLS,
    Rules,
    brake,
)
from tasks.leaks import Judged, Leak, LeakReport, Listed, Survey, leaks, survey
from tasks.ledger import Ledger

__all__ = ["Leak", "LeakReport", "Listed", "ReapReport", "leaks", "reap"]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
_WHEN_EXPIRED_ONLY = ("past_deadline", "marked_for_deletion")


@dataclass(kw_only=True)
class ReapReport:
    """What a reaper did. waiting: rows marked for deletion and not yet proven gone. watched: creates that were never
    answered, absent, and looked for until their deadline. elsewhere: rows that nobody may use, of an account that these
    credentials do not see. braked: kills refused, which a person must look at."""

    dry_run: bool
    listed: tuple[Listed, ...] = ()
    decisions: list[Decision] = field(default_factory=list)
    n_deletes_sent: int = 0
    gone: list[LedgerRow] = field(default_factory=list)
    waiting: list[LedgerRow] = field(default_factory=list)
    watched: list[LedgerRow] = field(default_factory=list)
    elsewhere: list[LedgerRow] = field(default_factory=list)
    stuck: list[LedgerRow] = field(default_factory=list)
    braked: list[Decision] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def alerts(self) -> list[str]:
        """What a person must look at, in sentences: deletions that do not end, kills that the brake holds, vendors
        that could not be listed whole, servers of another account, and a ledger or a clock that is wrong."""
        stuck = [
            f"STUCK: {row.vendor} {row.name} in {row.place} ({row.cloud_id or 'no id'}, {row.usd_per_hour:f} USD/h)"
            f" is not gone after {row.delete_attempts} deletes. The vendor says: {row.last_error or 'nothing'}. "
            "It is tried again for ever; look for a lock or deletion protection on it, or for missing permissions."
            for row in self.stuck
        ]
        braked = [
            f"BRAKED: {decision.subject} ({decision.reason}) was not deleted, with {len(self.braked)} in all: that "
            "many at once looks like a wrong ledger. Look at them, then run `tokensweep reap --force`."
            for decision in self.braked
        ]
        partial = [
            f"INCOMPLETE: {listed.vendor} could not be listed whole: {'; '.join(listed.problems) or 'it said no why'}. "
            "Nothing is concluded from what is missing in it, and nothing is created there until it can be."
            for listed in self.listed
            if not listed.complete
        ]
        elsewhere = [
            f"OF ANOTHER ACCOUNT: {row.vendor} {row.name} in {row.place} belongs to the account {row.account}, which "
            "these credentials do not see. Run `tokensweep reap` with credentials of that account."
            for row in self.elsewhere
        ]
        return [*stuck, *braked, *partial, *elsewhere, *self.errors]

    @property
    def finished(self) -> bool:
        """Whether everything that had to go is proven gone."""
        complete = all(listed.complete for listed in self.listed)
        return complete and not (self.waiting or self.elsewhere or self.braked or self.errors)


def reap(
    clouds: Sequence[Cloud],
    ledger: Ledger,
    now: Callable[[], float],
    sleep: Callable[[float], None],
    *,
    expired_only: bool = False,
    sweep_id: str | None = None,
    dry_run: bool = False,
    prove_s: float = 60.0,
    rules: Rules = DEFAULT_RULES,
    force: bool = False,
    reaper_id: str = "",
) -> ReapReport:
    """Delete what nobody may use any more, and pass again until it is proven gone or prove_s have gone by on the wall.

    Kept: servers in use by a controller that is not provably dead, before their deadline; what is not ours.
    expired_only: only what is past its deadline or marked. sweep_id: only that sweep's, and no heartbeat.
    dry_run: decide, change nothing. force: go on where the brake holds. now, sleep: for vendors without a clock of
    their own. Raises LedgerError when the ledger cannot be read; with a fresh one the reaper goes by tags. One that
    cannot be written does not keep it from deleting.
    """
    report = ReapReport(dry_run=dry_run)
    clocks = {cloud.vendor: clock_of(cloud, WallClock(now, sleep)) for cloud in clouds}
    lags_s = {cloud.vendor: cloud.traits.visibility_lag_s for cloud in clouds}
    give_up_unix_s = {vendor: clock.now() + prove_s / clock.real_s(1.0) for vendor, clock in clocks.items()}
    wait_s = 1.0
    while True:
        report.listed, report.waiting, report.watched, report.elsewhere = (), [], [], []
        report.stuck, report.braked, report.errors = [], [], []
        for cloud in clouds:
            clock = clocks[cloud.vendor]
            timed = ledger.timed_by(clock.now)
            one_pass = _Pass(survey(cloud, timed, clock.now, rules), report, expired_only, sweep_id, force)
            one_pass.run()
            if one_pass.survey.clock_behind_s > rules.skew_s:
                report.errors.append(
                    f"The clock here is {one_pass.survey.clock_behind_s:.0f} s behind that of {cloud.vendor}: "
                    "deadlines pass that much too late. Set it right."
                )
            report.listed += (one_pass.survey.listed(),)
            if one_pass.survey.listing.complete and sweep_id is None and not dry_run:
                account = one_pass.survey.listing.account
                one_pass.try_write(timed.beat, reaper_id or ledger.controller, (cloud.vendor,), account=account)
        waited_for = _with_time_left(report, clocks, give_up_unix_s)
        if dry_run or waited_for is None:
            return report
        clock = clocks[waited_for]
        idle_s = _idle_s(report, clocks, lags_s) / clock.real_s(1.0)
        clock.sleep(min(max(wait_s, idle_s), max(0.0, give_up_unix_s[waited_for] - clock.now())))
        wait_s = min(wait_s * 2, 15.0)


def _with_time_left(report: ReapReport, clocks: Mapping[str, Clock], give_up_unix_s: Mapping[str, float]) -> str | None:
    """A vendor on whose proofs the reaper may still wait; None when there is no such proof, or no time left."""
    vendors = dict.fromkeys(row.vendor for row in report.waiting)
    return next((v for v in vendors if v in clocks and clocks[v].now() < give_up_unix_s[v]), None)


def _idle_s(report: ReapReport, clocks: Mapping[str, Clock], lags_s: Mapping[str, float]) -> float:
    """How long no pass can prove anything of what it waits for, in seconds on the wall."""
    return min(
        clocks[row.vendor].real_s(earliest_proof_in_s(row, lags_s[row.vendor], clocks[row.vendor].now()))
        for row in report.waiting
        if row.vendor in clocks
    )


@dataclass(frozen=True)
class _Pass:
    survey: Survey
    report: ReapReport
    expired_only: bool
    sweep_id: str | None
    force: bool

    def run(self) -> None:
        self.decide([judged.decision for judged in self.survey.judged if self.in_scope(judged)])
        for judged in self.survey.judged:
            if judged.decision.action == ADOPT and judged.row is not None and self.in_scope(judged):
                self.try_write(self.adopt, judged.row, judged.resource)
        for kill in self.kills():
            self.kill(kill)
        for row in self.survey.ledger.open_rows(self.sweep_id):
            if row.vendor == self.survey.cloud.vendor:
                self.try_write(self.settle, row)

    def decide(self, decisions: list[Decision]) -> None:
        """Record each decision once, however often the loop comes to it again."""
        known = {(d.subject, d.action, d.reason) for d in self.report.decisions}
        self.report.decisions += [d for d in decisions if (d.subject, d.action, d.reason) not in known]

    def in_scope(self, judged: Judged) -> bool:
        if self.sweep_id is None:
            return True
        return self.sweep_id == (judged.seen.sweep_id if judged.row is None else judged.row.sweep_id)

    def kills(self) -> list[Judged]:
        """What to delete now: servers before what goes with them, and nothing that the brake holds."""
        judged = [j for j in self.survey.judged if j.decision.action == DELETE and self.in_scope(j)]
        if self.expired_only:
            judged = [j for j in judged if j.decision.reason in _WHEN_EXPIRED_ONLY]
        alive = [j for j in self.survey.judged if j.seen.kind == SERVER and j.seen.state != TERMINATED and j.seen.ours]
        doubtful = [j for j in judged if j.decision.reason in UNPROVEN_KILLS and not _expired(j, self.survey.rules)]
        if not self.force and brake(sum(j.seen.kind == SERVER for j in doubtful), len(alive)):
            self.report.braked += [j.decision for j in doubtful]
            judged = [j for j in judged if j not in doubtful]
        with_server = {j.seen.intent_id for j in alive if j.seen.intent_id}
        return [j for j in judged if j.seen.kind == SERVER or j.seen.intent_id not in with_server]

    def kill(self, kill: Judged) -> None:
        if self.report.dry_run:
            return
        cloud, ledger, resource = self.survey.cloud, self.survey.ledger, kill.resource
        row = kill.row
        try:
            if row is None or row.state is ResourceState.GONE or kill.decision.reason == "duplicate":
                row = self.found(kill)
            elif resource.kind == SERVER and not row.cloud_id:
                row = self.adopt(row, resource)
            row = mark(ledger, row)
        except StaleRowError:
            return  # another reaper or the controller is at it; the next pass looks again
        except LedgerError as exc:
            self.report.errors.append(str(exc))
            row = row or LedgerRow(**vars(self.intent(kill)), cloud_id=resource.cloud_id)
        if may_resend(row, self.survey.listing.read_unix_s):
            send_delete(cloud, ledger, row, resource)
            self.report.n_deletes_sent += 1

    def found(self, kill: Judged) -> LedgerRow:
        """A row of its own; what a closed row has paid for already is not counted again."""
        billed_from_unix_s = kill.resource.created_unix_s or self.survey.listing.read_unix_s
        if kill.row is not None and kill.row.gone_unix_s is not None:
            billed_from_unix_s = max(billed_from_unix_s, kill.row.gone_unix_s)
        return self.survey.ledger.found(
            self.intent(kill),
            cloud_id=kill.resource.cloud_id,
            billed_from_unix_s=billed_from_unix_s,
            controller=kill.seen.controller,
        )

    def intent(self, kill: Judged) -> Intent:
        """A row for what none tells of. Its id is the same for every reaper that finds it."""
        resource, traits = kill.resource, self.survey.cloud.traits
        closed = "" if kill.row is None or kill.row.state is not ResourceState.GONE else str(kill.row.gone_unix_s)
        identity = f"{resource.vendor}|{resource.kind}|{resource.cloud_id}|{closed}"
        return Intent(
            intent_id="found-" + hashlib.sha256(identity.encode()).hexdigest()[:20],
            sweep_id=kill.seen.sweep_id,
            server_run_id="",
            vendor=resource.vendor,
            place=resource.place,
            name=resource.name,
            token="",
            server_type=resource.kind,
            deadline_unix_s=kill.seen.deadline_unix_s or self.survey.listing.read_unix_s,
            usd_per_hour=resource.usd_per_hour,
            reserved_usd=Decimal(0),
            billing_minimum_s=traits.billing_minimum_s,
            billing_increment_s=traits.billing_increment_s,
            account=self.survey.listing.account,
        )

    def adopt(self, row: LedgerRow, resource: Resource) -> LedgerRow:
        return row if self.report.dry_run else self.survey.ledger.identify(row, resource.cloud_id)

    def settle(self, row: LedgerRow) -> None:
        """Bring one row as far as the listing allows: marked, absent, gone."""
        cloud, ledger, listing = self.survey.cloud, self.survey.ledger, self.survey.listing
        if row.state is not ResourceState.DELETING:
            if remains_of(row, listing):
                return
            decision = self.survey.missing(row)
            self.decide([decision])
            if decision.reason == OF_ANOTHER_ACCOUNT:
                self.report.elsewhere.append(row)
            if decision.action not in (DELETE, GONE) or self.report.dry_run:
                return
            if self.expired_only and decision.reason not in _WHEN_EXPIRED_ONLY:
                return
            request_delete(cloud, ledger, row)
            row = ledger.row(row.intent_id) or row
        elif not self.report.dry_run:
            row, decision = prove_gone(cloud, ledger, row, listing, rules=self.survey.rules)
            self.decide([decision])
            if not remains_of(row, listing):  # what is listed was sent its delete by `kill`
                n_before = row.delete_attempts
                row = send_again(cloud, ledger, row, listing, decision)
                self.report.n_deletes_sent += row.delete_attempts - n_before
        else:
            decision = self.survey.missing(row)
        if row.state is ResourceState.GONE:
            self.report.gone.append(row)
        elif decision.reason == LOST_CREATE:
            self.report.watched.append(row)
        elif decision.reason == OF_ANOTHER_ACCOUNT:
            self.report.elsewhere.append(row)
        else:
            self.report.waiting.append(row)
        if row.stuck:
            self.report.stuck.append(row)

    def try_write(self, write: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            write(*args, **kwargs)
        except StaleRowError as exc:
            logger.info("%s", exc)  # another reaper or the controller is at it; the next pass looks again
        except LedgerError as exc:
            self.report.errors.append(str(exc))


def _expired(judged: Judged, rules: Rules) -> bool:
    """Whether its deadline has passed; one that cannot be read has, once it is older than any deadline is far away."""
    deadline_unix_s = judged.seen.deadline_unix_s if judged.row is None else judged.row.deadline_unix_s
    if deadline_unix_s is None and judged.seen.created_unix_s > 0:
        deadline_unix_s = judged.seen.created_unix_s + rules.max_ttl_s
    return deadline_unix_s is not None and judged.decision.t_s > deadline_unix_s
