"""Predicted tokens/s of a cell from what the same server has already measured.

In logarithms every step is a small linear rule (see prior_data.py for the coefficients and where they come from):

* length to length, same model: log v(n) - log u(p) = a + b log u(p) + c [log w(n) - log w(p)], where p is the longest
  shorter cell that was measured and w the next smaller model, if that has both;
* model to model, same cell: log v - log u = a + b d + c s d, where u is the next smaller model that has the cell, d
  the logarithm of the ratio of the file sizes and s the slope of log speed against log size over the two next smaller
  models, if there are two. With speed bound by memory bandwidth s is -1: the rule is a roofline whose bandwidth the
  server itself has shown.

u and w are speeds of the fastest repeat: a repeat that was disturbed says little about the next cell. Each rule carries
quantiles of its residuals on servers that it was not fitted on, by how far the repeats of its source lay apart, so an
interval says how often it held. Where no rule fits the ladder at hand, a wide bracket is used. Gates use the
optimistic end only: a doubt is settled by measuring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Optional, Tuple

from tasks.domain.cells import TG, Cell
from tasks.domain.policy import RunView, Speed

QUANTILES = (0.005, 0.05, 0.5, 0.95, 0.98, 0.99, 0.995, 0.998)
"""Of the residuals that a rule carries."""

SPREADS = (0.01, 0.03, 0.1)
"""Bounds of the classes of a source's coefficient of variation; a source with a single repeat is in the third."""

TG_LENGTH_FACTOR = 1.25
PP_LENGTH_FACTOR_CPU = 1.5
SMALLER_MODEL_FACTOR = 2.0


@dataclass(frozen=True)
class Rule:
    """One fitted step: its coefficients, and quantiles (QUANTILES) of the logarithmic residual by class of spread."""

    coefficients: Tuple[float, ...]
    residuals: Tuple[Tuple[float, ...], ...]


@dataclass(frozen=True)
class Prior:
    """Rules by name, see `length_rule` and `model_rule`; source: what they were fitted on."""

    source: str = ""
    rules: dict[str, Rule] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """Tokens/s of a cell. low..high: 90 % of unseen servers were within. optimistic: the end that gates trust.

    source: the measured cell it was drawn from. rule: by which rule; "bracket" where none was at hand.
    """

    tok_per_s: float
    low_tok_per_s: float
    high_tok_per_s: float
    optimistic_tok_per_s: float
    source: Cell
    rule: str

    def evidence(self) -> dict[str, Any]:
        return {
            "predicted_low_tok_per_s": self.low_tok_per_s,
            "predicted_tok_per_s": self.tok_per_s,
            "predicted_high_tok_per_s": self.high_tok_per_s,
            "optimistic_tok_per_s": self.optimistic_tok_per_s,
            "from": str(self.source),
            "rule": self.rule,
        }


def spread_class(spread: Optional[float]) -> int:
    """Which of the classes of SPREADS, 0 for the quietest."""
    if spread is None:
        return len(SPREADS) - 1
    return sum(spread >= bound for bound in SPREADS)


def length_rule(has_gpu: bool, task: str, n_from: int, n_to: int, smaller: bool) -> str:
    """Name of the rule from one length to another; `smaller`: with the next smaller model's ratio."""
    return f"{'gpu' if has_gpu else 'cpu'} {task}{n_from}-{n_to}{' smaller' if smaller else ''}"


def model_rule(has_gpu: bool, task: str, slope: bool) -> str:
    """Name of the rule from a smaller model; `slope`: with the two next smaller ones."""
    return f"{'gpu' if has_gpu else 'cpu'} {task} model{' slope' if slope else ''}"


def predict(view: RunView, cell: Cell, prior: Prior, quantile: float = QUANTILES[-1]) -> Optional[Prediction]:
    """The prediction for `cell`, or None when nothing comparable has been measured.

    quantile: of the residuals, for the optimistic end; one of QUANTILES.
    """
    for shorter in view.shorter(cell):
        measured = view.speed(shorter)
        if measured is not None:
            return _from_length(view, cell, shorter, measured, prior, quantile)
    for model in view.smaller_models(cell.model):
        same = Cell(model.name, cell.task, cell.n_tokens)
        measured = view.speed(same)
        if measured is not None:
            return _from_model(view, cell, same, measured, prior, quantile)
    return None


