"""What the reaper decides: which resource is to be deleted, and when a missing one is proven gone.

The ledger keeps `LedgerRow`s, the cloud shows `Seen`s, and `judge` and `judge_missing` decide between them. Nothing
here talks to either. Three rules shape every decision: the cloud's listing is the truth, gone needs positive proof,
and what is not ours is never touched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from tasks.domain.actions import Decision
from tasks.domain.lifecycle import LedgerRow, ResourceState

KEEP = "keep"
DELETE = "delete"
ADOPT = "adopt"  # record the resource's id in its row
ABSTAIN = "abstain"
ABSENT = "absent"  # note a first complete listing that lacks it
GONE = "gone"

TERMINATED = "terminated"
SERVER = "server"

LOST_CREATE = "lost_create_may_appear"
OF_ANOTHER_ACCOUNT = "of_another_account"

UNPROVEN_KILLS = frozenset({"unknown_to_ledger", "duplicate", "seen_after_gone", "unreadable_deadline"})
"""Reasons to delete something unexpired that rest on the ledger's word alone: what the brake counts."""


class Liveness(str, Enum):
    """What is known of the process that owns a resource. UNKNOWN (another host) is never taken for DEAD."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Seen:
    """One resource as the vendor's listing shows it, tags taken apart. "" and None: no such tag, or unreadable."""

    vendor: str
    place: str
    name: str
    cloud_id: str
    kind: str
    state: str
    ours: bool
    intent_id: str
    sweep_id: str
    ledger_id: str
    controller: str
    deadline_unix_s: float | None
    created_unix_s: float


@dataclass(frozen=True)
class Rules:
    """Tolerances of the reaper, in seconds.

    skew_s: how far the clocks of controller, reaper and vendor may differ. unknown_grace_s: how old something
    unknown must be before it is deleted. max_ttl_s: no deadline is further away, so one that is was misread.
    sole_ledger: everything ours in these accounts belongs to this ledger, another ledger's tag notwithstanding.
    """

    skew_s: float = 120.0
    unknown_grace_s: float = 600.0
    max_ttl_s: float = 7 * 86_400.0
    sole_ledger: bool = False


DEFAULT_RULES = Rules()


def deadline_text(deadline_unix_s: float) -> str:
    """A deadline as a tag: whole seconds, because some vendors allow no point in a tag."""
    return str(math.ceil(deadline_unix_s))


def parse_deadline(text: str, now_unix_s: float, rules: Rules = DEFAULT_RULES) -> float | None:
    """Read a deadline tag; None when it is missing, not a number, or too far away to be one (milliseconds, say)."""
    try:
        deadline_unix_s = float(text)
    except ValueError:
        return None
    if not 0 < deadline_unix_s <= now_unix_s + rules.max_ttl_s:  # also false for NaN
        return None
    return deadline_unix_s


def matches(row: LedgerRow, seen: Seen) -> bool:
    """Whether the row is about this resource: by immutable id or by our own intent tag, never by name."""
    if row.vendor != seen.vendor:
        return False
    by_id = bool(row.cloud_id) and row.cloud_id == seen.cloud_id
    return by_id or (seen.ours and bool(seen.intent_id) and seen.intent_id == row.intent_id)


def why_doomed(
    row: LedgerRow, now_unix_s: float, controller: Liveness, run_ended: bool, rules: Rules = DEFAULT_RULES
) -> str:
    """Why nobody may use the row's resource any more, or "" while somebody may."""
    if row.state is ResourceState.DELETING:
        return "marked_for_deletion"
    if now_unix_s > row.deadline_unix_s + rules.skew_s:
        return "past_deadline"
    if controller is Liveness.DEAD:
        return "controller_dead"
    if run_ended:
        return "run_ended"
    return ""


def judge(
    row: LedgerRow | None,
    seen: Seen,
    *,
    now_unix_s: float,
    controller: Liveness = Liveness.UNKNOWN,
    run_ended: bool = False,
    ledger_id: str = "",
    rules: Rules = DEFAULT_RULES,
) -> Decision:
    """What to do about a resource that a listing shows: keep, delete or adopt.

    now_unix_s: when the listing began. row: what the ledger says of it, read after the listing (so that a create
    between the two is not unknown).
    controller: of the row's process, or without a row of the one in the resource's tag.
    """
    if row is not None and not matches(row, seen):
        row = None
    if seen.state == TERMINATED:
        action, reason = KEEP, "already_terminated"
    elif row is not None:
        action, reason = _judge_known(row, seen, now_unix_s, controller, run_ended, rules)
    elif not seen.ours:
        action, reason = KEEP, "foreign"
    else:
        action, reason = _judge_unknown(seen, now_unix_s, controller, ledger_id, rules)
    deadline_unix_s = row.deadline_unix_s if row is not None else seen.deadline_unix_s
    evidence = {
        "cloud_id": seen.cloud_id,
        "kind": seen.kind,
        "age_s": _age_s(seen, now_unix_s),
        "left_s": None if deadline_unix_s is None else deadline_unix_s - now_unix_s,
        "controller": controller.value,
        "ledger_state": "" if row is None else row.state.value,
    }
    return Decision(now_unix_s, action, f"{seen.vendor}/{seen.place}/{seen.name}", reason, evidence)


