"""What a replayed run cost and gave, against its record."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.domain.cells import Cell, CellResult, Outcome, Reason
from tasks.domain.known import KnownCell
from tasks.replay.recorded import OK, RecordedRun


@dataclass(frozen=True)
class CellScore:
    """One cell that was recorded as measured, or that the policy measured. shift: of the mean, None unless both are."""

    cell: Cell
    was_ok: bool
    reason: Reason
    n_samples: int
    shift: float | None

    @property
    def is_ok(self) -> bool:
        return self.reason in (Reason.OK, Reason.FEWER_REPEATS)


@dataclass(frozen=True)
class RunScore:
    """One run, recorded and replayed. spent: seconds of the replay by what was done (`head` to `tail`) and cell.

    wrongly_stopped: its ladder was ended by a model that fitted and was fast enough. kept_going: not in the replay.
    *_billed_s: rounded up as the vendor does. known: what the replayed run tells the next one.
    """

    vendor: str
    server: str
    run: int
    usd_per_hour: float | None
    recorded_s: float
    replayed_s: float
    spent: tuple[tuple[str, Cell | None, float], ...]
    cells: tuple[CellScore, ...]
    wrongly_stopped: bool = False
    kept_going: bool = False
    recorded_billed_s: float = 0.0
    replayed_billed_s: float = 0.0
    known: tuple[KnownCell, ...] = ()


def score_cells(run: RecordedRun, results: tuple[CellResult, ...]) -> tuple[CellScore, ...]:
    out = []
    for result in results:
        call = run.calls.get(result.cell)
        was_ok = call is not None and call.status == OK
        is_ok = result.outcome is Outcome.MEASURED
        if not was_ok and not is_ok:
            continue
        shift = None
        if was_ok and is_ok and call is not None:
            shift = mean_rate(result.samples_s) / mean_rate(call.samples_s) - 1.0
        out.append(CellScore(result.cell, was_ok, result.reason, len(result.samples_s), shift))
    return tuple(out)


def mean_rate(samples_s: tuple[float, ...]) -> float:
    """Mean of the per-repeat speeds, as llama-bench's avg_ts, for one token."""
    return sum(1.0 / s for s in samples_s) / len(samples_s)
