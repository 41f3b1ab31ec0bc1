"""Predicted tokens/s of a cell from what the same server has already measured.

In logarithms every step is a small linear rule (see prior_data.py for the coefficients and where they come from):

* length to length, same model: log v(n) - log u(p) = a + b log u(p) + c [log w(n) - log w(p)], where p is the longest
  shorter cell that was measured and w the next smaller model, if that has both; prompts have a term for attention.py;
* model to model, same cell: log v - log u = a + b d + c s d, where u is the next smaller model that has the cell, d
  the logarithm of the ratio of the file sizes and s the slope of log speed against log size over the two next smaller
  models, if there are two. With speed bound by memory bandwidth s is -1: the rule is a roofline whose bandwidth the
  server itself has shown;
* earlier runs of the same server type or of a twin (tasks/domain/known.py): each of these rules has a variant with one
  more term, how the earlier run's speed changed in the same step; where nothing is measured yet, the earlier speed
  itself; and a cell that it had to stop is held below that speed, times the quantile of what became of such cells.

u and w are speeds of the fastest repeat: a disturbed one says little about the next cell. Each rule carries quantiles
of its residuals on servers that it was not fitted on, by how far the repeats of its source lay apart. Where no rule
fits, a wide bracket is used. Gates use the optimistic end only: a doubt is settled by measuring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Optional, Sequence, Tuple

from tasks.domain.attention import attention_term
from tasks.domain.cells import TG, Cell
from tasks.domain.known import KnownCell
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

    source: the measured cell it was drawn from, None where nothing but an earlier run is known. rule: by which rule;
    "bracket" where none was at hand. known: what an earlier run showed of the cell, where that was used.
    """

    tok_per_s: float
    low_tok_per_s: float
    high_tok_per_s: float
    optimistic_tok_per_s: float
    source: Optional[Cell]
    rule: str
    known: Optional[KnownCell] = None

    def evidence(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "predicted_low_tok_per_s": self.low_tok_per_s,
            "predicted_tok_per_s": self.tok_per_s,
            "predicted_high_tok_per_s": self.high_tok_per_s,
            "optimistic_tok_per_s": self.optimistic_tok_per_s,
            "rule": self.rule,
        }
        if self.source is not None:
            found["from"] = str(self.source)
        if self.known is not None:
            found["known_at_most_tok_per_s" if self.known.at_most else "known_tok_per_s"] = self.known.tok_per_s
            found["known_from"] = self.known.source
        return found


KNOWN = "known"
"""The rule for a cell of which only an earlier run tells; and the last word of the rules that have its term."""


def spread_class(spread: Optional[float]) -> int:
    """Which of the classes of SPREADS, 0 for the quietest."""
    if spread is None:
        return len(SPREADS) - 1
    return sum(spread >= bound for bound in SPREADS)


def length_rule(has_gpu: bool, task: str, n_from: int, n_to: int, smaller: int, known: int = 0) -> str:
    """Name of the rule from one length to another; `smaller`: 1 with the next smaller model's ratio, 2 with the weight
    of attention as well; `known`: 1 with the ratio of an earlier run."""
    own = ("", " smaller", " smaller attention")[smaller]
    return f"{'gpu' if has_gpu else 'cpu'} {task}{n_from}-{n_to}{own}{' known' * known}"


def model_rule(has_gpu: bool, task: str, slope: bool, known: bool = False) -> str:
    """Name of the rule from a smaller model; `slope`: with the two next smaller ones; `known`: with an earlier run."""
    return f"{'gpu' if has_gpu else 'cpu'} {task} model{' slope' * slope}{' known' * known}"


def known_rule(has_gpu: bool, task: str) -> str:
    """Name of the rule that trusts an earlier run alone."""
    return f"{'gpu' if has_gpu else 'cpu'} {task} {KNOWN}"


def failed_rule(has_gpu: bool, task: str) -> str:
    """Name of the rule for a cell that an earlier run had to stop."""
    return f"{'gpu' if has_gpu else 'cpu'} {task} stopped before"


def predict(view: RunView, cell: Cell, prior: Prior, quantile: float = QUANTILES[-1]) -> Optional[Prediction]:
    """The prediction for `cell`, or None when nothing comparable has been measured.

    quantile: of the residuals, for the optimistic end; one of QUANTILES.
    """
    own = _from_measured(view, cell, prior, quantile) or _from_known(view, cell, prior, quantile)
    return _below_what_failed(view, cell, prior, quantile, own)


def _from_measured(view: RunView, cell: Cell, prior: Prior, quantile: float) -> Optional[Prediction]:
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


def _from_known(view: RunView, cell: Cell, prior: Prior, quantile: float) -> Optional[Prediction]:
    known = view.known.get(cell)
    name = known_rule(view.has_gpu, cell.task)
    rule = prior.rules.get(name)
    if known is None or known.at_most or rule is None:
        return None
    level = math.log(known.tok_per_s) + rule.coefficients[0]
    return _predicted(level, rule, known.spread, quantile, None, name, known)