def _judge_known(
    row: LedgerRow, seen: Seen, now_unix_s: float, controller: Liveness, run_ended: bool, rules: Rules
) -> tuple[str, str]:
    if row.state is ResourceState.GONE:
        if row.gone_unix_s is not None and row.gone_unix_s >= now_unix_s:
            return KEEP, "proven_gone_since"
        return DELETE, "seen_after_gone"
    if seen.kind == SERVER and row.cloud_id and row.cloud_id != seen.cloud_id:
        return DELETE, "duplicate"
    doomed = why_doomed(row, now_unix_s, controller, run_ended, rules)
    if doomed:
        return DELETE, doomed
    if seen.kind == SERVER and not row.cloud_id:
        return ADOPT, "create_answered_by_listing"
    return KEEP, "in_use"


def _judge_unknown(
    seen: Seen, now_unix_s: float, controller: Liveness, ledger_id: str, rules: Rules
) -> tuple[str, str]:
    """Ours by its tag, and in no row: the ledger was lost, is an old copy, or is not the one that it was created by."""
    if seen.deadline_unix_s is not None and now_unix_s > seen.deadline_unix_s + rules.skew_s:
        return DELETE, "past_deadline"
    if controller is Liveness.DEAD:
        return DELETE, "controller_dead"
    age_s = _age_s(seen, now_unix_s)
    if seen.deadline_unix_s is None:
        if age_s is None or age_s > rules.unknown_grace_s:
            return DELETE, "unreadable_deadline"
        return KEEP, "young"
    if controller is Liveness.ALIVE:
        return KEEP, "controller_alive"
    if seen.ledger_id and seen.ledger_id != ledger_id and not rules.sole_ledger:
        return KEEP, "of_another_ledger"
    if age_s is None or age_s <= rules.unknown_grace_s:
        return KEEP, "young"
    return DELETE, "unknown_to_ledger"


def _age_s(seen: Seen, now_unix_s: float) -> float | None:
    return now_unix_s - seen.created_unix_s if seen.created_unix_s > 0 else None


def out_of_sight(row: LedgerRow, account: str) -> bool:
    """Whether credentials of that account cannot see the row's resource: no listing by them says that it is gone, and
    no delete reaches it. False where either account is not known."""
    return bool(row.account and account) and row.account != account


def judge_missing(
    row: LedgerRow,
    *,
    listing_complete: bool,
    listed_unix_s: float,
    lag_s: float,
    account: str = "",
    controller: Liveness = Liveness.UNKNOWN,
    run_ended: bool = False,
    rules: Rules = DEFAULT_RULES,
) -> Decision:
    """What to do about a row whose resource a listing lacks: keep, delete (mark it), absent, gone or abstain.

    listed_unix_s: when the listing began. account: whose it is. lag_s: how long the vendor's listings may be behind.
    GONE takes two complete listings at least lag_s apart, both begun after it was marked for deletion. A create whose
    answer was lost may still appear, so a row without an id is not GONE before its deadline, unless nothing was ever
    sent.
    """
    doomed = why_doomed(row, listed_unix_s, controller, run_ended, rules)
    action, reason = KEEP, "in_use"
    if row.state is ResourceState.GONE:
        reason = "already_gone"
    elif doomed and row.state is ResourceState.INTENDED:
        action, reason = GONE, "never_sent"
    elif doomed and out_of_sight(row, account):
        action, reason = ABSTAIN, OF_ANOTHER_ACCOUNT
    elif doomed and row.state is not ResourceState.DELETING:
        action, reason = DELETE, doomed
    elif doomed:
        action, reason = _judge_absence(row, listing_complete, listed_unix_s, lag_s, rules)
    evidence = {
        "cloud_id": row.cloud_id,
        "listing_complete": listing_complete,
        "absent_for_s": None if row.absent_since_unix_s is None else listed_unix_s - row.absent_since_unix_s,
        "lag_s": lag_s,
        "left_s": row.deadline_unix_s - listed_unix_s,
    }
    return Decision(listed_unix_s, action, f"{row.vendor}/{row.place}/{row.name}", reason, evidence)


def _judge_absence(
    row: LedgerRow, listing_complete: bool, listed_unix_s: float, lag_s: float, rules: Rules
) -> tuple[str, str]:
    if not listing_complete:
        return ABSTAIN, "partial_listing"
    if row.deleting_unix_s is not None and listed_unix_s < row.deleting_unix_s:
        return ABSTAIN, "listing_older_than_deletion"
    if row.absent_since_unix_s is None or listed_unix_s < row.absent_since_unix_s:
        return ABSENT, "first_absence"
    if listed_unix_s == row.absent_since_unix_s or listed_unix_s - row.absent_since_unix_s < lag_s:
        return KEEP, "second_absence_too_soon"
    sent_without_answer = row.sent_unix_s is not None and not row.cloud_id
    if sent_without_answer and listed_unix_s <= row.deadline_unix_s + rules.skew_s:
        return KEEP, LOST_CREATE
    return GONE, "absent_twice"


def brake(n_kills_of_live_unexpired: int, n_live: int, *, at_least: int = 5, share: float = 0.2) -> bool:
    """Whether to refuse these kills and call a person: more than `at_least`, and more than `share` of all that live.

    Counted are only kills for a reason in UNPROVEN_KILLS, where one wrong ledger could take down a running sweep.
    """
    return n_kills_of_live_unexpired > max(at_least, n_live * share)
