"""Fit the prior of the predictions on recorded runs.

    python -m tasks.replay.fit FOLDER > tasks/domain/prior_data.py

Each rule is a least-squares fit from which far outliers are left out (their repeats were disturbed); the quantiles of
its residuals are of servers that the fit had not seen (five folds by server). For the rules that know an earlier run,
that of a twin server stands for it.
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

from tasks.domain.attention import attention_term
from tasks.domain.cells import PP, Cell
from tasks.domain.classic import CLASSIC_MIN_TOK_PER_S
from tasks.domain.predict import (
    KNOWN,
    QUANTILES,
    SPREADS,
    Prior,
    Rule,
    failed_rule,
    known_rule,
    length_rule,
    model_rule,
    spread_class,
)
from tasks.domain.stats import mean, sd
from tasks.replay.headers import headers_of
from tasks.replay.recorded import OK, TIMED_OUT, RecordedRun, machine_of
from tasks.replay.traces import read_traces
from tasks.replay.truth import n_prompts

HEADERS = headers_of()
N_FOLDS = 5
FEWEST_ROWS = 40
OUTLIER_MADS = 6.0
MODEL_STEP_LENGTHS = (16, 128, 512)

FEWEST_OF_CLASS = 80
"""Below this many rows a class of spread takes in the next noisier ones, and at last all."""

KILLED_TOO = -9.0
"""Logarithm that stands for "slower than that, who knows how much"."""

Row = tuple[int, int, float, tuple[float, ...]]  # fold, class of the source's spread, y, features
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Measured:
    """Logarithms of speeds. mean: what is predicted. best: of the fastest repeat, what predicts."""

    mean: float
    best: float
    spread: int


_Speeds = dict[Cell, _Measured]


def _measured(run: RecordedRun) -> _Speeds:
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
    measured = [_measured(run) for run in runs]
    twins = _twin_of(runs)
    for number, run in enumerate(runs):
        twin = measured[twins[number]] if number in twins else {}
        for name, row in _rows(run, measured[number], twin):
            rows[name].append(row)
    pairs = [(run, measured[n], runs[twins[n]]) for n, run in enumerate(runs) if n in twins]
    stopped = _stopped_before(pairs, [measured[twins[n]] for n in range(len(runs)) if n in twins])
    rules = {name: _rule(found) for name, found in sorted(rows.items()) if len(found) >= FEWEST_ROWS}
    return Prior(source, {name: rule for name, rule in rules.items() if not _perverse(name, rule)} | stopped)


def _stopped_before(
    pairs: Sequence[tuple[RecordedRun, _Speeds, RecordedRun]], of_twin: Sequence[_Speeds]
) -> dict[str, Rule]:
    """What became of cells whose twin's call was killed: of those tried, most were killed too and count as slower."""
    found: dict[str, list[float]] = defaultdict(list)
    for (run, seen, twin), twin_seen in zip(pairs, of_twin, strict=True):
        loaded = {cell.model for cell in twin_seen}
        for cell, call in twin.calls.items():
            own = run.calls.get(cell)
            if call.status != TIMED_OUT or cell.model not in loaded or own is None or own.status not in (OK, TIMED_OUT):
                continue
            bound = math.log(cell.n_tokens * n_prompts(cell.task) / call.timeout_s)
            found[failed_rule(run.has_gpu, cell.task)].append(seen[cell].mean - bound if cell in seen else KILLED_TOO)
    return {
        name: Rule((0.0,), (tuple(round(float(r), 4) for r in np.quantile(rows, QUANTILES)),) * (len(SPREADS) + 1))
        for name, rows in sorted(found.items())
        if len(rows) >= FEWEST_ROWS
    }


def _perverse(name: str, rule: Rule) -> bool:
    """A rule by which a server is slower the faster its twin is: chance, from few rows."""
    return name.endswith(KNOWN) and len(rule.coefficients) > 1 and rule.coefficients[-1] < 0


def _twin_of(runs: Sequence[RecordedRun]) -> dict[int, int]:
    """For each run the one before it in its twin group, the last for the first; none for those without a twin."""
    groups: dict[object, list[int]] = defaultdict(list)
    for number, run in enumerate(runs):
        if run.cpu_model:
            groups[machine_of(run).key].append(number)
    return {group[i]: group[i - 1] for group in groups.values() if len(group) > 1 for i in range(len(group))}


