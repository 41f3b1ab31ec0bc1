"""Deleting, and proving it: the same code for every vendor.

`request_delete` takes seconds and belongs into `finally`. The proof takes as long as the vendor's listings are
behind, and belongs to the reaper, or to `delete_and_prove` where somebody waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any, Protocol

from tasks.clouds.accounts import account_of, why_unseen
from tasks.clouds.base import INTENT_TAG, NO_CODE, Classified, Cloud, ErrorKind, Listing, Ref, Resource, Scope
from tasks.clouds.tags import seen
from tasks.domain.actions import Decision
from tasks.domain.errors import CleanupError
from tasks.domain.lifecycle import Intent, LedgerError, LedgerRow, ResourceState, StaleRowError
from tasks.domain.reaping import (
    ABSENT,
    ABSTAIN,
    DEFAULT_RULES,
    GONE,
    KEEP,
    SERVER,
    TERMINATED,
    Rules,
    judge_missing,
    matches,
    out_of_sight,
)
from tasks.domain.stockouts import Stockout

logger = logging.getLogger(__name__)

STUCK_AFTER_S = 900.0
RESEND_AFTER_S = 15.0
LONGEST_POLL_S = 10.0
STILL_ANSWERS = "still_answers"
_UNPROVABLE = frozenset({"still_listed", STILL_ANSWERS, "get_failed", "partial_listing"})
"""Why a deletion is not proven that time alone does not mend: a person must look at it."""
_N_STALE_TRIES = 20


class LedgerPort(Protocol):
    """What the life cycle needs of a ledger. Every method commits before it returns."""

    @property
    def ledger_id(self) -> str: ...
    @property
    def controller(self) -> str: ...
    @property
    def clock(self) -> str: ...

    def intend(self, intent: Intent, *, cap_usd: Decimal | None = None) -> LedgerRow: ...
    def creating(self, row: LedgerRow) -> LedgerRow: ...
    def live(
        self, row: LedgerRow, *, cloud_id: str, address: str = "", ssh_port: int = 22, username: str = "root"
    ) -> LedgerRow: ...
    def identify(self, row: LedgerRow, cloud_id: str) -> LedgerRow: ...
    def deleting(self, row: LedgerRow) -> LedgerRow: ...
    def delete_sent(self, row: LedgerRow, *, error: str = "") -> LedgerRow: ...
    def absent(self, row: LedgerRow, listed_unix_s: float) -> LedgerRow: ...
    def present(self, row: LedgerRow) -> LedgerRow: ...
    def stuck(self, row: LedgerRow) -> LedgerRow: ...
    def gone(self, row: LedgerRow, proof: Mapping[str, Any]) -> LedgerRow: ...
    def row(self, intent_id: str) -> LedgerRow | None: ...
    def rows_of_run(self, server_run_id: str) -> tuple[LedgerRow, ...]: ...
    def last_beat(self, vendor: str, until_unix_s: float = ..., *, account: str | None = ...) -> float | None: ...
    def out_of_stock(self, vendor: str, server_type: str, places: Iterable[str], *, spot: bool, code: str) -> None: ...
    def stockouts(self, vendor: str, server_type: str, *, spot: bool) -> tuple[Stockout, ...]: ...


def classify(cloud: Cloud, exc: Exception) -> Classified:
    """What the exception means; where the vendor module itself fails at that, that the resource may exist."""
    try:
        return cloud.classify(exc)
    except Exception:
        name = type(exc).__name__
        logger.warning("%s: an error of type %s could not be classified", cloud.vendor, name)
        return Classified(kind=ErrorKind.UNKNOWN, scope=Scope.ZONE, may_exist=True, code=NO_CODE, message=name)


def list_owned(cloud: Cloud, now: Callable[[], float]) -> Listing:
    """The vendor's listing, with the time when it began and whose it is; incomplete where it failed."""
    began_unix_s = now()
    try:
        account = account_of(cloud)
        listing = cloud.list_owned()
    except Exception as exc:
        problem = f"{type(exc).__name__}: {classify(cloud, exc).message}"
        return Listing(
            vendor=cloud.vendor, resources=(), complete=False, read_unix_s=began_unix_s, places=(), problems=(problem,)
        )
    return replace(listing, read_unix_s=began_unix_s, account=account)


def look_up(cloud: Cloud, row: LedgerRow) -> Resource | None:
    """The row's server as the vendor answers for it now, by id, or by name where that bears our intent tag.

    None: the vendor says that there is none, or that it is terminated. Raises what the vendor's SDK raises.
    """
    found = cloud.get(Ref(vendor=row.vendor, place=row.place, name=row.name, cloud_id=row.cloud_id))
    if found is None or found.state == TERMINATED or not matches(row, seen(found, row.intended_unix_s)):
        return None
    return found


