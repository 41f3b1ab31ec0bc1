"""How each cell of a plan ended, from the agent's event log: whole, cut off, or missing altogether."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from tasks.domain.cells import OUTCOME_OF, Cell, CellResult, Outcome, Reason
from tasks.domain.run_plan import RunPlan
from tasks.lake.run_log import RunLog
from tasks.lake.timeline import Attempt


@dataclass(frozen=True)
class EndedCell:
    """A cell's result with the attempt that gave it, if one did in this run."""

    result: CellResult
    attempt: Attempt | None
    resumed: bool
    ended_s: float | None


def ended_cells(plan: RunPlan, log: RunLog, lost_reason: Reason, run_detail: str = "") -> list[EndedCell]:
    """How each cell of the plan ended, in the order of the ladder. run_detail: what ended the run as a whole."""
    carried = {cell: _timed(samples) for cell, samples in plan.measured}
    found = _reported(log) if log.finished is not None else _reconstructed(log)
    decided_s = {str(d.raw["subject"]): d.at_s for d in log.decisions if d.raw["action"] == "resolve"}
    out = []
    for cell in dict.fromkeys(plan.cells()):
        attempts = log.attempts.get(cell, [])
        resumed = cell in carried and not attempts
        result = found.get(cell)
        if result is None and resumed:
            result = CellResult(cell, Reason.OK, "measured by an interrupted run of this sweep", carried[cell])
        if result is None:
            last = attempts[-1] if attempts else None
            result = CellResult(cell, lost_reason, _lost_detail(log, run_detail), _mark_samples(last) if last else ())
        if result.outcome is Outcome.MEASURED and not result.samples_s:
            detail = f"reported as measured, without a sample. {result.detail}".strip()
            result = CellResult(cell, Reason.SERVER_FAILED, detail)
        resumed = resumed and result.outcome is Outcome.MEASURED
        attempt = _attempt_of(attempts, result.samples_s)
        ended_s = attempt.ended_s if attempt else None
        if ended_s is None:
            ended_s = decided_s.get(str(cell), log.end_s)
        out.append(EndedCell(result, attempt, resumed, None if resumed else ended_s))
    return out


def _lost_detail(log: RunLog, run_detail: str) -> str:
    if log.finished is not None:
        return "the agent finished without a result for it"
    seen = f"the event log stops after line {log.n_events}" if log.n_events else "the agent never started"
    return f"{seen}: {run_detail}" if run_detail else seen


def _timed(samples_s: Any) -> tuple[float, ...]:
    """The samples that are a time; anything else in a log is no measurement."""
    values = samples_s if isinstance(samples_s, (list, tuple)) else ()
    return tuple(float(s) for s in values if isinstance(s, (int, float)) and 0 < s < math.inf)


def _reported(log: RunLog) -> dict[Cell, CellResult]:
    """The conductor's own results from the Finished line."""
    found: dict[Cell, CellResult] = {}
    results = (log.finished or {}).get("results")
    for raw in results if isinstance(results, list) else []:
        try:
            cell = Cell(**raw["cell"])
            reason = Reason(raw["reason"])
        except (KeyError, TypeError, ValueError):
            log.n_unreadable += 1
            continue
        found.setdefault(cell, CellResult(cell, reason, str(raw.get("detail", "")), _timed(raw.get("samples_s"))))
    return found


def _reconstructed(log: RunLog) -> dict[Cell, CellResult]:
    """What a log without a Finished line proves: rows were measured, and a recorded `resolve` stands."""
    found: dict[Cell, CellResult] = {}
    by_name = {str(cell): cell for cell in log.attempts}
    for decision in log.decisions:
        subject, reason = str(decision.raw["subject"]), str(decision.raw["reason"])
        evidence = decision.raw.get("evidence")
        if decision.raw["action"] != "resolve" or reason not in set(Reason):
            continue
        cell = by_name.get(subject) or _cell_named(subject)
        if cell is not None:
            attempts = log.attempts.get(cell, [])
            samples = _mark_samples(attempts[-1]) if attempts else ()
            detail = str(evidence.get("detail", "")) if isinstance(evidence, dict) else ""
            found[cell] = CellResult(cell, Reason(reason), detail, samples)
    for cell, attempts in log.attempts.items():
        row = next((a.row for a in reversed(attempts) if a.row is not None), None)
        if row is not None and _timed(row.samples_s):
            reason_ = found[cell].reason if cell in found else Reason.OK
            reason_ = reason_ if OUTCOME_OF[reason_] is Outcome.MEASURED else Reason.OK
            found[cell] = CellResult(cell, reason_, "", _timed(row.samples_s))
    return found


def _cell_named(name: str) -> Cell | None:
    """The inverse of str(cell)."""
    match = re.fullmatch(r"(.+) (pp|tg)(\d+)", name)
    return Cell(match[1], match[2], int(match[3])) if match else None


def _mark_samples(attempt: Attempt) -> tuple[float, ...]:
    """Seconds of the repeats that ended before the next mark."""
    return tuple(b - a for a, b in zip(attempt.marks_s, attempt.marks_s[1:], strict=False) if b > a)


def _attempt_of(attempts: list[Attempt], samples_s: tuple[float, ...]) -> Attempt | None:
    """The attempt whose repeats these samples are: samples of two processes are never mixed."""
    for attempt in reversed(attempts):
        if attempt.row is not None and _timed(attempt.row.samples_s) == samples_s:
            return attempt
    with_marks = [a for a in attempts if a.row is None and len(a.marks_s) > len(samples_s)] or attempts
    return with_marks[-1] if with_marks else None
