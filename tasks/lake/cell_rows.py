"""Rows of `cells` and `samples`: every cell of the plan once, every finished repeat once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tasks.domain.cells import Cell, CellResult
from tasks.domain.run_plan import LadderStep, ModelSpec, RunPlan
from tasks.domain.stats import median, summarize
from tasks.lake.cell_results import EndedCell
from tasks.lake.foreign import as_column, as_json, as_time
from tasks.lake.gpu_cells import gpu_columns
from tasks.lake.overlap import Interval, mean_share, overlap_s, union
from tasks.lake.run_log import RunLog
from tasks.lake.schema import CELLS
from tasks.lake.timeline import Attempt

SOURCE = "tokensweep"
_QUANT = re.compile(r"(?:IQ|Q|TQ|BF|F|MXFP)\d+(?:_[0-9A-Z]+)*", re.IGNORECASE)

# Column of `cells` -> key of llama-bench's row.
_ROW_KEYS = {
    "n_depth": "n_depth",
    "n_params": "model_n_params",
    "n_threads": "n_threads",
    "backend": "backends",
    "ngl": "n_gpu_layers",
    "engine_commit": "build_commit",
    "engine_build_number": "build_number",
    "n_batch": "n_batch",
    "n_ubatch": "n_ubatch",
    "cache_type_k": "type_k",
    "cache_type_v": "type_v",
    "flash_attn": "flash_attn",
    "load_mode": "load_mode",
}


class CellRows:
    """Builds the rows; `head` are the columns that every row of the run carries."""

    def __init__(self, plan: RunPlan, log: RunLog, head: Mapping[str, Any], licences: Mapping[str, str]) -> None:
        self._plan = plan
        self._log = log
        self._head = head
        self._licences = licences
        self._specs: dict[str, ModelSpec] = {m.name: m for m in plan.models}
        self._steps: dict[tuple[str, int], LadderStep] = {(s.task, s.n_tokens): s for s in plan.ladder}
        self._moving = union([i for d in log.downloads for i in d.moving(log.end_s)])

    def samples(self, ended: EndedCell) -> list[dict[str, Any]]:
        rows = []
        cell, attempt = ended.result.cell, ended.attempt
        from_row = attempt is not None and attempt.row is not None
        source = "resumed" if ended.resumed else "row" if from_row else "mark"
        marks = attempt.marks_s if attempt is not None else []
        for k, seconds in enumerate(ended.result.samples_s, 1):
            span: Interval | None = (marks[k - 1], marks[k - 1] + seconds) if k <= len(marks) else None
            rows.append(
                {
                    **self._head,
                    **_key(cell),
                    "k": k,
                    "duration_s": seconds,
                    "tok_per_s": cell.n_tokens / seconds,
                    "source": source,
                    "started_at": as_time(span[0]) if span else None,
                    "download_active": overlap_s(span, self._moving) > 0 if span else None,
                    "steal_share": mean_share(span, self._log.telemetry, "steal_share") if span else None,
                }
            )
        return rows

    def cell(self, ended: EndedCell, samples: list[dict[str, Any]]) -> dict[str, Any]:
        result, attempt = ended.result, ended.attempt
        begun_s = None if attempt is None else attempt.warmup_s or (attempt.marks_s[0] if attempt.marks_s else None)
        active = [s["download_active"] for s in samples if s["download_active"] is not None]
        return {
            **self._head,
            **_key(result.cell),
            **self._model(result.cell.model),
            **self._bench(attempt),
            **self._gpu(result.cell, attempt, samples),
            **self._prediction(result.cell),
            **_speed(result),
            "outcome": result.outcome.value,
            "reason": result.reason.value,
            "detail": result.detail,
            "source": SOURCE,
            "resumed": ended.resumed,
            "started_at": as_time(begun_s),
            "observed_at": as_time(ended.ended_s),
            "min_tok_per_s": float(self._steps[result.cell.task, result.cell.n_tokens].min_tok_per_s),
            "download_active": any(active) if active else None,
            "steal_share": _weighted_steal(samples),
        }

    def _model(self, name: str) -> dict[str, Any]:
        spec, header = self._specs[name], self._log.headers.get(name, {})
        fetched = next((d for d in reversed(self._log.downloads) if d.model == name and d.sha256), None)
        named = _QUANT.findall(spec.file)
        values = {
            "model_file": spec.file.rsplit("/", 1)[-1],
            "model_revision": spec.revision or None,
            "model_sha256": (fetched and fetched.sha256) or spec.sha256 or None,
            "model_bytes": (fetched and fetched.bytes_done) or spec.planned_bytes or None,
            "weights": spec.weights,
            "arch": header.get("arch") or None,
            "n_params": header.get("n_params") or None,
            "quant": header.get("quant") or (named[-1].upper() if named else None),
            "licence": self._licences.get(name),
        }
        return {name: as_column(CELLS.column(name), value) for name, value in values.items()}

    def _bench(self, attempt: Attempt | None) -> dict[str, Any]:
        if attempt is None:
            return {}
        row = attempt.row.row if attempt.row is not None and isinstance(attempt.row.row, dict) else {}
        n_repeats = as_column(CELLS.column("n_repeats_planned"), attempt.n_repeats)
        values: dict[str, Any] = {"build": attempt.build or None, "n_repeats_planned": n_repeats}
        if self._plan.n_threads > 0:
            values["n_threads"] = self._plan.n_threads
        for name, key in _ROW_KEYS.items():
            if row.get(key) is not None:
                values[name] = as_column(CELLS.column(name), row[key])
        if row:
            values["bench_row_json"] = as_json(row)
        return values

    def _gpu(self, cell: Cell, attempt: Attempt | None, samples: list[dict[str, Any]]) -> dict[str, Any]:
        if attempt is None:
            return {}
        process = self._log.processes[attempt.process - 1] if attempt.process else None
        seconds = [float(s["duration_s"]) for s in samples]
        spans = [(mark, mark + duration) for mark, duration in zip(attempt.marks_s, seconds, strict=False)]
        return gpu_columns(process, spans, cell.n_tokens, self._log.telemetry)

    def _prediction(self, cell: Cell) -> dict[str, Any]:
        names = ("predicted_low_tok_per_s", "predicted_high_tok_per_s")
        for decision in reversed(self._log.decisions):
            evidence = decision.raw.get("evidence")
            if decision.raw["subject"] == str(cell) and isinstance(evidence, dict) and names[0] in evidence:
                return {name: as_column(CELLS.column(name), evidence.get(name)) for name in names}
        return {}


def _key(cell: Cell) -> dict[str, Any]:
    return {"model": cell.model, "task": cell.task, "n_tokens": cell.n_tokens}


def _speed(result: CellResult) -> dict[str, Any]:
    if not result.samples_s:
        return {"n_samples": 0}
    found = summarize(result.samples_s, result.cell.n_tokens)
    rest = result.samples_s[1:]
    return {
        "n_samples": found.n,
        "tok_per_s_median": found.median,
        "tok_per_s_mean": found.mean,
        "tok_per_s_sd": found.sd,
        "tok_per_s_cv": found.cv,
        "tok_per_s_ci95_low": found.ci95_low,
        "tok_per_s_ci95_high": found.ci95_high,
        "tok_per_s_min": found.min,
        "tok_per_s_max": found.max,
        "first_repeat_ratio": result.samples_s[0] / median(rest) if len(rest) >= 2 else None,
    }


def _weighted_steal(samples: list[dict[str, Any]]) -> float | None:
    known = [(s["steal_share"], s["duration_s"]) for s in samples if s["steal_share"] is not None]
    total_s = sum(seconds for _, seconds in known)
    return sum(share * seconds for share, seconds in known) / total_s if total_s > 0 else None