def request_delete(cloud: Cloud, ledger: LedgerPort, row: LedgerRow) -> bool:
    """Mark the row for deletion and send the delete; True when the vendor took it. Does not wait for the end.

    What was never sent is closed at once. A vendor's error is recorded, not raised: the reaper tries again for ever.
    Where the ledger cannot be written the delete is sent all the same, and LedgerError raised after it.
    """
    failure: LedgerError | None = None
    try:
        row = mark(ledger, row)
    except LedgerError as exc:
        failure = exc
    if row.state is ResourceState.GONE:
        return True
    accepted = send_delete(cloud, ledger, row)
    if failure is not None:
        raise failure
    return accepted


def mark(ledger: LedgerPort, row: LedgerRow) -> LedgerRow:
    """Mark the row for deletion, whoever else changes it meanwhile. What was never sent becomes GONE.

    Raises LedgerError when it cannot be written.
    """
    for _ in range(_N_STALE_TRIES):
        try:
            if row.state is ResourceState.GONE:
                return row
            if row.state is ResourceState.INTENDED and not row.cloud_id:
                # Guarded by the epoch: a creator that would send now finds its row changed and sends nothing.
                return ledger.gone(row, {"never_sent": True})
            return ledger.deleting(row)
        except StaleRowError:
            row = ledger.row(row.intent_id) or row
    raise StaleRowError(f"The ledger's row of {row.name} changes faster than it can be marked for deletion.")


def send_delete(cloud: Cloud, ledger: LedgerPort, row: LedgerRow, remains: Resource | None = None) -> bool:
    """Send one delete of the row's server, or of something that remains of it, and count it. Never raises for the
    vendor's errors or the ledger's."""
    error = "" if remains else why_unseen(cloud, row)
    if not error:
        row, error = _try_delete(cloud, ledger, row, remains)
    _quietly(ledger, row, partial(ledger.delete_sent, error=error))
    return not error


def _try_delete(cloud: Cloud, ledger: LedgerPort, row: LedgerRow, remains: Resource | None) -> tuple[LedgerRow, str]:
    """The row, and why the vendor did not take it, or ""."""
    error = ""
    try:
        target = remains or (None if row.cloud_id else look_up(cloud, row))
        if target is not None and target.kind == SERVER and not row.cloud_id:
            row = _quietly(ledger, row, partial(ledger.identify, cloud_id=target.cloud_id))
        if target is not None:
            cloud.delete(target.ref())
        elif row.cloud_id:
            cloud.delete(Ref(vendor=row.vendor, place=row.place, name=row.name, cloud_id=row.cloud_id))
        else:
            error = "It has not become visible; the reaper keeps looking for it."
    except Exception as exc:
        found = classify(cloud, exc)
        if found.kind is not ErrorKind.NOT_FOUND:
            error = f"{found.code or found.kind.value}: {found.message}"
            logger.warning("%s: the delete of %s was not taken: %s", cloud.vendor, row.name, error)
    return row, error


def may_resend(row: LedgerRow, now_unix_s: float) -> bool:
    """Whether a delete that the vendor took has had its time; one that it did not take is sent again at once."""
    return row.last_delete_unix_s is None or now_unix_s - row.last_delete_unix_s >= RESEND_AFTER_S


def _quietly(ledger: LedgerPort, row: LedgerRow, write: Callable[[LedgerRow], LedgerRow]) -> LedgerRow:
    """A note in the ledger that must not stand in the way of a delete, whoever else changes the row meanwhile."""
    try:
        for _ in range(_N_STALE_TRIES):
            try:
                return write(row)
            except StaleRowError:
                row = ledger.row(row.intent_id) or row
    except LedgerError as exc:
        logger.warning("%s", exc)
    return row


def remains_of(row: LedgerRow, listing: Listing) -> tuple[Resource, ...]:
    """What the listing still shows of the row, the server first, because the rest often goes with it."""
    found = (
        r
        for r in listing.resources
        if (r.cloud_id == row.cloud_id or r.tags.get(INTENT_TAG) == row.intent_id)  # cheap, before taking tags apart
        and r.state != TERMINATED
        and matches(row, seen(r, listing.read_unix_s))
    )
    return tuple(sorted(found, key=lambda r: (r.kind != SERVER, r.cloud_id)))


def prove_gone(
    cloud: Cloud, ledger: LedgerPort, row: LedgerRow, listing: Listing, *, rules: Rules = DEFAULT_RULES
) -> tuple[LedgerRow, Decision]:
    """Weigh one listing as evidence that a row in DELETING is gone, and close the row when it is proven.

    The listing is from `list_owned` above, read before the row. Beside the listing the vendor must also answer that
    it has none. What cannot be proven for long becomes STUCK. Returns the row and why it is, or is not yet, GONE.
    Raises StaleRowError like every write.
    """
    row, decision = _weigh(cloud, ledger, row, listing, rules)
    waited_s = listing.read_unix_s - (row.deleting_unix_s or listing.read_unix_s)
    if decision.reason in _UNPROVABLE and waited_s > STUCK_AFTER_S:
        row = ledger.stuck(row)
    return row, decision


