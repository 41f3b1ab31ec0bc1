"""What a sweep will do, before it does it: which servers, how long, for how much at most."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import ROUND_UP, Decimal
from typing import Sequence

from tasks.domain.run_plan import LadderStep, ModelSpec

CENT_OF_A_CENT = Decimal("0.0001")


@dataclass(frozen=True)
class Offer:
    """A server type as far as planning is concerned. `link_bytes_per_s` is 0 where the vendor does not say."""

    vendor: str
    name: str
    vcpus: int
    memory_bytes: int
    disk_bytes: int
    usd_per_hour: Decimal
    link_bytes_per_s: float = 0.0


@dataclass(frozen=True)
class PlannedServer:
    """One line of the plan. `run` is false when there is nothing to do or it cannot be done; `why` says so.

    low_s..high_s: seconds of the run if every first cell misses its gate .. if every gate passes only just,
    cut at the deadline and at the money cap. reserve_usd: what is set aside before the create.
    """

    offer: Offer
    run: bool
    why: str
    models: tuple[str, ...]
    low_s: float
    high_s: float
    low_usd: Decimal
    high_usd: Decimal
    reserve_usd: Decimal
    over_budget: bool = False
    billing_minimum_s: int = 0
    billing_increment_s: int = 1


@dataclass(frozen=True)
class SweepPlan:
    sweep_id: str
    servers: tuple[PlannedServer, ...]
    max_usd: Decimal

    def to_run(self) -> tuple[PlannedServer, ...]:
        return tuple(s for s in self.servers if s.run)

    @property
    def over_budget(self) -> bool:
        """Whether money is all that keeps the sweep from running anything."""
        return not self.to_run() and any(s.over_budget for s in self.servers)

    @property
    def high_usd(self) -> Decimal:
        return sum((s.high_usd for s in self.to_run()), Decimal(0))

    @property
    def low_usd(self) -> Decimal:
        return sum((s.low_usd for s in self.to_run()), Decimal(0))


SETUP_S = 300.0
"""Beside the deadline of the run itself: what create, connect, upload and teardown may take."""


def at_once_usd(plan: SweepPlan, n_parallel: int, overrun_s: float) -> Decimal:
    """What the dearest servers that may run at once reserve together, with the time for create, teardown and a late
    reaper (overrun_s) that a create adds to each reservation. More than the cap: some find no money left, and fail."""
    beyond_s = SETUP_S + overrun_s
    each = sorted((s.reserve_usd + cost_usd(beyond_s, s.offer.usd_per_hour) for s in plan.to_run()), reverse=True)
    return sum(each[:n_parallel], Decimal(0))


def cost_usd(seconds: float, usd_per_hour: Decimal, minimum_s: int = 0, increment_s: int = 1) -> Decimal:
    """What `seconds` of a server cost, rounded up to the vendor's increment and its minimum."""
    step = max(increment_s, 1)
    billed = max(minimum_s, -(-int(-(-seconds // 1)) // step) * step)
    return (usd_per_hour * billed / 3600).quantize(CENT_OF_A_CENT, ROUND_UP)


def plan_server(
    offer: Offer,
    models: Sequence[ModelSpec],
    ladder: Sequence[LadderStep],
    *,
    n_repeats: int,
    max_usd: Decimal,
    deadline_s: float,
    done: bool = False,
    cannot: str = "",
    billing_minimum_s: int = 0,
    billing_increment_s: int = 1,
) -> PlannedServer:
    """Plan one server; see PlannedServer. `cannot`: why it cannot be had at all, "" if it can. Overheads of create and
    teardown are taken as one minute."""
    overhead_s = 60.0
    link = offer.link_bytes_per_s or 125e6
    room = min(offer.memory_bytes, offer.disk_bytes)
    fitting = [m for m in sorted(models, key=lambda m: m.planned_bytes) if m.planned_bytes < room]
    cap_s = deadline_s
    if offer.usd_per_hour > 0:
        cap_s = min(cap_s, float(max_usd / offer.usd_per_hour) * 3600)
    slowest_s = sum(m.planned_bytes / link for m in fitting)
    slowest_s += sum((n_repeats + 1) * s.n_tokens / s.min_tok_per_s for s in ladder) * len(fitting)
    high_s = min(cap_s, overhead_s + slowest_s)
    low_s = min(cap_s, overhead_s + (fitting[0].bytes / link if fitting else 0.0))

    def usd(seconds: float) -> Decimal:
        return cost_usd(seconds, offer.usd_per_hour, billing_minimum_s, billing_increment_s)

    why = "measured already" if done else cannot or ("" if fitting else "no model fits into memory and disk")
    names = tuple(m.name for m in fitting)
    return PlannedServer(
        offer, not why, why, names, low_s, high_s, usd(low_s), usd(high_s), usd(cap_s),
        billing_minimum_s=billing_minimum_s, billing_increment_s=billing_increment_s,
    )  # fmt: skip


def plan_sweep(sweep_id: str, servers: Sequence[PlannedServer], max_usd: Decimal) -> SweepPlan:
    """Cut the list at the sweep's cap: a server whose reservation no longer fits is left out and says so."""
    left, out = max_usd, []
    for server in servers:
        if server.run and server.reserve_usd > left:
            why = f"its reservation of {server.reserve_usd} USD does not fit under the sweep's cap"
            server = replace(server, run=False, why=why, over_budget=True)
        elif server.run:
            left -= server.reserve_usd
        out.append(server)
    return SweepPlan(sweep_id, tuple(out), max_usd)
