"""What more seconds cost by a vendor's increments, and what the gates make of an hour that is paid."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.domain.billing import Billing
from tasks.domain.cells import Cell, Outcome, Reason
from tasks.domain.classic import classic_ladder
from tasks.domain.dynamic import DynamicPolicy
from tasks.domain.lifecycle import billed_usd
from tasks.domain.run_plan import LadderStep, RunPlan
from tests.machine import Driver, Machine, Trace
from tests.plans import SIZES, make_plan, models_of

HOUR = 3600.0
HOURLY = Billing(3.6, HOUR, HOUR)  # a tenth of a cent each second
BY_THE_SECOND = Billing(3.6, 60.0, 1.0)


def test_by_the_second_every_second_costs_its_price() -> None:
    assert BY_THE_SECOND.expected_usd(100.0, 50.0, 0.0) == pytest.approx(0.05)
    assert BY_THE_SECOND.expected_usd(100.0, 50.0, 10_000.0) == pytest.approx(0.05)


def test_the_end_of_a_run_is_free_within_the_paid_hour_and_costs_an_hour_beyond_it() -> None:
    assert HOURLY.expected_usd(1800.0, 1500.0, 0.0) == 0.0
    assert HOURLY.expected_usd(1800.0, 1900.0, 0.0) == pytest.approx(3.6)
    assert HOURLY.expected_usd(1800.0, 600.0, 900.0) == pytest.approx(0.0, abs=1e-9)


def test_the_minimum_is_owed_at_once() -> None:
    assert HOURLY.paid_until_s(0.0) == HOUR and HOURLY.paid_until_s(3601.0) == 2 * HOUR
    assert Billing(3.6, 300.0, 1.0).expected_usd(0.0, 200.0, 0.0) == 0.0


@settings(max_examples=40, deadline=None)
@given(st.floats(0.0, 20_000.0), st.floats(0.0, 5000.0), st.floats(1.0, 30_000.0), st.sampled_from([0.0, 60.0, HOUR]))
def test_the_expected_price_is_the_mean_over_every_end_that_the_rest_may_have(
    age_s: float, extra_s: float, rest_s: float, minimum_s: float
) -> None:
    billing = Billing(3.6, minimum_s, HOUR)
    n = 4000
    ends = [age_s + rest_s * (i + 0.5) / n for i in range(n)]
    mean_s = sum(billing.paid_until_s(end + extra_s) - billing.paid_until_s(end) for end in ends) / n
    assert billing.expected_usd(age_s, extra_s, rest_s) == pytest.approx(mean_s / 1000, abs=3.6 * 12 / n)


@given(st.floats(0.0, 1e5), st.floats(0.0, 1e4), st.floats(0.0, 1e4), st.floats(0.0, 1e5))
def test_more_seconds_never_cost_less(age_s: float, extra_s: float, more_s: float, rest_s: float) -> None:
    assert HOURLY.expected_usd(age_s, extra_s + more_s, rest_s) >= HOURLY.expected_usd(age_s, extra_s, rest_s) - 1e-6


@pytest.mark.parametrize(("usd", "seconds"), [(1.0, HOUR), (3.6, HOUR), (7.1, HOUR), (7.2, 2 * HOUR), (8.0, 2 * HOUR)])
def test_money_buys_whole_increments_and_the_first_is_owed_in_any_case(usd: float, seconds: float) -> None:
    assert HOURLY.lifetime_for_s(usd) == seconds


def test_a_server_without_a_price_may_live_for_ever() -> None:
    assert Billing(0.0, HOUR, HOUR).lifetime_for_s(1.0) == math.inf


def hourly(plan: RunPlan) -> RunPlan:
    return replace(plan, billing_minimum_s=HOUR, billing_increment_s=HOUR)


def run(plan: RunPlan, machine: Machine) -> Trace:
    return Driver(plan, DynamicPolicy(), machine).run()  # type: ignore[arg-type]


def test_repeats_that_an_hour_already_paid_has_room_for_are_taken() -> None:
    plan = make_plan(models=("small",), ladder=(LadderStep("tg", 512, 1.0),))
    machine = Machine(lambda c: 40.0, headers=models_of(plan))
    cell = Cell("small", "tg", 512)
    assert len(run(plan, machine).by_cell()[cell].samples_s) == 3
    assert len(run(hourly(plan), machine).by_cell()[cell].samples_s) == 5


def test_a_repeat_that_would_begin_another_hour_is_not_taken() -> None:
    plan = replace(make_plan(models=("small",), ladder=(LadderStep("tg", 512, 0.1),)), billed_before_s=600.0)
    trace = run(hourly(plan), Machine(lambda c: 512 / 900.0, headers=models_of(plan)))
    assert len(trace.results[0].samples_s) == 3
    assert trace.end_s + 600.0 < HOUR


def test_a_download_is_waited_for_while_the_hour_is_paid() -> None:
    plan = make_plan(models=("small", "large"))
    link = SIZES["large"] / 2500.0
    machine = Machine(lambda c: 5000.0, headers=models_of(plan), link_bytes_per_s=link)
    machine.link_changes = [(2000.0, link * 0.7)]
    by_second, by_hour = run(plan, machine), run(hourly(plan), machine)
    assert {r.reason for r in by_second.results if r.cell.model == "large"} == {Reason.DOWNLOAD_TOO_SLOW}
    assert {r.outcome for r in by_hour.results} == {Outcome.MEASURED}
    assert by_hour.end_s < HOUR


@settings(max_examples=40, deadline=None)
@given(
    st.floats(1.0, 1e5), st.sampled_from([0.5e6, 5e6, 50e6]), st.floats(0.02, 30.0), st.floats(0.1, 20.0),
    st.floats(0.0, 300.0), st.sampled_from([600.0, HOUR]),
)  # fmt: skip
def test_the_bill_never_passes_the_cap_but_for_the_first_increment(
    speed: float, link: float, max_usd: float, price: float, before_s: float, increment_s: float
) -> None:
    plan = make_plan(ladder=classic_ladder(), price=price, max_usd=max_usd, deadline_s=1e6)
    plan = replace(plan, billed_before_s=before_s, billing_minimum_s=increment_s, billing_increment_s=increment_s)
    machine = Machine(lambda c: speed * 16 / c.n_tokens, headers=models_of(plan), link_bytes_per_s=link)
    trace = run(plan, machine)
    lifetime_s = before_s + trace.end_s + plan.teardown_reserve_s
    bill = billed_usd(Decimal(price), lifetime_s, int(increment_s), int(increment_s))
    first = billed_usd(Decimal(price), 1.0, int(increment_s), int(increment_s))
    assert bill <= max(Decimal(max_usd), first) + Decimal("1e-6")
