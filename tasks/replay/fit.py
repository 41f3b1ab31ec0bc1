"""Fit the prior of the predictions on recorded runs.

    python -m tasks.replay.fit FOLDER > tasks/domain/prior_data.py

Each rule is a least-squares fit from which far outliers are left out (their repeats were disturbed); the quantiles of
its residuals are of servers that the fit had not seen (five folds by server).
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.domain.cells import Cell
from tasks.domain.classic import CLASSIC_MIN_TOK_PER_S
from tasks.domain.predict import QUANTILES, SPREADS, Prior, Rule, length_rule, model_rule, spread_class
from tasks.domain.stats import mean, sd
from tasks.replay.recorded import OK, RecordedRun
from tasks.replay.traces import read_traces

N_FOLDS = 5
FEWEST_ROWS = 40
OUTLIER_MADS = 6.0
MODEL_STEP_LENGTHS = (16, 128, 512)

FEWEST_OF_CLASS = 80
"""Below this many rows a class of spread takes in the next noisier ones, and at last all."""

Row = tuple[int, int, float, tuple[float, ...]]  # fold, class of the source's spread, y, features
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Measured:
    """Logarithms of speeds. mean: what is predicted. best: of the fastest repeat, what predicts."""

    mean: float
    best: float
    spread: int


def _measured(run: RecordedRun) -> dict[Cell, _Measured]:
    found = {}
    for cell, call in run.calls.items():
        if call.status == OK:
            spread = sd(call.samples_s) / mean(call.samples_s) if len(call.samples_s) > 1 else None
            logs = [math.log(cell.n_tokens / s) for s in (mean(call.samples_s), min(call.samples_s))]
            found[cell] = _Measured(logs[0], logs[1], spread_class(spread))
    return found


def fold_of(run: RecordedRun, n_folds: int = N_FOLDS) -> int:
    """The same for every run of a server, on every machine."""
    return zlib.crc32(f"{run.vendor}/{run.server}".encode()) % n_folds


def fit_prior(runs: Sequence[RecordedRun], source: str) -> Prior:
    """The rules for which the runs have enough rows."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for run in runs:
        for name, row in _rows(run):
            rows[name].append(row)
    return Prior(source, {name: _rule(found) for name, found in sorted(rows.items()) if len(found) >= FEWEST_ROWS})


def _rows(run: RecordedRun) -> Iterator[tuple[str, Row]]:
    seen = _measured(run)
    fold = fold_of(run)
    names = [m.name for m in run.models]
    sizes = [math.log(m.bytes) for m in run.models]
    for i, name in enumerate(names):
        for task, gates in CLASSIC_MIN_TOK_PER_S.items():
            for p, n in pairwise(gates):
                smaller = names[i - 1] if i else None
                yield from _length_rows(run, seen, fold, smaller, Cell(name, task, p), Cell(name, task, n))
            for n in MODEL_STEP_LENGTHS:
                cells = [Cell(other, task, n) for other in names[max(0, i - 2) : i + 1]]
                yield from _model_rows(run, seen, fold, sizes[max(0, i - 2) : i + 1], cells)


def _length_rows(
    run: RecordedRun, seen: dict[Cell, _Measured], fold: int, smaller: str | None, p: Cell, n: Cell
) -> Iterator[tuple[str, Row]]:
    if p not in seen or n not in seen:
        return
    source, y = seen[p], seen[n].mean - seen[p].best
    name = length_rule(run.has_gpu, n.task, p.n_tokens, n.n_tokens, False)
    yield name, (fold, source.spread, y, (1.0, source.best))
    if smaller:
        here, there = (seen.get(Cell(smaller, n.task, c.n_tokens)) for c in (n, p))
        if here is not None and there is not None:
            name = length_rule(run.has_gpu, n.task, p.n_tokens, n.n_tokens, True)
            yield name, (fold, source.spread, y, (1.0, source.best, here.best - there.best))


def _model_rows(
    run: RecordedRun, seen: dict[Cell, _Measured], fold: int, sizes: list[float], cells: list[Cell]
) -> Iterator[tuple[str, Row]]:
    if len(cells) < 2 or cells[-1] not in seen or cells[-2] not in seen:
        return
    source, task, size = seen[cells[-2]], cells[-1].task, sizes[-1] - sizes[-2]
    y = seen[cells[-1]].mean - source.best
    yield model_rule(run.has_gpu, task, False), (fold, source.spread, y, (1.0, size))
    if len(cells) == 3 and cells[0] in seen:
        slope = (source.best - seen[cells[0]].best) / (sizes[-2] - sizes[-3])
        yield model_rule(run.has_gpu, task, True), (fold, source.spread, y, (1.0, size, slope * size))


def _rule(rows: list[Row]) -> Rule:
    folds, spreads = (np.array([row[i] for row in rows]) for i in (0, 1))
    y = np.array([row[2] for row in rows])
    x = np.array([row[3] for row in rows])
    unseen = np.empty(len(rows))
    for fold in range(N_FOLDS):
        mine = folds == fold
        unseen[mine] = y[mine] - x[mine] @ _fit(x[~mine], y[~mine])
    by_class = []
    for spread in range(len(SPREADS) + 1):
        mine = spreads == spread
        for up_to in range(spread, len(SPREADS) + 1):
            mine = (spreads >= spread) & (spreads <= up_to)
            if mine.sum() >= FEWEST_OF_CLASS:
                break
        chosen = unseen[mine] if mine.sum() >= FEWEST_OF_CLASS else unseen
        by_class.append(tuple(round(float(r), 4) for r in np.quantile(chosen, QUANTILES)))
    return Rule(tuple(round(float(b), 5) for b in _fit(x, y)), tuple(by_class))


def _fit(x: Floats, y: Floats) -> Floats:
    keep = np.ones(len(y), dtype=bool)
    for _ in range(3):
        beta: Floats = np.asarray(np.linalg.lstsq(x[keep], y[keep], rcond=None)[0], dtype=np.float64)
        residual = y - x @ beta
        centre = np.median(residual)
        keep = np.abs(residual - centre) < OUTLIER_MADS * (np.median(np.abs(residual - centre)) + 1e-6)
    return beta


def as_module(prior: Prior) -> str:
    """The prior as the text of a Python module."""
    lines = [
        '"""Coefficients of the predictions; made by tasks/replay/fit.py, not by hand."""',
        "",
        "from __future__ import annotations",
        "",
        "from tasks.domain.predict import Prior, Rule",
        "",
        "PRIOR = Prior(",
        f"    source={prior.source!r},",
        "    rules={",
    ]
    for name, rule in prior.rules.items():
        lines += [f'        "{name}": Rule(', f"            {rule.coefficients},", "            ("]
        lines += [f"                {residuals}," for residuals in rule.residuals] + ["            ),", "        ),"]
    return "\n".join([*lines, "    },", ")", ""])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tasks.replay.fit", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the trace tables")
    runs = read_traces(parser.parse_args().folder)
    source = f"{len(runs)} runs of github.com/SpareCores/sc-inspector-data (history up to 2026-08-22), CC BY-SA 4.0"
    sys.stdout.write(as_module(fit_prior(runs, source)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
