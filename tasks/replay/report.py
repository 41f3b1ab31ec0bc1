"""What a replay found, in tables: hours, USD and points against the record, with intervals over servers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from tasks.domain.cells import OUTCOME_OF, TASKS
from tasks.replay.recorded import UNTRIED, RecordedRun
from tasks.replay.score import RunScore

N_RESAMPLES = 1000
SEED = 20250429
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """A ratio with its 95 % interval over servers."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One line of the report. Points are cells with a mean: recorded, of them kept and lost, and gained beside them.

    usd_* and usd count the runs that have a price only.
    """

    name: str
    n_runs: int
    recorded_h: float
    replayed_h: float
    hours: Share
    recorded_usd: float
    replayed_usd: float
    usd: Share
    points: int
    lost: int
    gained: int
    lost_share: Share


@dataclass(frozen=True)
class Report:
    """The whole, by vendor, by model, by task (these two: time inside llama-bench only), and what became of means.

    shift_*: quantiles of the moved share of means that both have. repeats: mean number of them per kept point.
    spent_h: hours of the replay by what was done; `outside` is before and after the program, as recorded.
    billed_usd: of the record and of the replay, rounded up as the vendors bill.
    wrong_stops: ladders that the record ended although the model fitted and was fast enough; kept_going: of those.
    """

    total: Line
    by_vendor: tuple[Line, ...]
    by_model: tuple[Line, ...]
    by_task: tuple[Line, ...]
    shift_p50: float
    shift_p90: float
    shift_p99: float
    repeats: float
    wrong_stops: int
    kept_going: int
    lost_by_reason: dict[str, int]
    spent_h: dict[str, float]
    billed_usd: tuple[float, float]


def report(runs: Sequence[RecordedRun], scores: Sequence[RunScore]) -> Report:
    """Put the scores of `replay` beside the runs that they are of, in the same order."""
    shifts = np.abs([c.shift for s in scores for c in s.cells if c.shift is not None])
    kept = [c.n_samples for s in scores for c in s.cells if c.was_ok and c.is_ok]
    reasons: dict[str, int] = defaultdict(int)
    spent: dict[str, float] = defaultdict(float)
    for score in scores:
        for cell in score.cells:
            if cell.was_ok and not cell.is_ok:
                reasons[cell.reason.value] += 1
        for what, _, seconds in score.spent:
            spent[what] += seconds / 3600
        spent["outside"] += (score.replayed_s - sum(seconds for _, _, seconds in score.spent)) / 3600
    quantiles = np.quantile(shifts, [0.5, 0.9, 0.99]) if len(shifts) else np.zeros(3)
    vendors = sorted({s.vendor for s in scores})
    models = [m.name for m in max((run.models for run in runs), key=len, default=())]
    return Report(
        total=_line("all", scores),
        by_vendor=tuple(_line(v, [s for s in scores if s.vendor == v]) for v in vendors),
        by_model=tuple(_part(model, runs, scores, model=model) for model in models),
        by_task=tuple(_part(task, runs, scores, task=task) for task in TASKS),
        shift_p50=float(quantiles[0]),
        shift_p90=float(quantiles[1]),
        shift_p99=float(quantiles[2]),
        repeats=float(np.mean(kept)) if kept else 0.0,
        wrong_stops=sum(s.wrongly_stopped for s in scores),
        kept_going=sum(s.kept_going for s in scores),
        lost_by_reason=dict(sorted(reasons.items(), key=lambda item: -item[1])),
        spent_h=dict(spent),
        billed_usd=_billed_usd(scores),
    )


def _billed_usd(scores: Sequence[RunScore]) -> tuple[float, float]:
    priced = [(s, s.usd_per_hour / 3600) for s in scores if s.usd_per_hour is not None]
    return sum(s.recorded_billed_s * price for s, price in priced), sum(
        s.replayed_billed_s * price for s, price in priced
    )


def _line(name: str, scores: Sequence[RunScore]) -> Line:
    seconds = [(s.recorded_s, s.replayed_s) for s in scores]
    return _counted(name, scores, seconds, lambda model, task: True)


def _part(
    name: str, runs: Sequence[RecordedRun], scores: Sequence[RunScore], *, model: str = "", task: str = ""
) -> Line:
    """One model or task; its seconds are those of llama-bench processes."""

    def belongs(of_model: str, of_task: str) -> bool:
        return model in ("", of_model) and task in ("", of_task)

    seconds = []
    for run, score in zip(runs, scores, strict=True):
        recorded = sum(
            call.wall_s for c, call in run.calls.items() if call.status != UNTRIED and belongs(c.model, c.task)
        )
        replayed = sum(s for _, c, s in score.spent if c is not None and belongs(c.model, c.task))
        seconds.append((recorded, replayed))
    return _counted(name, scores, seconds, belongs)


def _counted(
    name: str,
    scores: Sequence[RunScore],
    seconds: Sequence[tuple[float, float]],
    belongs: Callable[[str, str], bool],
) -> Line:
    columns = np.zeros((len(scores), 7))
    for row, (score, (recorded_s, replayed_s)) in enumerate(zip(scores, seconds, strict=True)):
        price = score.usd_per_hour or 0.0
        cells = [c for c in score.cells if belongs(c.cell.model, c.cell.task)]
        columns[row] = (
            recorded_s / 3600,
            replayed_s / 3600,
            recorded_s / 3600 * price,
            replayed_s / 3600 * price,
            sum(c.was_ok for c in cells),
            sum(c.was_ok and not c.is_ok for c in cells),
            sum(c.is_ok and not c.was_ok for c in cells),
        )
    total = columns.sum(axis=0)
    low, high = _intervals(columns)
    return Line(
        name=name,
        n_runs=len(scores),
        recorded_h=float(total[0]),
        replayed_h=float(total[1]),
        hours=Share(_ratio(total[1], total[0]), low[0], high[0]),
        recorded_usd=float(total[2]),
        replayed_usd=float(total[3]),
        usd=Share(_ratio(total[3], total[2]), low[1], high[1]),
        points=int(total[4]),
        lost=int(total[5]),
        gained=int(total[6]),
        lost_share=Share(_ratio(total[5], total[4]), low[2], high[2]),
    )


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def _intervals(columns: Floats) -> tuple[list[float], list[float]]:
    """Bootstrap over servers: the 2.5 % and 97.5 % quantiles of hours, USD and lost points as shares."""
    n = len(columns)
    if n < 2:
        return [0.0] * 3, [0.0] * 3
    weights = np.random.default_rng(SEED).multinomial(n, np.full(n, 1.0 / n), size=N_RESAMPLES)
    sums = weights @ columns
    shares = [np.divide(sums[:, a], sums[:, b], where=sums[:, b] > 0, out=np.zeros(N_RESAMPLES))
              for a, b in ((1, 0), (3, 2), (5, 4))]  # fmt: skip
    bounds = [np.quantile(share, [0.025, 0.975]) for share in shares]
    return [float(b[0]) for b in bounds], [float(b[1]) for b in bounds]


def write_cells(path: Path, scores: Sequence[RunScore]) -> None:
    """Every cell that either of both measured, one row each, as Parquet."""
    rows = [
        {
            "vendor": s.vendor,
            "server": s.server,
            "run": s.run,
            "usd_per_hour": s.usd_per_hour,
            "recorded_run_s": s.recorded_s,
            "replayed_run_s": s.replayed_s,
            "model": c.cell.model,
            "task": c.cell.task,
            "n_tokens": c.cell.n_tokens,
            "recorded_measured": c.was_ok,
            "outcome": OUTCOME_OF[c.reason].value,
            "reason": c.reason.value,
            "n_samples": c.n_samples,
            "mean_shift_ratio": c.shift,
        }
        for s in scores
        for c in s.cells
    ]
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(path, compression="zstd")
