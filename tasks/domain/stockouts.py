"""Which places are not worth asking, because they had none of a server type a few minutes ago."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence, Tuple

from tasks.domain.actions import Decision

SKIP = "skip"
NO_STOCK_LATELY = "no_stock_lately"
DRY_S = 300.0
"""How long a place that had none is not asked again. Karpenter's AWS provider waits three minutes for the same
(pkg/cache/unavailableofferings.go); ours are five, because a sweep is in no hurry and a refusal may take a minute."""


@dataclass(frozen=True)
class Stockout:
    """A place said that it had none of a server type. code: in the vendor's words."""

    place: str
    code: str
    seen_unix_s: float


def pass_over(
    vendor: str,
    server_type: str,
    places: Sequence[str],
    stockouts: Sequence[Stockout],
    *,
    now_unix_s: float,
    dry_s: float = DRY_S,
) -> Tuple[List[str], List[Decision]]:
    """The places to ask, in their order, and why the others are not.

    A stockout of the future is another host's clock that is ahead; it counts as far as it may be true.
    """
    newest = {s.place: s for s in sorted(stockouts, key=lambda s: s.seen_unix_s)}
    to_ask: List[str] = []
    passed_over: List[Decision] = []
    for place in places:
        seen = newest.get(place)
        age_s = now_unix_s - seen.seen_unix_s if seen else 0.0
        if seen is None or abs(age_s) >= dry_s:
            to_ask.append(place)
            continue
        evidence = {"code": seen.code, "ago_s": round(age_s, 1), "asked_again_in_s": round(dry_s - age_s, 1)}
        subject = f"{vendor}/{server_type}/{place}"
        passed_over.append(Decision(now_unix_s, SKIP, subject, NO_STOCK_LATELY, evidence))
    return to_ask, passed_over
