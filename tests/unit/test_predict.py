"""Predictions: the arithmetic of the rules, the brackets where there is none, and what the shipped prior promises."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tasks.domain.attention import attention_share
from tasks.domain.cells import Cell, CellResult, Reason
from tasks.domain.dynamic import DynamicPolicy
from tasks.domain.policy import RunView
from tasks.domain.predict import QUANTILES, SPREADS, Prior, Rule, length_rule, model_rule, predict, spread_class
from tasks.domain.prior_data import PRIOR
from tasks.replay.headers import headers_of
from tests.plans import make_plan

RESIDUALS = tuple(round((q - 0.5) / 2, 4) for q in QUANTILES)
WIDE = tuple(round(q - 0.5, 4) for q in QUANTILES)


def view_of(speeds: dict[Cell, float], spread: float = 0.0) -> RunView:
    """A server on which these cells were measured five times, with that much between the repeats."""
    view = RunView(plan=make_plan())
    for cell, tok_per_s in speeds.items():
        samples = tuple(cell.n_tokens / tok_per_s * (1 + spread * (k - 2)) for k in range(5))
        view.add_result(CellResult(cell, Reason.OK, "", samples))
    return view


def rule(*coefficients: float) -> Rule:
    return Rule(coefficients, (RESIDUALS, RESIDUALS, WIDE, WIDE))


def test_nothing_measured_predicts_nothing():
    assert predict(view_of({}), Cell("small", "tg", 128), PRIOR) is None


def test_a_length_follows_its_rule_and_the_interval_its_residuals():
    prior = Prior("test", {length_rule(False, "tg", 16, 128, False): rule(-0.1, 0.02)})
    found = predict(view_of({Cell("small", "tg", 16): 50.0}), Cell("small", "tg", 128), prior)
    middle = 50.0 * math.exp(-0.1 + 0.02 * math.log(50.0))
    assert found is not None and found.rule == "cpu tg16-128"
    assert found.tok_per_s == pytest.approx(middle)
    assert found.low_tok_per_s == pytest.approx(middle * math.exp(-0.225))
    assert found.optimistic_tok_per_s == pytest.approx(middle * math.exp(RESIDUALS[-1]))


def test_a_source_whose_repeats_lie_apart_gives_a_wider_interval():
    prior = Prior("test", {length_rule(False, "tg", 16, 128, False): rule(0.0, 0.0)})
    cell, source = Cell("small", "tg", 128), Cell("small", "tg", 16)
    quiet = predict(view_of({source: 50.0}), cell, prior)
    noisy = predict(view_of({source: 50.0}, spread=0.1), cell, prior)
    assert quiet is not None and noisy is not None
    width = [p.high_tok_per_s / p.low_tok_per_s for p in (quiet, noisy)]
    assert width[1] > width[0] * 1.3


def test_the_smaller_model_shows_how_speed_changes_with_length():
    prior = Prior("test", {length_rule(False, "tg", 16, 128, True): rule(0.0, 0.0, 1.0)})
    speeds = {Cell("small", "tg", 16): 80.0, Cell("small", "tg", 128): 60.0, Cell("middle", "tg", 16): 20.0}
    found = predict(view_of(speeds), Cell("middle", "tg", 128), prior)
    assert found is not None and found.tok_per_s == pytest.approx(15.0)


def test_a_prompt_slows_down_by_how_much_attention_weighs_in_the_model():
    ratio, attention = (length_rule(False, "pp", 16, 128, n) for n in (1, 2))
    prior = Prior("test", {ratio: rule(0.0, 0.0, 1.0), attention: rule(0.0, 0.0, 1.0, -100.0)})
    speeds = {Cell("small", "pp", 16): 80.0, Cell("small", "pp", 128): 60.0, Cell("middle", "pp", 16): 20.0}
    view, cell = view_of(speeds), Cell("middle", "pp", 128)
    plain = predict(view, cell, prior)
    assert plain is not None and plain.rule == ratio and plain.tok_per_s == pytest.approx(15.0)
    headers = headers_of(("smollm-135m", "gemma-2b"))
    view.headers = {"small": headers["smollm-135m"], "middle": headers["gemma-2b"]}
    found = predict(view, cell, prior)
    assert found is not None and found.rule == attention
    less = (30 * 9 * 64 / 134_515_008 - attention_share(headers["gemma-2b"])) * 128
    assert less > 0 and found.tok_per_s == pytest.approx(15.0 * math.exp(100.0 * less))


def test_two_lengths_are_two_steps_whose_doubts_add_up():
    names = [length_rule(False, "tg", 16, 128, False), length_rule(False, "tg", 128, 512, False)]
    prior = Prior("test", {name: rule(-0.1, 0.0) for name in names})
    found = predict(view_of({Cell("small", "tg", 16): 50.0}), Cell("small", "tg", 512), prior)
    assert found is not None and found.rule == ", ".join(names)
    assert found.tok_per_s == pytest.approx(50.0 * math.exp(-0.2))
    assert found.optimistic_tok_per_s == pytest.approx(50.0 * math.exp(-0.2 + 2 * RESIDUALS[-1]))


def test_a_larger_model_follows_the_slope_of_the_smaller_ones():
    prior = Prior("test", {model_rule(False, "tg", True): rule(0.0, 0.0, 1.0)})
    speeds = {
        Cell("small", "tg", 16): 100.0,
        Cell("middle", "tg", 16): 10.0,
    }  # ten times slower at 10.24 times the size
    found = predict(view_of(speeds), Cell("large", "tg", 16), prior)
    slope = math.log(10.0 / 100.0) / math.log(10.24)
    assert found is not None and found.tok_per_s == pytest.approx(10.0 * math.exp(slope * math.log(4.0)))


def test_without_a_rule_a_wide_bracket_is_used():
    found = predict(view_of({Cell("small", "tg", 16): 50.0}), Cell("small", "tg", 128), Prior())
    assert found is not None and found.rule == "bracket"
    assert found.low_tok_per_s == 25.0 and found.optimistic_tok_per_s == pytest.approx(62.5)


def n_coefficients(name: str) -> int:
    """A constant, the level or the size, and one for each term that the name tells of."""
    if name.endswith(("pp known", "tg known", "stopped before")):
        return 1
    return 2 + sum(word in name.split() for word in ("smaller", "attention", "slope", "known"))


def test_the_shipped_prior_is_whole_and_says_where_it_is_from():
    assert "sc-inspector-data" in PRIOR.source and "CC BY-SA 4.0" in PRIOR.source
    assert len(PRIOR.rules) > 30
    for name, found in PRIOR.rules.items():
        assert len(found.coefficients) == n_coefficients(name), name
        assert len(found.residuals) == len(SPREADS) + 1, name
        for residuals in found.residuals:
            assert len(residuals) == len(QUANTILES) and list(residuals) == sorted(residuals), name


def test_a_faster_source_never_predicts_a_slower_cell():
    for name, found in PRIOR.rules.items():
        if "model" not in name and n_coefficients(name) > 1:
            assert found.coefficients[1] > -1.0, name


@pytest.mark.parametrize(("spread", "expected"), [(0.0, 0), (0.01, 1), (0.05, 2), (0.5, 3), (None, 2)])
def test_classes_of_spread(spread, expected):
    assert spread_class(spread) == expected


def test_a_cell_is_skipped_sooner_where_a_look_costs_more():
    prior = Prior("test", {length_rule(False, "tg", 128, 512, False): Rule((0.0, 0.0), (RESIDUALS,) * 4)})
    view = view_of({Cell("small", "tg", 128): 21.0})
    cell, policy = Cell("small", "tg", 512), DynamicPolicy(prior=prior)
    gate = policy.gate_tok_per_s(view, cell)
    assert 21.0 * math.exp(RESIDUALS[QUANTILES.index(0.95)]) < gate * 1.1
    dear = replace(view.plan, price_usd_per_hour=1000.0)
    cheap = replace(view.plan, price_usd_per_hour=0.01)
    seen = {}
    for name, plan in (("dear", dear), ("cheap", cheap)):
        other = RunView(plan=plan)
        for result in view.results.values():
            other.add_result(result)
        seen[name] = policy.judge_cell(other, cell).evidence["optimistic_tok_per_s"]
    assert seen["dear"] == pytest.approx(21.0 * math.exp(RESIDUALS[QUANTILES.index(0.95)]))
    assert seen["cheap"] == pytest.approx(21.0 * math.exp(RESIDUALS[-1]))
