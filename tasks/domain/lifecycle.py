"""The life of one cloud resource: its states, what the ledger keeps of it, its names, and what it cost."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal
from enum import Enum

from tasks.domain.errors import Retry, TokensweepError


class LedgerError(TokensweepError):
    """The ledger cannot be read or written; nothing may be created."""

    exit_code = 2
    usual_reason = "ledger_unusable"


class StaleRowError(LedgerError):
    """Someone else changed the row since it was read: read it again and decide again."""

    retry = Retry.SAME
    usual_reason = "ledger_row_changed"


class BudgetError(TokensweepError):
    """The reservation would pass the sweep's cap; nothing was created."""

    exit_code = 5
    usual_reason = "over_cap"


class ResourceState(str, Enum):
    """Forward only. STUCK is a flag beside DELETING, because a stuck deletion is still retried for ever."""

    INTENDED = "intended"  # committed; nothing has been sent
    CREATING = "creating"  # the create may have been sent
    LIVE = "live"  # its immutable id is known
    DELETING = "deleting"
    GONE = "gone"


_MOVES: dict[ResourceState, frozenset[ResourceState]] = {
    ResourceState.INTENDED: frozenset({ResourceState.CREATING, ResourceState.DELETING, ResourceState.GONE}),
    ResourceState.CREATING: frozenset({ResourceState.LIVE, ResourceState.DELETING, ResourceState.GONE}),
    ResourceState.LIVE: frozenset({ResourceState.DELETING}),
    ResourceState.DELETING: frozenset({ResourceState.GONE}),
    ResourceState.GONE: frozenset(),
}


def may_move(from_state: ResourceState, to_state: ResourceState) -> bool:
    """Whether a row may change so. GONE straight from CREATING is for creates that the vendor provably refused."""
    return to_state in _MOVES[from_state]


@dataclass(frozen=True)
class Intent:
    """All that is committed to the ledger before a create is sent. reserved_usd: its worst-case cost.

    price_basis: the price as the vendor gave it, with the rate, where usd_per_hour was converted. account: of the
    vendor, in which it is created; "" where the vendor cannot tell.
    """

    intent_id: str
    sweep_id: str
    server_run_id: str
    vendor: str
    place: str
    name: str
    token: str
    server_type: str
    deadline_unix_s: float
    usd_per_hour: Decimal
    reserved_usd: Decimal
    attempt: int = 0
    host_public_key: str = ""
    billing_minimum_s: int = 0
    billing_increment_s: int = 1
    price_basis: str = ""
    account: str = ""


@dataclass(frozen=True)
class LedgerRow(Intent):
    """One resource as the ledger knows it. `epoch` counts its changes: a write with an old one is refused.

    cloud_id is "" until the vendor's immutable id is known. absent_since_unix_s: start of the first complete
    listing without it, by the clock `absent_by`. cost_usd is None until it is GONE.
    """

    state: ResourceState = ResourceState.INTENDED
    epoch: int = 0
    stuck: bool = False
    controller: str = ""
    cloud_id: str = ""
    address: str = ""
    ssh_port: int = 22
    username: str = "root"
    intended_unix_s: float = 0.0
    sent_unix_s: float | None = None
    live_unix_s: float | None = None
    deleting_unix_s: float | None = None
    gone_unix_s: float | None = None
    absent_since_unix_s: float | None = None
    absent_by: str = ""
    delete_attempts: int = 0
    last_delete_unix_s: float | None = None
    last_error: str = ""
    proof: str = ""
    cost_usd: Decimal | None = None


def intent_id(server_run_id: str, attempt: int) -> str:
    """The id of a server run's n-th try, the same whoever computes it: two runners of one run collide in the ledger."""
    return hashlib.sha256(f"{server_run_id}|{attempt}".encode()).hexdigest()[:20]


def server_name(intent_id: str) -> str:
    """A server's name, fit for every vendor: 31 characters of [a-z0-9-] that begin with a letter."""
    return "tokensweep-" + hashlib.sha256(intent_id.encode()).hexdigest()[:20]


def token(intent_id: str, attempt: int, place: str) -> str:
    """The idempotency token of one create, 64 hex characters."""
    return hashlib.sha256(f"{intent_id}|{attempt}|{place}".encode()).hexdigest()


def billed_usd(usd_per_hour: Decimal, lifetime_s: float, minimum_s: int, increment_s: int) -> Decimal:
    """What a vendor charges for a lifetime: at least its minimum, in whole increments, rounded up to a nano-dollar."""
    increment_s = max(1, increment_s)
    n_increments = -(-math.ceil(max(lifetime_s, minimum_s, 0)) // increment_s)
    usd = usd_per_hour * n_increments * increment_s / 3600
    return usd.quantize(Decimal("1e-9"), rounding=ROUND_UP)


def cost_usd(row: LedgerRow, ended_unix_s: float) -> Decimal:
    """What the row's resource cost, from the sent create to the last delete that the vendor took, or to the first
    absence where it took none. A create that never came to an id costs nothing.
    """
    if not row.cloud_id or row.sent_unix_s is None:
        return Decimal(0)
    end_unix_s = row.last_delete_unix_s or row.absent_since_unix_s or ended_unix_s
    return billed_usd(row.usd_per_hour, end_unix_s - row.sent_unix_s, row.billing_minimum_s, row.billing_increment_s)
