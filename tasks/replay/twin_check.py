"""How good is a plan that measures one of each twin group, judged on recorded runs?"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.domain.choose import Selection, select
from tasks.replay.recorded import RecordedRun, machine_of
from tasks.replay.score import RunScore
from tasks.replay.truth import speeds_of

COVERAGES = (0.5, 0.8, 0.9, 0.95)
MEASURED_SHARE = 0.5
"""Price of a run as a share of its record, where it was not replayed."""


@dataclass(frozen=True)
class TwinCheck:
    """errors: relative, one per cell of a server that was not run and whose twin measured the cell.

    calm_*: of those cells beside which neither server downloaded anything.
    reliability: for each claimed coverage, the share of those cells inside the interval as shipped; unseen: inside one
    that was fitted on the other half of the groups.
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
    quantiles: Mapping[float, float]
    reliability: Mapping[float, float]
    unseen: Mapping[float, float]

    @property
    def usd_share(self) -> float:
        return self.selection.usd / self.recorded_usd if self.recorded_usd else 0.0


def check_twins(
    runs: Sequence[RecordedRun],
    scores: Sequence[RunScore],
    max_usd: float,
    intervals: Mapping[float, float],
) -> TwinCheck:
    """Choose among the priced servers with data, and compare what the twins foretell with what was recorded.

    scores: of the same runs under the policy with which the chosen ones would be measured. intervals: half-widths of
    log speed by coverage, as in tasks/domain/choose.py.
    """
    kept = [(r, s) for r, s in zip(runs, scores, strict=True) if r.usd_per_hour is not None and r.n_ok]
    by_name = {f"{r.vendor}/{r.server}": r for r, _ in kept}
    cost = {f"{r.vendor}/{r.server}": s.replayed_s / 3600 * (r.usd_per_hour or 0.0) for r, s in kept}
    selection = select([machine_of(r) for r, _ in kept], lambda m: cost[m.name], max_usd)
    logs: list[float] = []
    calm: list[float] = []
    halves: list[int] = []
    n_not_run = 0
    for choice in selection.choices:
        if choice.measure:
            continue
        run = by_name[choice.machine.name]
        own = speeds_of(run)
        n_not_run += len(own)
        if choice.from_ is None:
            continue
        of_twin = by_name[choice.from_.name]
        twin = speeds_of(of_twin)
        found = {cell: abs(math.log(v / twin[cell])) for cell, v in own.items() if cell in twin}
        logs += found.values()
        calm += [log for cell, log in found.items() if cell in run.calm and cell in of_twin.calm]
        halves += [zlib.crc32(repr(choice.machine.key).encode()) % 2] * len(found)
    off, half, quiet = np.array(logs or [0.0]), np.array(halves or [0]), np.array(calm or [0.0])
    return TwinCheck(
        selection=selection,
        recorded_usd=sum(r.usd or 0.0 for r, _ in kept),
        n_cells_not_run=n_not_run,
        n_cells_predicted=len(logs),
        error_p50=float(np.expm1(np.quantile(off, 0.5))),
        error_p90=float(np.expm1(np.quantile(off, 0.9))),
        n_calm=len(calm),
        calm_p50=float(np.expm1(np.quantile(quiet, 0.5))),
        calm_p90=float(np.expm1(np.quantile(quiet, 0.9))),
        quantiles={c: float(np.quantile(off, c)) for c in COVERAGES},
        reliability={c: float(np.mean(off <= intervals[c])) for c in COVERAGES},
        unseen={c: _held_elsewhere(off, half, c) for c in COVERAGES},
    )


def _held_elsewhere(off: npt.NDArray[np.float64], half: npt.NDArray[np.int64], coverage: float) -> float:
    """Share of errors inside the interval that the other half of the groups has shown."""
    inside = 0
    for mine in (half == 0, half == 1):
        if mine.any() and not mine.all():
            inside += int((off[mine] <= np.quantile(off[~mine], coverage)).sum())
    return inside / len(off)
