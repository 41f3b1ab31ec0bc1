"""What a plan promises: costs within the caps, reservations that fit, a reason for whatever is left out."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.classic import classic_ladder
from tasks.domain.run_plan import ModelSpec
from tasks.domain.sweep_plan import SETUP_S, Offer, at_once_usd, cost_usd, plan_server, plan_sweep

GIB = 2**30
SMALL = ModelSpec("small", "s.gguf", (), GIB // 10)
LARGE = ModelSpec("large", "l.gguf", (), 40 * GIB)


def offer(name="srv", usd="1.00", memory=64 * GIB):
    return Offer("local", name, 4, memory, 500 * GIB, Decimal(usd), 100e6)


def planned(o, **changes):
    options = {"n_repeats": 5, "max_usd": Decimal(2), "deadline_s": 7200.0, **changes}
    return plan_server(o, (LARGE, SMALL), classic_ladder(), **options)


def test_models_come_in_order_of_size_and_only_those_that_fit():
    assert planned(offer()).models == ("small", "large")
    assert planned(offer(memory=2 * GIB)).models == ("small",)
    nothing = planned(offer(memory=GIB // 20))
    assert not nothing.run and nothing.why == "no model fits into memory and disk"


def test_what_is_done_is_not_run_again():
    assert planned(offer(), done=True).why == "measured already"


@given(
    st.decimals("0.01", "100", places=2),
    st.decimals("0.01", "50", places=2),
    st.floats(60, 90_000),
    st.sampled_from([(0, 1), (60, 1), (3600, 3600)]),
)
def test_costs_never_pass_what_deadline_and_cap_allow(usd_per_hour, max_usd, deadline_s, billing):
    minimum_s, increment_s = billing
    server = planned(
        offer(usd=str(usd_per_hour)),
        max_usd=max_usd,
        deadline_s=deadline_s,
        billing_minimum_s=minimum_s,
        billing_increment_s=increment_s,
    )
    assert server.low_s <= server.high_s <= deadline_s
    assert server.low_usd <= server.high_usd <= server.reserve_usd
    hour_begun = usd_per_hour * max(minimum_s, increment_s) / 3600
    assert server.reserve_usd <= max_usd + hour_begun + Decimal("0.01")


def test_the_sweeps_cap_leaves_out_what_no_longer_fits():
    servers = [planned(offer(name)) for name in ("a", "b", "c")]
    plan = plan_sweep("s", servers, servers[0].reserve_usd * 2)
    assert [s.run for s in plan.servers] == [True, True, False]
    assert "does not fit under the sweep's cap" in plan.servers[2].why
    assert plan.high_usd <= plan.max_usd


def test_servers_at_once_reserve_more_than_the_plan_sets_aside():
    """A create reserves for its own time and a late reaper's too."""
    servers = [planned(offer(name, usd)) for name, usd in (("a", "1.00"), ("b", "6.00"), ("c", "3.00"))]
    plan = plan_sweep("s", servers, Decimal(1000))
    beyond_h = (SETUP_S + 300) / 3600
    assert float(at_once_usd(plan, 2, 300.0)) == pytest.approx(2 + 2 + (6 + 3) * beyond_h, abs=0.01)
    assert at_once_usd(plan, 9, 300.0) == at_once_usd(plan, 3, 300.0) > sum(s.reserve_usd for s in servers)


@pytest.mark.parametrize(
    ("seconds", "minimum_s", "increment_s", "usd"),
    [(1800, 0, 1, "0.5000"), (10, 60, 1, "0.0167"), (3601, 3600, 3600, "2.0000"), (0.5, 0, 1, "0.0003")],
)
def test_cost_follows_the_vendors_minimum_and_increment(seconds, minimum_s, increment_s, usd):
    assert cost_usd(seconds, Decimal(1), minimum_s, increment_s) == Decimal(usd)