def _from_length(
    view: RunView, cell: Cell, shorter: Cell, measured: Speed, prior: Prior, quantile: float
) -> Prediction:
    """Step by step over the ladder's lengths; the ends of the interval add up, which errs on the wide side."""
    level = math.log(measured.best_tok_per_s)
    ends = [0.0, 0.0, 0.0]  # low, high, optimistic, around `level`
    names = []
    steps = [c for c in reversed(view.shorter(cell)) if c.n_tokens >= shorter.n_tokens] + [cell]
    for there, here in zip(steps, steps[1:]):
        found = _step(view, here, there, level, prior)
        if found is None:
            factor = _bracket_factor(view, cell, shorter)
            return _bracket(measured.median_tok_per_s, 0.5, factor ** (len(steps) - 1), shorter)
        name, change, rule = found
        at = dict(zip(QUANTILES, rule.residuals[spread_class(measured.spread)]))
        level += change + at[0.5]
        ends = [end + at[q] - at[0.5] for end, q in zip(ends, (0.05, 0.95, quantile))]
        names.append(name)
    low, high, optimistic = (math.exp(level + end) for end in ends)
    return Prediction(math.exp(level), low, high, optimistic, shorter, ", ".join(names))


def _step(view: RunView, here: Cell, there: Cell, level: float, prior: Prior) -> Optional[Tuple[str, float, Rule]]:
    """The rule for one step, with the smaller model's ratio where both are to be had, and the change of log speed."""
    ratio = _ratio_of_smaller(view, here, there)
    if ratio is not None:
        name = length_rule(view.has_gpu, here.task, there.n_tokens, here.n_tokens, True)
        rule = prior.rules.get(name)
        if rule is not None:
            a, b, c = rule.coefficients
            return name, a + b * level + c * ratio, rule
    name = length_rule(view.has_gpu, here.task, there.n_tokens, here.n_tokens, False)
    rule = prior.rules.get(name)
    if rule is None:
        return None
    a, b = rule.coefficients
    return name, a + b * level, rule


def _bracket_factor(view: RunView, cell: Cell, shorter: Cell) -> float:
    if cell.task == TG:
        return TG_LENGTH_FACTOR
    return cell.n_tokens / shorter.n_tokens if view.has_gpu else PP_LENGTH_FACTOR_CPU


def _ratio_of_smaller(view: RunView, cell: Cell, shorter: Cell) -> Optional[float]:
    """How the speed of the next smaller model changed between the same lengths, as a logarithm."""
    for model in view.smaller_models(cell.model)[:1]:
        here = view.speed(Cell(model.name, cell.task, cell.n_tokens))
        there = view.speed(Cell(model.name, cell.task, shorter.n_tokens))
        if here is not None and there is not None:
            return math.log(here.best_tok_per_s / there.best_tok_per_s)
    return None


def _from_model(view: RunView, cell: Cell, same: Cell, measured: Speed, prior: Prior, quantile: float) -> Prediction:
    n_bytes, smaller_bytes = view.model(cell.model).planned_bytes, view.model(same.model).planned_bytes
    size, level = math.log(n_bytes / smaller_bytes), math.log(measured.best_tok_per_s)
    for other in view.smaller_models(same.model)[:1]:
        speed = view.speed(Cell(other.name, cell.task, cell.n_tokens))
        name = model_rule(view.has_gpu, cell.task, True)
        rule = prior.rules.get(name)
        if speed is not None and rule is not None:
            run = math.log(smaller_bytes / other.planned_bytes)
            slope = (level - math.log(speed.best_tok_per_s)) / run
            a, b, c = rule.coefficients
            return _predicted(level + a + b * size + c * slope * size, rule, measured, quantile, same, name)
    name = model_rule(view.has_gpu, cell.task, False)
    rule = prior.rules.get(name)
    if rule is not None:
        a, b = rule.coefficients
        return _predicted(level + a + b * size, rule, measured, quantile, same, name)
    scaled = measured.median_tok_per_s * smaller_bytes / n_bytes
    return _bracket(scaled, 1 / SMALLER_MODEL_FACTOR, SMALLER_MODEL_FACTOR, same)


def _predicted(log_speed: float, rule: Rule, source: Speed, quantile: float, cell: Cell, name: str) -> Prediction:
    at = dict(zip(QUANTILES, rule.residuals[spread_class(source.spread)]))
    return Prediction(
        tok_per_s=math.exp(log_speed + at[0.5]),
        low_tok_per_s=math.exp(log_speed + at[0.05]),
        high_tok_per_s=math.exp(log_speed + at[0.95]),
        optimistic_tok_per_s=math.exp(log_speed + at[quantile]),
        source=cell,
        rule=name,
    )


def _bracket(centre: float, low: float, high: float, source: Cell) -> Prediction:
    return Prediction(centre * math.sqrt(low * high), centre * low, centre * high, centre * high, source, "bracket")
