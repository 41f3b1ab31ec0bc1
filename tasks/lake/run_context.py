"""What only the controller knows about a server run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tasks.domain.actions import Decision
from tasks.domain.cells import Reason


@dataclass(frozen=True, kw_only=True)
class ControllerPhase:
    """A step that the controller timed: create, boot, connect, upload, land, teardown, ..."""

    name: str
    started_unix_s: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Goes into the rows beside the plan and the event log. All times are unix seconds of the controller's clock.

    outcome, reason, detail: how the run ended, where the controller knows better than the log (a failed create, a
    cancel); "" lets the log tell.
    lost_reason: what cells get that had no end when the log stopped without its Finished line.
    ssh_ready_unix_s: the first answer over SSH; agent_started_unix_s: just before the agent was started.
    price_usd_per_hour, max_usd: None takes the plan's. billed_s: None takes the time from start to end.
    cost_usd: None takes price times billed seconds; give the ledger's figure where there is one.
    resources: rows of the ledger under the column names of the lake, times as unix seconds.
    licences: by model name.
    """

    vendor: str
    started_unix_s: float
    ended_unix_s: float
    place: str = ""
    region: str = ""
    isolation: str = ""
    cloud_id: str = ""
    attempt: int = 1
    spot: bool = False
    outcome: str = ""
    reason: str = ""
    detail: str = ""
    lost_reason: Reason = Reason.SERVER_LOST
    price_usd_per_hour: Decimal | None = None
    list_price_per_hour: Decimal | None = None
    currency: str = "USD"
    usd_per_currency: Decimal = Decimal(1)
    price_source: str = ""
    price_read_unix_s: float | None = None
    billed_s: float | None = None
    cost_usd: Decimal | None = None
    max_usd: Decimal | None = None
    engine: str = "llama.cpp"
    engine_commit: str = ""
    agent_version: str = ""
    code_commit: str = ""
    bytes_sent_before_bench: int | None = None
    ssh_ready_unix_s: float | None = None
    agent_started_unix_s: float | None = None
    phases: Sequence[ControllerPhase] = ()
    decisions: Sequence[Decision] = ()
    resources: Sequence[Mapping[str, Any]] = ()
    licences: Mapping[str, str] = field(default_factory=dict)
