"""How good is a plan that measures twins first, judged on recorded runs?"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.domain.cells import Cell
from tasks.domain.choose import Selection, select, twins_class
from tasks.domain.predict import SPREADS
from tasks.domain.stats import mean, median, sd
from tasks.replay.recorded import RecordedRun, machine_of
from tasks.replay.score import RunScore
from tasks.replay.truth import speeds_of

COVERAGES = (0.5, 0.8, 0.9, 0.95)
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TwinCheck:
    """errors: relative, one per cell of a server that was not run and of which a twin measured the cell.

    calm_*: of those cells beside which none of these servers downloaded anything.
    quantiles: of the error of log speed by coverage, by class of spread (see TWIN_INTERVALS). reliability: for each
    claimed coverage, the share of those cells inside the interval as shipped; unseen: inside one that was fitted on the
    other half of the groups.
    """

    selection: Selection
    recorded_usd: float
    n_cells_not_run: int
    n_cells_predicted: int
    error_p50: float
    error_p90: float
    n_calm: int
    calm_p50: float
    calm_p90: float
    quantiles: Mapping[float, tuple[float, ...]]
    reliability: Mapping[float, float]
    unseen: Mapping[float, float]

    @property
    def usd_share(self) -> float:
        return self.selection.usd / self.recorded_usd if self.recorded_usd else 0.0


@dataclass(frozen=True)
class _Miss:
    """One cell that was foretold. half: which half of the groups it belongs to."""

    off: float
    spread: int
    calm: bool
    half: int


def check_twins(
    runs: Sequence[RecordedRun],
    scores: Sequence[RunScore],
    max_usd: float,
    intervals: Mapping[float, Sequence[float]],
) -> TwinCheck:
    """Choose among the priced servers with data, and compare what the twins foretell with what was recorded.

    scores: of the same runs under the policy with which the chosen ones would be measured. intervals: half-widths of
    log speed by coverage and class of spread, as in tasks/domain/choose.py. What was recorded in different sweeps is
    not compared: a plan is one sweep.
    """
    kept = [(r, s) for r, s in zip(runs, scores, strict=True) if r.usd_per_hour is not None and r.n_ok]
    by_name = {f"{r.vendor}/{r.server}": r for r, _ in kept}
    cost = {f"{r.vendor}/{r.server}": s.replayed_s / 3600 * (r.usd_per_hour or 0.0) for r, s in kept}
    machines = [machine_of(r, sweep="april" if r.is_april else "later") for r, _ in kept]
    selection = select(machines, lambda m: cost[m.name], max_usd)
    misses: list[_Miss] = []
    n_not_run = 0
    for choice in selection.choices:
        if not choice.measure:
            run = by_name[choice.machine.name]
            n_not_run += run.n_ok
            half = zlib.crc32(repr(choice.machine.key).encode()) % 2
            misses += _misses(run, [by_name[m.name] for m in choice.sources], half)
    off = np.array([m.off for m in misses] or [0.0])
    quiet = np.array([m.off for m in misses if m.calm] or [0.0])
    spread, half_of = (np.array([getattr(m, name) for m in misses] or [0]) for name in ("spread", "half"))
    return TwinCheck(
        selection=selection,
        recorded_usd=sum(r.usd or 0.0 for r, _ in kept),
        n_cells_not_run=n_not_run,
        n_cells_predicted=len(misses),
        error_p50=float(np.expm1(np.quantile(off, 0.5))),
        error_p90=float(np.expm1(np.quantile(off, 0.9))),
        n_calm=sum(m.calm for m in misses),
        calm_p50=float(np.expm1(np.quantile(quiet, 0.5))),
        calm_p90=float(np.expm1(np.quantile(quiet, 0.9))),
        quantiles={c: tuple(float(w) for w in _widths(off, spread, c)) for c in COVERAGES},
        reliability={c: float(np.mean(off <= np.array(intervals[c])[spread])) for c in COVERAGES},
        unseen={c: _held_elsewhere(off, spread, half_of, c) for c in COVERAGES},
    )


def _misses(run: RecordedRun, twins: Sequence[RecordedRun], half: int) -> Iterator[_Miss]:
    """How far each cell of the run is from the median of what its twins show."""
    of_twins = [(twin, speeds_of(twin)) for twin in twins]
    for cell, speed in speeds_of(run).items():
        shown = [(twin, speeds[cell]) for twin, speeds in of_twins if cell in speeds]
        if shown:
            yield _Miss(
                off=abs(math.log(speed) - median([math.log(v) for _, v in shown])),
                spread=twins_class([_spread(twin, cell) for twin, _ in shown]),
                calm=cell in run.calm and all(cell in twin.calm for twin, _ in shown),
                half=half,
            )


def _spread(run: RecordedRun, cell: Cell) -> float | None:
    samples_s = run.calls[cell].samples_s
    return sd(samples_s) / mean(samples_s) if len(samples_s) > 1 else None


def _widths(off: Floats, spread: Ints, coverage: float) -> Floats:
    """Half-widths by class of spread; of all cells where a class has none."""
    classes = [off[spread == i] for i in range(len(SPREADS) + 1)]
    return np.array([np.quantile(part if len(part) else off, coverage) for part in classes])


def _held_elsewhere(off: Floats, spread: Ints, half: Ints, coverage: float) -> float:
    """Share of errors inside the interval that the other half of the groups has shown."""
    inside = 0
    for mine in (half == 0, half == 1):
        if mine.any() and not mine.all():
            inside += int((off[mine] <= _widths(off[~mine], spread[~mine], coverage)[spread[mine]]).sum())
    return inside / len(off)
