"""Events that automations wait for: told to Prefect, and never worth failing for."""

from __future__ import annotations

import logging
from decimal import Decimal

from prefect.events import emit_event

from tasks.leaks import LeakReport

LEAK = "tokensweep.leak"
BUDGET = "tokensweep.budget"
BUDGET_SHARE = Decimal("0.8")

logger = logging.getLogger(__name__)


def tell_leaks(report: LeakReport) -> None:
    """Only when something is left behind that may bill."""
    if not report.items and not report.unproven:
        return
    payload = {
        "n_left": len(report.items),
        "n_unproven": len(report.unproven),
        "usd_per_hour": float(report.usd_per_hour),
        "names": [f"{leak.vendor}/{leak.place}/{leak.name}" for leak in (*report.items, *report.unproven)][:20],
    }
    _emit(LEAK, "tokensweep.leaks", "leaks", payload)


def tell_budget(sweep_id: str, committed_usd: Decimal, cap_usd: Decimal) -> bool:
    """Once four fifths of the cap are spent or reserved; returns whether that is so."""
    if cap_usd <= 0 or committed_usd < cap_usd * BUDGET_SHARE:
        return False
    payload = {"sweep": sweep_id, "committed_usd": float(committed_usd), "cap_usd": float(cap_usd)}
    _emit(BUDGET, f"tokensweep.sweep.{sweep_id}", sweep_id, payload)
    return True


def _emit(event: str, resource_id: str, name: str, payload: dict[str, object]) -> None:
    resource = {"prefect.resource.id": resource_id, "prefect.resource.name": name}
    try:
        emit_event(event, resource, payload=payload)
    except Exception as exc:
        logger.warning("%s: not told: %s: %s", event, type(exc).__name__, exc)
