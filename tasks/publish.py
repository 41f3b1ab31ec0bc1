"""Land the rows of a server run and show what a sweep brought: tables for terminal and UI from the same query."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from tasks.clouds.base import ServerType
from tasks.clouds.request import region_of
from tasks.domain.cells import Reason
from tasks.domain.lifecycle import LedgerRow, cost_usd
from tasks.domain.money import Price, to_usd
from tasks.domain.run_plan import RunPlan
from tasks.lake import ControllerPhase, LandedRun, RunContext, land, open_lake, query, rows_from_events
from tasks.lake_access import lake_address
from tasks.ledger import RunState
from tasks.remote.spool import Spool
from tasks.settings import Settings
from tasks.wiring import Services


@dataclass
class RunRecord:
    """What the controller learns while a server run goes on; becomes the RunContext of its rows.

    Times are by the vendor's clock, `now`.
    """

    started_unix_s: float = field(default_factory=time.time)
    ssh_ready_unix_s: float | None = None
    agent_started_unix_s: float | None = None
    bytes_sent: int | None = None
    isolation: str = ""
    llama_cpp_commit: str = ""
    agent_version: str = ""
    outcome: str = ""
    reason: str = ""
    detail: str = ""
    lost_reason: Reason = Reason.SERVER_LOST
    phases: list[ControllerPhase] = field(default_factory=list)
    engine: str = "llama.cpp"
    spot: bool = False
    vendor: str = ""
    now: Callable[[], float] = time.time

    def write_beside(self, spool_path: Path) -> None:
        """Keep what is known from the beginning, for whoever lands the run if this process dies."""
        known: dict[str, Any] = {"isolation": self.isolation, "llama_cpp_commit": self.llama_cpp_commit}
        known |= {"agent_version": self.agent_version, "engine": self.engine}
        known |= {"spot": self.spot, "vendor": self.vendor}
        spool_path.with_suffix(".record.json").write_text(json.dumps(known))

    @classmethod
    def read_beside(cls, spool_path: Path, started_unix_s: float) -> RunRecord:
        """The record of a run whose controller died; empty where nothing was kept."""
        path = spool_path.with_suffix(".record.json")
        known = json.loads(path.read_text()) if path.is_file() else {}
        return cls(started_unix_s=started_unix_s, **known)

    def phase(self, name: str, started_unix_s: float) -> None:
        """Note a step of the controller that began then and ends now."""
        self.phases.append(
            ControllerPhase(name=name, started_unix_s=started_unix_s, seconds=self.now() - started_unix_s)
        )


@dataclass(frozen=True)
class Landing:
    """What was written, and how the run ended as a whole (columns of server_runs)."""

    landed: LandedRun
    outcome: str
    reason: str
    detail: str


def land_now(
    plan: RunPlan,
    spool_path: Path,
    record: RunRecord,
    server_type: ServerType,
    services: Services,
) -> Landing:
    """Write the run's rows; a second call writes the same files again. The spool goes once they are in the lake."""
    ledger = services.ledger_of(server_type.vendor)
    rows = ledger.rows_of_run(plan.server_run_id)
    now_unix_s = ledger.now()
    with Spool(spool_path) as spool:
        events = spool.read_all()
    last = rows[-1] if rows else None
    price = _price(server_type, last.place if last else "", record.spot, services.settings)
    context = RunContext(
        vendor=server_type.vendor,
        started_unix_s=record.started_unix_s,
        ended_unix_s=now_unix_s,
        place=last.place if last else "",
        region=region_of(last.place) if last else "",
        spot=record.spot,
        isolation=record.isolation,
        cloud_id=last.cloud_id if last else "",
        attempt=max(len(rows), 1),
        outcome=record.outcome,
        reason=record.reason,
        detail=record.detail,
        lost_reason=record.lost_reason,
        price_usd_per_hour=price.usd,
        list_price_per_hour=price.amount,
        currency=price.currency,
        usd_per_currency=price.rate.usd if price.rate else Decimal(1),
        price_source=server_type.price_source,
        price_read_unix_s=server_type.price_read_unix_s,
        billed_s=sum((_billed_s(row, now_unix_s) for row in rows), 0.0),
        cost_usd=sum((_cost_usd(row, now_unix_s) for row in rows), Decimal(0)),
        engine=record.engine,
        engine_commit=record.llama_cpp_commit,
        agent_version=record.agent_version,
        bytes_sent_before_bench=record.bytes_sent,
        ssh_ready_unix_s=record.ssh_ready_unix_s,
        agent_started_unix_s=record.agent_started_unix_s,
        phases=record.phases,
        resources=[_resource_row(row) for row in rows],
    )
    lake_rows = rows_from_events(plan, events, context)
    landed = land(lake_address(services.settings), plan.server_run_id, lake_rows)
    ledger.end_run(plan.server_run_id, RunState.LANDED)
    spool_path.unlink(missing_ok=True)
    for suffix in (".plan.json", ".record.json"):
        spool_path.with_suffix(suffix).unlink(missing_ok=True)
    run = lake_rows["server_runs"][0]
    return Landing(landed, run["outcome"], run["reason"], run["detail"] or "")


