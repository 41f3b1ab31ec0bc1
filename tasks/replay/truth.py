"""What a replayed cell would have done: as recorded, or, where its record is cut off, a stated assumption.

A call that was killed tells only that it was too slow. Its speed is taken from the longest shorter cell of the same
model that was measured (else from the same cell of the next smaller model), times the median ratio of those two over
all recorded servers of the same backend, and then made at least so slow that the recorded kill would have come. Where
nothing was slow about the neighbours and no cell of the model had run before, the model never came out of its load:
such a call hangs until it is killed. The same ratios stand for cells that were never tried.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tasks.domain.cells import PP, Cell
from tasks.domain.stats import median
from tasks.replay.recorded import FAILED, OK, TIMED_OUT, UNTRIED, RecordedCall, RecordedRun

N_RECORDED = 5
LEAST_LOAD_S = 0.02
EXIT_S = 0.05
BEYOND = 1.05
"""A killed call whose neighbours foretold that it would pass was at least this much slower than its limit: assumed."""

KILL_S = 0.1
"""From a kill to the end of the process where no record of one says more."""

Ratio = tuple[bool, str, str, str, int, int]  # backend, task, from model, to model, from length, to length


@dataclass(frozen=True)
class CellTruth:
    """load_s: of a process that begins with this cell. n_repeats recorded samples; more repeats take them in turn.

    hangs: the load never ends. rc: exit status of a call that failed by itself, after fail_s; else None.
    loads: some call of its model got as far as a row.
    """

    status: str
    load_s: float
    warmup_s: float
    samples_s: tuple[float, ...]
    exit_s: float = EXIT_S
    kill_s: float = KILL_S
    hangs: bool = False
    rc: int | None = None
    fail_s: float = 0.0
    loads: bool = True


class SpeedRatios:
    """Median ratio of the speeds of two cells over the servers that measured both."""

    def __init__(self, runs: Iterable[RecordedRun]) -> None:
        seen: dict[Ratio, list[float]] = defaultdict(list)
        for run in runs:
            speeds = speeds_of(run)
            for cell, speed in speeds.items():
                for source in _sources(run, cell):
                    if source in speeds:
                        seen[_ratio_key(run, source, cell)].append(speed / speeds[source])
        self.median = {key: median(values) for key, values in seen.items()}

    def of(self, run: RecordedRun, source: Cell, cell: Cell) -> float:
        return self.median.get(_ratio_key(run, source, cell), 1.0 if source.model == cell.model else 0.5)


def speeds_of(run: RecordedRun) -> dict[Cell, float]:
    """Median tokens/s of the cells that were measured."""
    return {c: c.n_tokens / median(call.samples_s) for c, call in run.calls.items() if call.status == OK}


def _ratio_key(run: RecordedRun, source: Cell, cell: Cell) -> Ratio:
    return run.has_gpu, cell.task, source.model, cell.model, source.n_tokens, cell.n_tokens


def _sources(run: RecordedRun, cell: Cell) -> list[Cell]:
    """Cells that tell of this one, best first: shorter ones of its model, then the same one of smaller models."""
    shorter = sorted(
        (c for c in run.calls if c.model == cell.model and c.task == cell.task and c.n_tokens < cell.n_tokens),
        key=lambda c: -c.n_tokens,
    )
    names = [m.name for m in run.models]
    smaller = names[: names.index(cell.model)][::-1] if cell.model in names else []
    return shorter + [Cell(name, cell.task, cell.n_tokens) for name in smaller]


def n_prompts(task: str) -> int:
    """Whole runs of the cell in one process, the warm-up of a prompt included."""
    return N_RECORDED + (task == PP)


def truth_of(run: RecordedRun, ratios: SpeedRatios) -> dict[Cell, CellTruth]:
    """The truth of every cell of the run's models."""
    speeds = speeds_of(run)
    loads = _loads(run)
    return {cell: _truth(run, cell, call, speeds, loads, ratios) for cell, call in run.calls.items()}


def _warmup_s(cell: Cell, sample_s: float) -> float:
    """llama-bench warms up with the whole prompt, or with one generated token."""
    return sample_s if cell.task == PP else sample_s / cell.n_tokens


def _own_load_s(cell: Cell, call: RecordedCall) -> float:
    warmup_s = _warmup_s(cell, call.samples_s[0])
    return max(LEAST_LOAD_S, call.wall_s - sum(call.samples_s) - warmup_s - EXIT_S)


def _loads(run: RecordedRun) -> dict[str, float]:
    """Median seconds until the model of an ok call was loaded."""
    seen: dict[str, list[float]] = defaultdict(list)
    for cell, call in run.calls.items():
        if call.status == OK:
            seen[cell.model].append(_own_load_s(cell, call))
    return {model: median(values) for model, values in seen.items()}


def _truth(
    run: RecordedRun,
    cell: Cell,
    call: RecordedCall,
    speeds: dict[Cell, float],
    loads: dict[str, float],
    ratios: SpeedRatios,
) -> CellTruth:
    if call.status == OK:
        load_s = _own_load_s(cell, call)
        warmup_s = max(0.0, call.wall_s - sum(call.samples_s) - load_s - EXIT_S)
        return CellTruth(OK, load_s, warmup_s, call.samples_s)
    load_s = loads.get(cell.model, LEAST_LOAD_S)
    if call.status == FAILED:
        return CellTruth(FAILED, load_s, 0.0, (), rc=1, fail_s=call.wall_s, loads=cell.model in loads)
    source = next((s for s in _sources(run, cell) if s in speeds), None)
    expected_s = cell.n_tokens / (speeds[source] * ratios.of(run, source, cell)) if source else 0.0
    if call.status == TIMED_OUT:
        kill_s = max(KILL_S, call.wall_s - call.timeout_s)
        killed_s = (call.timeout_s - load_s) / n_prompts(cell.task)
        never_ran = cell.model not in loads
        if never_ran and expected_s < killed_s:
            return CellTruth(TIMED_OUT, load_s, 0.0, (), kill_s=kill_s, hangs=True)
        expected_s = max(expected_s, killed_s * BEYOND)
        return CellTruth(TIMED_OUT, load_s, _warmup_s(cell, expected_s), (expected_s,) * N_RECORDED, kill_s=kill_s)
    hangs = source is None
    return CellTruth(UNTRIED, load_s, _warmup_s(cell, expected_s), (expected_s,) * N_RECORDED, hangs=hangs)