def _below_what_failed(
    view: RunView, cell: Cell, prior: Prior, quantile: float, own: Optional[Prediction]
) -> Optional[Prediction]:
    """The prediction, held down where an earlier run of the cell was stopped as too slow."""
    known = view.known.get(cell)
    name = failed_rule(view.has_gpu, cell.task)
    rule = prior.rules.get(name)
    if known is None or not known.at_most or rule is None:
        return own
    at = dict(zip(QUANTILES, rule.residuals[-1]))
    bound = known.tok_per_s
    high, optimistic = bound * math.exp(at[0.95]), bound * math.exp(at[quantile])
    if own is None:
        return Prediction(min(bound, high), 0.0, high, optimistic, None, name, known)
    if own.optimistic_tok_per_s <= optimistic:
        return own
    return Prediction(
        min(own.tok_per_s, bound, high),
        min(own.low_tok_per_s, bound, high),
        min(own.high_tok_per_s, high),
        optimistic,
        own.source,
        f"{own.rule}, {name}",
        known,
    )


def _known_ratio(view: RunView, here: Cell, there: Cell) -> Optional[float]:
    """How the speed of an earlier run changed from one cell to the other, as a logarithm."""
    if not view.known:
        return None
    to, from_ = view.known.get(here), view.known.get(there)
    if to is None or from_ is None or to.at_most or from_.at_most:
        return None
    return math.log(to.tok_per_s / from_.tok_per_s)


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
    used = view.known.get(cell) if any(name.endswith(KNOWN) for name in names) else None
    return Prediction(math.exp(level), low, high, optimistic, shorter, ", ".join(names), used)


def _step(view: RunView, here: Cell, there: Cell, level: float, prior: Prior) -> Optional[Tuple[str, float, Rule]]:
    """The rule for one step, with the ratios of an earlier run and of the smaller model where they are to be had, and
    the change of log speed."""
    ratio, smaller = _known_ratio(view, here, there), _of_smaller(view, here, there)
    earlier = () if ratio is None else (ratio,)
    for known in (earlier, ()):
        for own in (smaller, smaller[:1], ()):
            name = length_rule(view.has_gpu, here.task, there.n_tokens, here.n_tokens, len(own), len(known))
            rule = prior.rules.get(name)
            if rule is not None:
                return name, _dot(rule, (1.0, level, *own, *known)), rule
    return None


def _dot(rule: Rule, features: Sequence[float]) -> float:
    return sum(b * x for b, x in zip(rule.coefficients, features))


def _bracket_factor(view: RunView, cell: Cell, shorter: Cell) -> float:
    if cell.task == TG:
        return TG_LENGTH_FACTOR
    return cell.n_tokens / shorter.n_tokens if view.has_gpu else PP_LENGTH_FACTOR_CPU


def _of_smaller(view: RunView, cell: Cell, shorter: Cell) -> Tuple[float, ...]:
    """How the speed of the next smaller model changed between the same lengths, as a logarithm; with the weight of
    attention against that model, of prompts whose headers are known. Empty where that model has not both."""
    for model in view.smaller_models(cell.model)[:1]:
        here = view.speed(Cell(model.name, cell.task, cell.n_tokens))
        there = view.speed(Cell(model.name, cell.task, shorter.n_tokens))
        if here is None or there is None:
            return ()
        ratio = math.log(here.best_tok_per_s / there.best_tok_per_s)
        term = attention_term(view.headers.get(cell.model), view.headers.get(model.name), cell.n_tokens)
        return (ratio,) if term is None or cell.task == TG else (ratio, term)
    return ()


def _from_model(view: RunView, cell: Cell, same: Cell, measured: Speed, prior: Prior, quantile: float) -> Prediction:
    n_bytes, smaller_bytes = view.model(cell.model).planned_bytes, view.model(same.model).planned_bytes
    size, level = math.log(n_bytes / smaller_bytes), math.log(measured.best_tok_per_s)
    slope, earlier = _slope_term(view, cell, same, level, size), _known_ratio(view, cell, same)
    for terms in ((slope, earlier), (None, earlier), (slope, None), (None, None)):
        name = model_rule(view.has_gpu, cell.task, *(t is not None for t in terms))
        rule = prior.rules.get(name)
        if rule is not None:
            change = _dot(rule, (1.0, size, *(t for t in terms if t is not None)))
            used = view.known.get(cell) if terms[1] is not None else None
            return _predicted(level + change, rule, measured.spread, quantile, same, name, used)
    scaled = measured.median_tok_per_s * smaller_bytes / n_bytes
    return _bracket(scaled, 1 / SMALLER_MODEL_FACTOR, SMALLER_MODEL_FACTOR, same)


def _slope_term(view: RunView, cell: Cell, same: Cell, level: float, size: float) -> Optional[float]:
    """How log speed falls with log size over the two next smaller models, times the step in size."""
    for other in view.smaller_models(same.model)[:1]:
        speed = view.speed(Cell(other.name, cell.task, cell.n_tokens))
        if speed is not None:
            run = math.log(view.model(same.model).planned_bytes / other.planned_bytes)
            return (level - math.log(speed.best_tok_per_s)) / run * size
    return None


def _predicted(
    log_speed: float,
    rule: Rule,
    spread: Optional[float],
    quantile: float,
    source: Optional[Cell],
    name: str,
    known: Optional[KnownCell],
) -> Prediction:
    at = dict(zip(QUANTILES, rule.residuals[spread_class(spread)]))
    return Prediction(
        tok_per_s=math.exp(log_speed + at[0.5]),
        low_tok_per_s=math.exp(log_speed + at[0.05]),
        high_tok_per_s=math.exp(log_speed + at[0.95]),
        optimistic_tok_per_s=math.exp(log_speed + at[quantile]),
        source=source,
        rule=name,
        known=known,
    )


def _bracket(centre: float, low: float, high: float, source: Cell) -> Prediction:
    return Prediction(centre * math.sqrt(low * high), centre * low, centre * high, centre * high, source, "bracket")
