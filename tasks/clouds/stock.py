"""What the server runs of one ledger tell each other about stock: a place that had none is left alone for a while."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tasks.clouds.base import Cloud
from tasks.clouds.deletion import LedgerPort
from tasks.clouds.request import ServerRequest
from tasks.domain.lifecycle import LedgerError
from tasks.domain.stockouts import pass_over

logger = logging.getLogger(__name__)


def places_to_ask(
    cloud: Cloud, ledger: LedgerPort, request: ServerRequest, now_unix_s: float
) -> tuple[list[str], list[str]]:
    """The wanted places but for those that had none a short while ago, and why not those."""
    places, passed_over = pass_over(
        cloud.vendor,
        request.server_type,
        list(dict.fromkeys(request.places)),
        ledger.stockouts(cloud.vendor, request.server_type, spot=request.spot),
        now_unix_s=now_unix_s,
        dry_s=cloud.traits.dry_s,
    )
    reasons = []
    for decision in passed_over:
        told, place = decision.evidence, decision.subject.rpartition("/")[2]
        reasons.append(
            f"{place}: {told['code']} {told['ago_s']:.0f} s ago; it is asked again in {told['asked_again_in_s']:.0f} s"
        )
        logger.info("%s: %s is passed over: %s", cloud.vendor, request.server_type, reasons[-1])
    return places, reasons


def note_stockout(cloud: Cloud, ledger: LedgerPort, request: ServerRequest, places: Sequence[str], code: str) -> None:
    """For all server runs that share the ledger. It saves calls and nothing else, so it may fail."""
    try:
        ledger.out_of_stock(cloud.vendor, request.server_type, places, spot=request.spot, code=code)
    except LedgerError as exc:
        logger.warning("%s", exc)
