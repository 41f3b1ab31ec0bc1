"""What is there, judged: one vendor's listing against the ledger, and of it what is left behind.

`survey` is the ground of the reaper and of the leak report, so that both always say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType

from tasks.clouds.base import Cloud, Listing, Resource
from tasks.clouds.clock import WallClock, clock_of
from tasks.clouds.deletion import list_owned, remains_of
from tasks.clouds.tags import seen
from tasks.domain.actions import Decision
from tasks.domain.lifecycle import LedgerRow, ResourceState
from tasks.domain.money import BILLED_APART, KNOWN_RATES, Rate
from tasks.domain.reaping import (
    DEFAULT_RULES,
    DELETE,
    LOST_CREATE,
    SERVER,
    TERMINATED,
    Rules,
    Seen,
    judge,
    judge_missing,
)
from tasks.leak_prices import FREE_KINDS, Prices
from tasks.ledger import Ledger, liveness

LISTING_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What was listed, where and when: the ground of every conclusion."""

    vendor: str
    places: tuple[str, ...]
    listed_unix_s: float
    complete: bool
    n_resources: int
    problems: tuple[str, ...]
    account: str = ""

    @property
    def whose(self) -> str:
        return f"{self.vendor} (account {self.account})" if self.account else self.vendor

    @property
    def when(self) -> str:
        return datetime.fromtimestamp(self.listed_unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

    @property
    def state(self) -> str:
        return "complete" if self.complete else f"INCOMPLETE: {'; '.join(self.problems) or 'it said no why'}"


def not_listed(broken: Mapping[str, str], now_unix_s: float) -> tuple[Listed, ...]:
    """For vendors that could not be opened, with why: nothing is known of them, and every report says so."""
    return tuple(
        Listed(vendor=vendor, places=(), listed_unix_s=now_unix_s, complete=False, n_resources=0, problems=(why,))
        for vendor, why in broken.items()
    )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One listed resource with the row that tells of it."""

    resource: Resource
    seen: Seen
    row: LedgerRow | None
    decision: Decision


@dataclass(frozen=True)
class Survey:
    """One vendor's listing, judged by a ledger that was read after it."""

    cloud: Cloud
    ledger: Ledger
    rules: Rules
    listing: Listing
    judged: tuple[Judged, ...]
    ended_runs: frozenset[str]
    listed_until_unix_s: float

    def listed(self) -> Listed:
        listing = self.listing
        return Listed(
            vendor=listing.vendor,
            places=listing.places,
            listed_unix_s=listing.read_unix_s,
            complete=listing.complete,
            n_resources=len(listing.resources),
            problems=listing.problems,
            account=listing.account,
        )

    @property
    def clock_behind_s(self) -> float:
        """How far the newest resource of ours was made in the future of this clock. What is off by more than any
        deadline can be is no time at all, and is not counted."""
        newest = max((j.seen.created_unix_s for j in self.judged if j.seen.ours), default=0.0)
        behind_s = newest - self.listed_until_unix_s
        return behind_s if 0 < behind_s <= self.rules.max_ttl_s else 0.0

    def missing(self, row: LedgerRow) -> Decision:
        return judge_missing(
            row,
            listing_complete=self.listing.complete,
            listed_unix_s=self.listing.read_unix_s,
            lag_s=self.cloud.traits.visibility_lag_s,
            account=self.listing.account,
            controller=liveness(row.controller),
            run_ended=row.server_run_id in self.ended_runs,
            rules=self.rules,
        )


def survey(cloud: Cloud, ledger: Ledger, now: Callable[[], float], rules: Rules = DEFAULT_RULES) -> Survey:
    """List the vendor, then read the ledger. In this order a resource that a row should tell of has one: the row of
    everything in the listing was committed before the listing began, or the ledger does not know it at all."""
    listing = list_owned(cloud, now)
    listed_until_unix_s = now()
    open_rows = [row for row in ledger.open_rows() if row.vendor == cloud.vendor]
    ended_runs = ledger.ended_runs()
    by_id = {row.cloud_id: row for row in open_rows if row.cloud_id}
    by_intent = {row.intent_id: row for row in open_rows}

    def judged(resource: Resource) -> Judged:
        shown = seen(resource, listing.read_unix_s, rules)
        tagged = shown.intent_id if shown.ours else ""
        row = by_id.get(shown.cloud_id) or by_intent.get(tagged) or ledger.row_of(shown.vendor, shown.cloud_id)
        if row is None and tagged:
            row = ledger.row(tagged)
        decision = judge(
            row,
            shown,
            now_unix_s=listing.read_unix_s,
            controller=liveness(shown.controller if row is None else row.controller),
            run_ended=row is not None and row.server_run_id in ended_runs,
            ledger_id=ledger.ledger_id,
            rules=rules,
        )
        return Judged(resource=resource, seen=shown, row=row, decision=decision)

    found = tuple(map(judged, listing.resources))
    return Survey(cloud, ledger, rules, listing, found, ended_runs, listed_until_unix_s)


def _whole_survey(cloud: Cloud, ledger: Ledger, now: Callable[[], float], rules: Rules) -> Survey:
    """A survey by a complete listing, if one of a few tries gives one: a single lost answer must not cost the proof."""
    found = survey(cloud, ledger, now, rules)
    for _ in range(LISTING_TRIES - 1):
        if found.listing.complete:
            break
        found = survey(cloud, ledger, now, rules)
    return found


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Something that nobody may use and that may still bill. reason: why nobody may. age_s: None if not known.

    usd_per_hour: of a server what the ledger says, else the listing, else the vendor's price list for its type on
    demand; None where none of them tells; 0 for what is in its server's price (with_server) or free.
    """

    vendor: str
    place: str
    name: str
    cloud_id: str
    kind: str
    reason: str
    age_s: float | None
    usd_per_hour: Decimal | None
    stuck: bool
    with_server: bool = False

    @property
    def price(self) -> str:
        if self.usd_per_hour is None:
            return "price unknown"
        if self.with_server:
            return "in its server's"
        return f"{self.usd_per_hour:.4f}" if self.usd_per_hour else "free"

    @property
    def why(self) -> str:
        return self.reason.replace("_", " ") + (", STUCK" if self.stuck else "")

    @property
    def usd_so_far(self) -> Decimal | None:
        """What it has cost since it was made, at that price, without the vendor's minimum and rounding."""
        if self.usd_per_hour is None or self.age_s is None:
            return None
        return self.usd_per_hour * Decimal(max(self.age_s, 0.0)) / 3600


@dataclass(frozen=True, kw_only=True)
class LeakReport:
    """items: shown by a listing. unproven: not shown, and not yet proven gone. watched: creates that were never
    answered, absent so far, and looked for until their deadline. in_use: servers that are kept, and why.
    listed: the proof, what was listed, where and when. by_tags_alone: the ledger could not be read; what it had marked
    for deletion looks like a server in use then."""

    items: tuple[Leak, ...]
    unproven: tuple[Leak, ...]
    watched: tuple[Leak, ...]
    in_use: tuple[Decision, ...]
    listed: tuple[Listed, ...]
    by_tags_alone: bool = False

    @property
    def clean(self) -> bool:
        """Whether it is proven that nothing is left behind. An incomplete listing proves nothing, and none neither."""
        listed_whole = bool(self.listed) and all(listed.complete for listed in self.listed)
        return listed_whole and not self.items and not self.unproven and not self.n_not_vouched_for

    @property
    def n_not_vouched_for(self) -> int:
        """Servers of which only the ledger could tell whether somebody may use them."""
        return len(self.in_use) if self.by_tags_alone else 0

    @property
    def usd_per_hour(self) -> Decimal:
        """Of what is left and has a known price."""
        return sum((leak.usd_per_hour or Decimal(0) for leak in self.items), Decimal(0))

    @property
    def verdict(self) -> str:
        """The report in one line, the same wherever it is shown."""
        if self.clean:
            return "Nothing is left behind"
        parts = []
        if self.items:
            parts.append(f"{_count(self.items, 'resource is', 'resources are')} left behind, at {self._money()}")
        if self.unproven:
            parts.append(f"{_count(self.unproven, 'deletion is', 'deletions are')} not proven yet")
        if self.n_not_vouched_for:
            servers = _count(self.in_use, "server that is there", "servers that are there")
            parts.append(f"of {servers} nothing is proven, because the ledger cannot be read")
        if not self.listed:
            parts.append("no vendor was listed, so nothing is proven")
        partial = [listed.vendor for listed in self.listed if not listed.complete]
        if partial:
            parts.append(f"of {', '.join(partial)} nothing is proven, because it could not be listed whole")
        return "; ".join(parts)

    def _money(self) -> str:
        unknown = [leak for leak in self.items if leak.usd_per_hour is None]
        if not unknown:
            return f"{self.usd_per_hour:.4f} USD/h"
        if not self.usd_per_hour:
            return "an unknown price"
        return f"{self.usd_per_hour:.4f} USD/h and the unknown price of {len(unknown)} of them"


def _count(things: Sequence[object], one: str, many: str) -> str:
    return f"{len(things)} {one if len(things) == 1 else many}"


def leaks(
    clouds: Sequence[Cloud],
    ledger: Ledger,
    now: Callable[[], float],
    *,
    rules: Rules = DEFAULT_RULES,
    rates: Mapping[str, Rate] = KNOWN_RATES,
    broken: Mapping[str, str] = MappingProxyType({}),
) -> LeakReport:
    """List every cloud and say what is left behind. Changes nothing. now: for vendors without a clock of their own.
    rates: for price lists in other currencies. broken: vendors that cannot be opened, and why."""
    items: list[Leak] = []
    absent: list[tuple[Leak, str]] = []
    in_use: list[Decision] = []
    listed = list(not_listed(broken, now()))
    for cloud in clouds:
        found = _whole_survey(cloud, ledger, clock_of(cloud, WallClock(now)).now, rules)
        listed.append(found.listed())
        prices = Prices(cloud, rates, datetime.fromtimestamp(found.listing.read_unix_s, UTC).date())
        priced = {j.seen.intent_id for j in found.judged if _is_our_server(j.seen) and prices.of(j.resource, j.row)}
        items += [_shown(judged, prices, priced) for judged in found.judged if judged.decision.action == DELETE]
        in_use += [j.decision for j in found.judged if j.decision.action != DELETE and _is_our_server(j.seen)]
        for row in ledger.open_rows():
            if row.vendor == cloud.vendor and not remains_of(row, found.listing):
                decision = found.missing(row)
                if row.state is not ResourceState.INTENDED and decision.reason != "in_use":
                    absent.append((_not_shown(row, decision), decision.reason))
    return LeakReport(
        items=tuple(items),
        unproven=tuple(leak for leak, reason in absent if reason != LOST_CREATE),
        watched=tuple(leak for leak, reason in absent if reason == LOST_CREATE),
        in_use=tuple(in_use),
        listed=tuple(listed),
        by_tags_alone=ledger.is_volatile,
    )


def _is_our_server(shown: Seen) -> bool:
    return shown.ours and shown.kind == SERVER and shown.state != TERMINATED


def _shown(judged: Judged, prices: Prices, priced: set[str]) -> Leak:
    """priced: intents of which a server is listed whose price is known."""
    resource, row = judged.resource, judged.row
    own = prices.of(resource, row)
    in_price = row is not None or (not own and resource.vendor not in BILLED_APART)
    with_server = in_price and resource.kind != SERVER and judged.seen.intent_id in priced
    return Leak(
        vendor=resource.vendor,
        place=resource.place,
        name=resource.name,
        cloud_id=resource.cloud_id,
        kind=resource.kind,
        reason=judged.decision.reason,
        age_s=judged.decision.evidence["age_s"],
        usd_per_hour=Decimal(0) if with_server else own,
        stuck=row is not None and row.stuck,
        with_server=with_server and resource.kind not in FREE_KINDS,
    )


def _not_shown(row: LedgerRow, decision: Decision) -> Leak:
    return Leak(
        vendor=row.vendor,
        place=row.place,
        name=row.name,
        cloud_id=row.cloud_id,
        kind=SERVER,
        reason=decision.reason,
        age_s=decision.t_s - (row.sent_unix_s or row.intended_unix_s),
        usd_per_hour=row.usd_per_hour or None,
        stuck=row.stuck,
    )