def _rows(run: RecordedRun, seen: _Speeds, twin: _Speeds) -> Iterator[tuple[str, Row]]:
    fold = fold_of(run)
    names = [m.name for m in run.models]
    sizes = [math.log(m.bytes) for m in run.models]
    for cell, speed in seen.items():
        if cell in twin:
            row = (fold, twin[cell].spread, speed.mean - twin[cell].best, (1.0,))
            yield known_rule(run.has_gpu, cell.task), row
    for i, name in enumerate(names):
        for task, gates in CLASSIC_MIN_TOK_PER_S.items():
            for p, n in pairwise(gates):
                smaller = names[i - 1] if i else None
                yield from _length_rows(run, seen, twin, fold, smaller, Cell(name, task, p), Cell(name, task, n))
            for n in MODEL_STEP_LENGTHS:
                cells = [Cell(other, task, n) for other in names[max(0, i - 2) : i + 1]]
                yield from _model_rows(run, seen, twin, fold, sizes[max(0, i - 2) : i + 1], cells)


def _ratio(seen: _Speeds, here: Cell, there: Cell) -> float | None:
    """How the speed changes from there to here, as a logarithm."""
    return seen[here].best - seen[there].best if here in seen and there in seen else None


def _length_rows(
    run: RecordedRun, seen: _Speeds, twin: _Speeds, fold: int, smaller: str | None, p: Cell, n: Cell
) -> Iterator[tuple[str, Row]]:
    if p not in seen or n not in seen:
        return
    source, y = seen[p], seen[n].mean - seen[p].best
    owns: list[tuple[float, ...]] = [()]
    of_smaller = _ratio(seen, Cell(smaller, n.task, n.n_tokens), Cell(smaller, n.task, p.n_tokens)) if smaller else None
    if smaller and of_smaller is not None:
        owns.append((of_smaller,))
        term = attention_term(HEADERS.get(n.model), HEADERS.get(smaller), n.n_tokens)
        if n.task == PP and term is not None:
            owns.append((of_smaller, term))
    of_twin = _ratio(twin, n, p)
    for own in owns:
        for known in ((),) if of_twin is None else ((), (of_twin,)):
            name = length_rule(run.has_gpu, n.task, p.n_tokens, n.n_tokens, len(own), len(known))
            yield name, (fold, source.spread, y, (1.0, source.best, *own, *known))


def _variants(own: float | None, known: float | None) -> list[tuple[float | None, float | None]]:
    """The rule without further terms, and with those that are at hand."""
    return [(a, b) for a in dict.fromkeys((None, own)) for b in dict.fromkeys((None, known))]


def _model_rows(
    run: RecordedRun, seen: _Speeds, twin: _Speeds, fold: int, sizes: list[float], cells: list[Cell]
) -> Iterator[tuple[str, Row]]:
    if len(cells) < 2 or cells[-1] not in seen or cells[-2] not in seen:
        return
    source, task, size = seen[cells[-2]], cells[-1].task, sizes[-1] - sizes[-2]
    y = seen[cells[-1]].mean - source.best
    slope = None
    if len(cells) == 3 and cells[0] in seen:
        slope = (source.best - seen[cells[0]].best) / (sizes[-2] - sizes[-3]) * size
    for terms in _variants(slope, _ratio(twin, cells[-1], cells[-2])):
        name = model_rule(run.has_gpu, task, *(t is not None for t in terms))
        yield name, (fold, source.spread, y, (1.0, size, *(t for t in terms if t is not None)))


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


def reliability(runs: Sequence[RecordedRun], n_folds: int = N_FOLDS) -> dict[float, float]:
    """For each quantile that the predictions claim, the share of cells below it on servers that no part of the prior
    was fitted on."""
    below: dict[float, int] = defaultdict(int)
    n_rows = 0
    twins = _twin_of(runs)
    measured = [_measured(run) for run in runs]
    for fold in range(n_folds):
        prior = fit_prior([run for run in runs if fold_of(run, n_folds) != fold], "")
        for number, run in enumerate(runs):
            if fold_of(run, n_folds) != fold:
                continue
            twin = measured[twins[number]] if number in twins else {}
            for name, (_, spread, y, features) in _rows(run, measured[number], twin):
                rule = prior.rules.get(name)
                if rule is not None:
                    off = y - sum(b * x for b, x in zip(rule.coefficients, features, strict=True))
                    n_rows += 1
                    for quantile, bound in zip(QUANTILES, rule.residuals[spread], strict=True):
                        below[quantile] += off <= bound
    return {quantile: below[quantile] / n_rows for quantile in QUANTILES} if n_rows else {}


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