def _weigh(
    cloud: Cloud, ledger: LedgerPort, row: LedgerRow, listing: Listing, rules: Rules
) -> tuple[LedgerRow, Decision]:
    subject = f"{row.vendor}/{row.place}/{row.name}"
    remains = remains_of(row, listing)
    if remains:
        return ledger.present(row), Decision(listing.read_unix_s, KEEP, subject, "still_listed")
    other_clock = row.absent_by not in ("", ledger.clock)
    lag_s = cloud.traits.visibility_lag_s + (rules.skew_s if other_clock else 0.0)
    decision = judge_missing(
        row,
        listing_complete=listing.complete,
        listed_unix_s=listing.read_unix_s,
        lag_s=lag_s,
        account=listing.account,
        rules=rules,
    )
    if decision.action not in (ABSENT, GONE):
        return row, decision
    try:
        answered = look_up(cloud, row)
    except Exception as exc:
        found = classify(cloud, exc)
        if found.kind is not ErrorKind.NOT_FOUND:
            return row, Decision(listing.read_unix_s, ABSTAIN, subject, "get_failed", {"error": found.message})
        answered = None
    if answered is not None:
        if not row.cloud_id:
            row = ledger.identify(row, answered.cloud_id)
        return ledger.present(row), Decision(listing.read_unix_s, KEEP, subject, STILL_ANSWERS)
    if decision.action == ABSENT:
        return ledger.absent(row, listing.read_unix_s), decision
    proof = {
        "absent_from_complete_listings_unix_s": [row.absent_since_unix_s, listing.read_unix_s],
        "places": sorted(listing.places),
        "get": "none",
    }
    return ledger.gone(row, proof), decision


def earliest_proof_in_s(row: LedgerRow, lag_s: float, now_unix_s: float) -> float:
    """How long no listing can prove anything: until the visibility lag is over since the first that lacked it. To ask
    meanwhile would only cost calls, of which a mass teardown has none to spare."""
    if row.absent_since_unix_s is None:
        return 0.0
    return max(0.0, row.absent_since_unix_s + lag_s - now_unix_s)


def send_again(
    cloud: Cloud, ledger: LedgerPort, row: LedgerRow, listing: Listing, decision: Decision | None = None
) -> LedgerRow:
    """Send the delete again where something is left of the row, or where the last one was not taken.

    Left is what the listing shows, and what the vendor answers for although no listing shows it, because somebody
    has taken its tags off. Does nothing while an accepted delete has not had its time.
    """
    remains = remains_of(row, listing)[:1]
    answers = decision is not None and decision.reason == STILL_ANSWERS
    lost = bool(row.cloud_id) and (answers or row.last_delete_unix_s is None)
    unseen = out_of_sight(row, listing.account)
    if (
        row.state is not ResourceState.DELETING
        or unseen
        or not (remains or lost)
        or not may_resend(row, listing.read_unix_s)
    ):
        return row
    send_delete(cloud, ledger, row, *remains)
    return ledger.row(row.intent_id) or row


def delete_and_prove(
    cloud: Cloud,
    ledger: LedgerPort,
    row: LedgerRow,
    *,
    now: Callable[[], float],
    sleep: Callable[[float], None],
    timeout_s: float = 300.0,
    poll_s: float = 1.0,
    rules: Rules = DEFAULT_RULES,
) -> LedgerRow:
    """Delete the row's server with all that it brought, and wait for the proof.

    poll_s: the first wait between two listings, doubled up to LONGEST_POLL_S. Raises CleanupError when there is none
    in time; the row stays as it is, and the reaper goes on.
    """
    give_up_unix_s = now() + timeout_s
    row = ledger.row(row.intent_id) or row
    if row.state is not ResourceState.DELETING or may_resend(row, now()):
        request_delete(cloud, ledger, row)
    reason = "not_listed_yet"
    while True:
        listing = list_owned(cloud, now)
        row = ledger.row(row.intent_id) or row
        if row.state is ResourceState.GONE:
            return row
        try:
            row, decision = prove_gone(cloud, ledger, row, listing, rules=rules)
            reason = decision.reason
            row = send_again(cloud, ledger, row, listing, decision)
        except StaleRowError:
            reason = "changed_by_another"
        if row.state is ResourceState.GONE:
            return row
        if now() >= give_up_unix_s:
            raise CleanupError(
                f"{row.vendor}: {row.name} in {row.place} was not proven gone in {timeout_s:.0f} s ({reason}).",
                reason=reason,
                next_step="The reaper tries again; see it with `tokensweep leaks`.",
            )
        idle_s = earliest_proof_in_s(row, cloud.traits.visibility_lag_s, now())
        sleep(min(max(poll_s, idle_s), max(0.0, give_up_unix_s - now())))
        poll_s = min(2 * poll_s, LONGEST_POLL_S)