def _price(server_type: ServerType, place: str, spot: bool, settings: Settings) -> Price:
    """What the place asks, in the vendor's currency and in USD."""
    amount = server_type.price_in(place, spot=spot)
    return to_usd(amount, server_type.currency, settings.exchange_rates, today=datetime.now(UTC).date())


def _billed_s(row: LedgerRow, now_unix_s: float) -> float:
    """Seconds from its create to its proven end, or to the delete that was taken where that is not proven yet."""
    ended_unix_s = row.gone_unix_s or row.last_delete_unix_s or now_unix_s
    return ended_unix_s - (row.sent_unix_s or ended_unix_s)


def _cost_usd(row: LedgerRow, now_unix_s: float) -> Decimal:
    """What the ledger says, or will say if nothing more happens: the proof may come after the landing."""
    return cost_usd(row, now_unix_s) if row.cost_usd is None else row.cost_usd


def _resource_row(row: LedgerRow) -> dict[str, Any]:
    return {
        "intent_id": row.intent_id,
        "kind": "server",
        "cloud_id": row.cloud_id,
        "name": row.name,
        "place": row.place,
        "state": row.state.value,
        "created_at": row.sent_unix_s,
        "live_at": row.live_unix_s,
        "deleted_at": row.deleting_unix_s,
        "gone_at": row.gone_unix_s,
        "usd": row.cost_usd,
    }


def results(services: Services, sweep_id: str) -> list[dict[str, Any]]:
    """One row per server, model and cell of the sweep, in ladder order: the closing table."""
    sql = """
        SELECT *, tok_per_s AS tok_per_s_median FROM v_speed WHERE sweep_id = ?
        ORDER BY vendor, server, model_bytes, model, task, n_tokens
    """
    with open_lake(lake_address(services.settings), documented=False) as lake:
        return query(lake, sql, [sweep_id]).to_dicts()


def doubts(services: Services, sweep_id: str) -> list[str]:
    """What a reader of the numbers must know of the servers: GPUs that were not used, speeds that moved meanwhile."""
    fell = """
        SELECT server, cpu_fallback AS reason, count(*) AS n FROM v_sweep_cells
        WHERE sweep_id = ? AND cpu_fallback IS NOT NULL AND n_samples > 0 GROUP BY ALL ORDER BY server
    """
    moved = "SELECT server, task, drift_ratio AS ratio FROM v_anchors WHERE sweep_id = ? AND drifted ORDER BY ALL"
    with open_lake(lake_address(services.settings), documented=False) as lake:
        cells, anchors = query(lake, fell, [sweep_id]).to_dicts(), query(lake, moved, [sweep_id]).to_dicts()
    return [
        *(f"{r['server']}: its GPU could not be used ({r['reason']}); {r['n']} cells are its CPU's" for r in cells),
        *(
            f"{r['server']}: the smallest model's {r['task']}, measured once more, had {r['ratio']:.0%} of its speed "
            "before; all cells of this run are flagged anchor_drift"
            for r in anchors
        ),
    ]


def beside_the_ladder(services: Services, sweep_id: str) -> list[dict[str, Any]]:
    """What was measured besides cells, anchors and long runs left out: one row per result."""
    sql = """
        SELECT server, model, kind, label, task, n_prompt, n_gen, n_sequences, device_set, tok_per_s_median, outcome
        FROM variants WHERE sweep_id = ? AND kind NOT IN ('anchor', 'sustain', 'threads') ORDER BY server, model, k
    """
    with open_lake(lake_address(services.settings), documented=False) as lake:
        return query(lake, sql, [sweep_id]).to_dicts()


def run_phases(services: Services, sweep_id: str) -> dict[str, dict[str, float]]:
    """Seconds of each phase, by server."""
    sql = """
        SELECT server, name, sum(seconds) AS seconds, min(started_at) AS began FROM v_phases
        WHERE sweep_id = ? GROUP BY server, name ORDER BY server, began
    """
    out: dict[str, dict[str, float]] = {}
    with open_lake(lake_address(services.settings), documented=False) as lake:
        for row in query(lake, sql, [sweep_id]).to_dicts():
            out.setdefault(row["server"], {})[row["name"]] = row["seconds"]
    return out


def ended_runs(
    services: Services, sweep_id: str, since: datetime, earlier: Collection[str]
) -> dict[tuple[str, str], dict[str, Any]]:
    """The last run of every server of the sweep that has begun since then, by vendor and server, from the lake.
    earlier: ids of runs that had begun before."""
    sql = """
        SELECT vendor, server, server_run_id, outcome, reason, detail FROM server_runs
        WHERE sweep_id = ? AND started_at >= ? ORDER BY started_at
    """
    with open_lake(lake_address(services.settings), documented=False) as lake:
        rows = query(lake, sql, [sweep_id, since]).to_dicts()
    return {(row["vendor"], row["server"]): row for row in rows if row["server_run_id"] not in earlier}


def spend(services: Services, sweep_id: str) -> list[dict[str, Any]]:
    """What the sweep has cost, by vendor."""
    with open_lake(lake_address(services.settings), documented=False) as lake:
        return query(lake, "SELECT * FROM v_spend WHERE sweep_id = ?", [sweep_id]).to_dicts()
