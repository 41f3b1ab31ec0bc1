"""The ledger: a write-ahead record of every resource, of every server run, and of the money they may cost."""

from __future__ import annotations

from tasks.domain.lifecycle import (
    BudgetError,
    Intent,
    LedgerError,
    LedgerRow,
    ResourceState,
    StaleRowError,
)
from tasks.domain.reaping import Liveness
from tasks.ledger.controller import liveness, this_process
from tasks.ledger.resources import ResourceRows, Spending
from tasks.ledger.server_runs import RunState, ServerRun, ServerRuns
from tasks.ledger.stockouts import Stockouts
from tasks.ledger.store import URL_VARIABLE, ledger_url

__all__ = [
    "URL_VARIABLE",
    "BudgetError",
    "Intent",
    "Ledger",
    "LedgerError",
    "LedgerRow",
    "Liveness",
    "ResourceState",
    "RunState",
    "ServerRun",
    "Spending",
    "StaleRowError",
    "ledger_url",
    "liveness",
    "this_process",
]


class Ledger(ResourceRows, ServerRuns, Stockouts):
    """The whole ledger at a SQLAlchemy URL. See `Store` for durability and sharing.

    now: unix seconds; give a virtual clock where the cloud has one.
    """
