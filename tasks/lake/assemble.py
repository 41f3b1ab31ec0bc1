"""Rows of one server run from its plan, its event log and what the controller knows. Pure: no clock, no files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from tasks.domain.burst import burst_of
from tasks.domain.cells import Outcome, Reason
from tasks.domain.run_plan import RunPlan
from tasks.lake.cell_results import EndedCell, ended_cells
from tasks.lake.cell_rows import CellRows
from tasks.lake.columns import METHODOLOGY_VERSION, SCHEMA_VERSION, TIME
from tasks.lake.foreign import as_column, as_json, as_time, as_usd
from tasks.lake.machine_rows import hardware_rows, telemetry_rows, with_columns
from tasks.lake.overlap import overlap_s, union
from tasks.lake.run_context import RunContext
from tasks.lake.run_log import RunLog
from tasks.lake.schema import DOWNLOADS, PHASES, RESOURCES
from tasks.lake.timeline import Download
from tasks.lake.variant_rows import variant_rows

Rows = dict[str, list[dict[str, Any]]]
Timed = tuple[float, str, dict[str, Any], float]  # started, name, columns that say of what, seconds

# Reasons of a Finished line that are no reason of a cell.
COMPLETE = "complete"
AGENT_ERROR = "agent_error"


def rows_from_events(plan: RunPlan, events: Iterable[Any], context: RunContext) -> Rows:
    """Rows of every table of the lake for one server run, ready for `writer.land`.

    events: the lines of the agent's log as parsed JSON, in any order and with doubles; what is no event is counted
    in `n_events_unreadable`. Each cell of the plan gives exactly one row. Where the log has no Finished line, what
    it proves is kept and the other cells get `context.lost_reason`.
    """
    log = with_columns(RunLog(events, context.started_unix_s))
    head = {
        "sweep_id": plan.sweep_id,
        "server_run_id": plan.server_run_id,
        "vendor": context.vendor,
        "server": plan.server,
        "schema_version": SCHEMA_VERSION,
    }
    ended = ended_cells(plan, log, context.lost_reason, context.detail)
    builder = CellRows(plan, log, head, context.licences)
    samples = {e.result.cell: builder.samples(e) for e in ended}
    cells = [builder.cell(e, samples[e.result.cell]) for e in ended]
    downloads = [{**head, **_download(plan, d, log)} for d in log.downloads]
    run = _Run(plan, log, context, ended)
    return {
        "server_runs": [{**head, **run.row(cells, downloads)}],
        "cells": cells,
        "samples": [row for rows in samples.values() for row in rows],
        "downloads": downloads,
        "decisions": [{**head, **row} for row in _decisions(log, context)],
        "phases": [{**head, **row} for row in run.phases()],
        "hardware": [{**head, **row} for row in hardware_rows(log)],
        "resources": [{**head, **_resource(r)} for r in context.resources],
        "telemetry": [{**head, **row} for row in telemetry_rows(log)],
        "variants": [{**head, **row} for row in variant_rows(plan, log)],
    }


class _Run:
    """The row of `server_runs` and the phases."""

    def __init__(self, plan: RunPlan, log: RunLog, context: RunContext, ended: list[EndedCell]) -> None:
        self.plan, self.log, self.context, self.ended = plan, log, context, ended
        self.counts = Counter(e.result.outcome for e in ended)
        self.n_resumed = sum(e.resumed for e in ended)
        price = context.price_usd_per_hour
        self.usd_per_hour = as_usd(plan.price_usd_per_hour if price is None else price)
        self.billed_s = context.billed_s
        if self.billed_s is None:
            self.billed_s = max(0.0, context.ended_unix_s - context.started_unix_s)

    def row(self, cells: list[dict[str, Any]], downloads: list[dict[str, Any]]) -> dict[str, Any]:
        context, plan, log = self.context, self.plan, self.log
        outcome, reason, detail = self._outcome()
        builds = Counter(c["build"] for c in cells if c.get("build") and c["outcome"] == Outcome.MEASURED.value)
        commits = [c["engine_commit"] for c in cells if c.get("engine_commit")]
        cost = context.cost_usd if context.cost_usd is not None else self._usd(self.billed_s or 0.0)
        gates = {"policy": plan.policy, "options": plan.policy_options, "ladder": [vars(s) for s in plan.ladder]}
        return {
            "started_at": as_time(context.started_unix_s),
            "ended_at": as_time(context.ended_unix_s),
            **{name: getattr(context, name) or None for name in ("place", "region", "isolation", "cloud_id")},
            "attempt": context.attempt,
            "spot": context.spot,
            "outcome": outcome,
            "reason": reason,
            "detail": detail or None,
            "price_usd_per_hour": self.usd_per_hour,
            "list_price_per_hour": as_usd(context.list_price_per_hour),
            "currency": context.currency,
            "usd_per_currency": as_usd(context.usd_per_currency),
            "price_source": context.price_source or None,
            "price_read_at": as_time(context.price_read_unix_s),
            "billed_s": self.billed_s,
            "cost_usd": as_usd(cost),
            "max_usd": as_usd(plan.max_usd if context.max_usd is None else context.max_usd),
            "policy": plan.policy,
            "policy_sha256": _sha256(as_json(gates)),
            "plan_sha256": _sha256(plan.to_json()),
            "guard": plan.guard,
            "engine": context.engine,
            "engine_commit": commits[-1] if commits else _text(context.engine_commit),
            **_burst(context.vendor, plan.server),
            "engine_build": builds.most_common(1)[0][0] if builds else None,
            "agent_version": _text(context.agent_version),
            "agent_sha256": _text(log.agent.get("agent_sha256")),
            "code_commit": context.code_commit or None,
            "methodology_version": METHODOLOGY_VERSION,
            "bytes_sent_before_bench": context.bytes_sent_before_bench,
            **self._readiness(),
            "bytes_downloaded": sum(max(0, d["bytes"] - d["bytes_resumed"]) for d in downloads),
            "n_cells": len(cells),
            "n_resumed": self.n_resumed,
            **{f"n_{o.value}": self.counts[o] for o in Outcome},
            "n_events": log.n_events,
            "n_events_missing": log.n_missing,
            "n_events_unreadable": log.n_unreadable,
        }

    def _outcome(self) -> tuple[str, str, str]:
        context, log = self.context, self.log
        outcome, reason, detail = context.outcome, context.reason, context.detail
        if log.finished is None:
            outcome = outcome or ("interrupted" if log.n_events else "failed")
            return outcome, reason or context.lost_reason.value, detail or self._agent_error()
        said = str(log.finished.get("reason") or COMPLETE)
        if not outcome and said == Reason.CANCELLED.value:
            outcome = "cancelled"
        elif not outcome and said in (AGENT_ERROR, Reason.SERVER_FAILED.value):
            outcome, detail = "failed", detail or self._agent_error()
        elif not outcome and self.counts[Outcome.FAILED]:
            return self._some_failed()
        elif not outcome:
            only_gated = self.counts[Outcome.GATED] > 0 and self.counts[Outcome.MEASURED] == 0
            outcome = "gated" if only_gated else "completed"
        return outcome, reason or said, detail

    def _some_failed(self) -> tuple[str, str, str]:
        """A run with failed cells is not complete, however it ended: started again, it tries them again."""
        failed = Counter(e.result.reason.value for e in self.ended if e.result.outcome is Outcome.FAILED)
        reason = failed.most_common(1)[0][0]
        return "failed", reason, f"{failed.total()} of {len(self.ended)} cells failed"

    def _agent_error(self) -> str:
        error = self.log.agent_error or {}
        return ": ".join(str(error[key]) for key in ("error_kind", "error") if error.get(key))

    def _readiness(self) -> dict[str, float | None]:
        """How soon measuring began; both clocks are used only for differences of their own times."""
        context, log = self.context, self.log
        if not log.processes or log.start_s is None:
            return {}
        if context.ssh_ready_unix_s is None or context.agent_started_unix_s is None:
            return {}
        span = (log.start_s, log.processes[0].started_s)
        gross_s = context.agent_started_unix_s - context.ssh_ready_unix_s + span[1] - span[0]
        moving = union([i for d in log.downloads for i in d.moving(log.end_s)])
        return {
            "ssh_ready_to_first_bench_s": gross_s,
            "ssh_ready_to_first_bench_net_s": gross_s - overlap_s(span, moving),
        }

    def phases(self) -> Iterator[dict[str, Any]]:
        """What the controller and the agent timed themselves, and the rest from the events."""
        told: list[Timed] = [(p.started_unix_s, p.name, {}, p.seconds) for p in self.context.phases]
        told += [(p.at_s, p.raw["name"], _of_cell(p.raw), float(p.raw["seconds"])) for p in self.log.phases]
        names = {name for _, name, _, _ in told}
        told += [p for p in self._from_events() if p[1] not in names]
        for k, (started_s, name, of, seconds) in enumerate(sorted(told, key=lambda p: (p[0], p[1])), 1):
            yield {
                "k": k,
                "name": name,
                **of,
                "started_at": as_time(started_s),
                "seconds": max(0.0, seconds),
                "usd": self._usd(seconds),
            }

    def _from_events(self) -> Iterator[Timed]:
        log = self.log
        if log.probed is not None and log.start_s is not None:
            yield log.start_s, "probe", {}, log.probed[0] - log.start_s
        for download in log.downloads:
            yield download.started_s, "download", {"model": download.model}, _end(download, log) - download.started_s
        for process in log.processes:
            loaded_s = process.loaded_s or process.ended_s or log.end_s
            ended_s = process.ended_s or log.end_s
            yield process.started_s, "load", {"model": process.model}, loaded_s - process.started_s
            yield process.started_s, "bench", {"model": process.model}, ended_s - process.started_s
        for attempt in (a for attempts in log.attempts.values() for a in attempts):
            cell, ended_s = attempt.cell, attempt.ended_s or log.end_s
            of = {"model": cell.model, "task": cell.task, "n_tokens": cell.n_tokens}
            first_s = attempt.marks_s[0] if attempt.marks_s else ended_s
            if attempt.warmup_s is not None:
                yield attempt.warmup_s, "warmup", of, first_s - attempt.warmup_s
            if attempt.marks_s:
                yield first_s, "repeats", of, ended_s - first_s

    def _usd(self, seconds: float) -> Any:
        return None if self.usd_per_hour is None else as_usd(float(self.usd_per_hour) * max(0.0, seconds) / 3600)


def _burst(vendor: str, server: str) -> dict[str, Any]:
    found = burst_of(vendor, server)
    return {} if found is None else {"burst_kind": found.kind, "burst_baseline_share": found.baseline_share}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text(value: Any) -> str | None:
    return str(value) if value else None


def _of_cell(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {n: as_column(PHASES.column(n), raw[n]) for n in ("model", "task", "n_tokens") if raw.get(n)}


def _end(download: Download, log: RunLog) -> float:
    return log.end_s if download.ended_s is None else download.ended_s


def _download(plan: RunPlan, download: Download, log: RunLog) -> dict[str, Any]:
    end_s = _end(download, log)
    moving_s = sum(end - begin for begin, end in download.moving(end_s))
    moved = max(0, download.bytes_done - download.bytes_resumed)
    hosts = {urlsplit(u).hostname for m in plan.models if m.name == download.model for u in m.urls}
    return {
        "model": download.model,
        "attempt": download.attempt,
        "url_host": download.url_host or (hosts.pop() if len(hosts) == 1 else None),
        "bytes_total": download.bytes_total,
        "bytes": download.bytes_done,
        "bytes_resumed": download.bytes_resumed,
        "started_at": as_time(download.started_s),
        "ended_at": as_time(download.ended_s),
        "seconds": end_s - download.started_s,
        "paused_s": max(0.0, end_s - download.started_s - moving_s),
        "bytes_per_s": moved / moving_s if moving_s > 0 else None,
        "n_retries": as_column(DOWNLOADS.column("n_retries"), download.n_retries),
        "n_connections": as_column(DOWNLOADS.column("n_connections"), download.n_connections),
        "sha256": download.sha256,
        "outcome": download.outcome,
        "reason": download.reason if download.reason in set(Reason) else None,
        "detail": download.detail or None,
    }


def _decisions(log: RunLog, context: RunContext) -> Iterator[dict[str, Any]]:
    for k, line in enumerate(log.decisions, 1):
        raw = line.raw
        yield {
            "k": k,
            "made_by": "conductor",
            "t_s": float(raw["t_s"]),
            "decided_at": as_time(line.at_s),
            **{name: str(raw[name]) for name in ("action", "subject", "reason")},
            "evidence": as_json(raw.get("evidence") or {}),
        }
    for k, decision in enumerate(context.decisions, 1):
        yield {
            "k": k,
            "made_by": "controller",
            "t_s": float(decision.t_s),
            "decided_at": as_time(context.started_unix_s + decision.t_s),
            "action": decision.action,
            "subject": decision.subject,
            "reason": decision.reason,
            "evidence": as_json(decision.evidence),
        }


def _resource(raw: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for column in RESOURCES.own_columns:
        value = raw.get(column.name)
        row[column.name] = value if isinstance(value, datetime) and column.dtype == TIME else as_column(column, value)
    return row
