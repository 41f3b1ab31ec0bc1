"""Predicted tokens/s of a cell from what the same server has already measured.

First version: from a shorter cell of the same model, else from the same cell of the next smaller model.
Each prediction is a bracket: `low` and `high` are what the cell would give on a machine that scales badly
or well. Gates use `high` only, so a doubt is always settled by measuring.

The factors bracket the errors seen in the replay of the Spare Cores runs: length to length the
p95 error is 21 % (tg) and 30 % (pp) on CPUs; model to model by file size it is a factor of about two
among small models. On a GPU a short prompt is bound by latency, so its speed can grow with its length.
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.domain.cells import TG, Cell
from tasks.domain.policy import RunView

TG_LENGTH_FACTOR = 1.25
PP_LENGTH_FACTOR_CPU = 1.5
SMALLER_MODEL_FACTOR = 2.0


@dataclass(frozen=True)
class Prediction:
    """Bracket of the tokens/s of a cell and the cell it was drawn from."""

    low_tok_per_s: float
    high_tok_per_s: float
    source: Cell


def predict(view: RunView, cell: Cell) -> Prediction | None:
    """The bracket for `cell`, or None when nothing comparable has been measured."""
    for shorter in view.shorter(cell):
        measured = view.tok_per_s(shorter)
        if measured is not None:
            factor = _length_factor(view, shorter, cell)
            return Prediction(measured / 2.0, measured * factor, shorter)
    for model in view.smaller_models(cell.model):
        same = Cell(model.name, cell.task, cell.n_tokens)
        measured = view.tok_per_s(same)
        if measured is not None:
            ratio = model.planned_bytes / view.model(cell.model).planned_bytes
            return Prediction(measured * ratio / SMALLER_MODEL_FACTOR, measured * ratio * SMALLER_MODEL_FACTOR, same)
    return None


def _length_factor(view: RunView, shorter: Cell, cell: Cell) -> float:
    if cell.task == TG:
        return TG_LENGTH_FACTOR
    return cell.n_tokens / shorter.n_tokens if view.has_gpu else PP_LENGTH_FACTOR_CPU
