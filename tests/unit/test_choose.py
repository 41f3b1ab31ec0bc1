"""Which servers a budget measures, and which it predicts."""

from __future__ import annotations

import math

import pytest

from tasks.domain.choose import TWIN_INTERVALS, interval, select
from tasks.domain.twins import Machine, twin_groups

GIB = 2**30


def machine(name: str, cpu: str = "A", usd: float | None = 1.0, memory_gib: int = 16, n_cpus: int = 4) -> Machine:
    return Machine("v", name, cpu, n_cpus, n_cpus, memory_bytes=memory_gib * GIB, usd_per_hour=usd)


def cost(m: Machine) -> float:
    return m.usd_per_hour or 0.0


def test_twins_share_cpu_threads_and_gpu_and_nothing_else_counts():
    groups = twin_groups([machine("a"), machine("b", usd=2.0), machine("c", cpu="B"), machine("d", n_cpus=8)])
    assert [[m.server for m in g.machines] for g in groups] == [["a", "b"], ["c"], ["d"]]


def test_a_machine_of_unknown_cpu_has_no_twin():
    assert len(twin_groups([machine("a", cpu=""), machine("b", cpu="")])) == 2


def test_the_cheapest_comes_first_unless_it_is_too_small_for_the_larger_models():
    assert twin_groups([machine("dear", usd=3.0), machine("cheap", usd=1.0)])[0].first.server == "cheap"
    small = [machine("large", usd=3.0, memory_gib=64), machine("small", usd=1.0, memory_gib=16)]
    assert twin_groups(small)[0].first.server == "large"


def test_one_of_each_group_first_then_the_best_value():
    machines = [machine("a1", usd=1.0), machine("a2", usd=1.5), machine("a3", usd=1.6), machine("b1", "B", usd=2.0)]
    only_first = select(machines, cost, 3.2)
    assert [c.machine.server for c in only_first.measured] == ["a1", "b1"]
    assert [(c.machine.server, c.from_.server) for c in only_first.predicted] == [("a2", "a1"), ("a3", "a1")]
    assert only_first.usd == 3.0 and only_first.expected_error == pytest.approx(math.expm1(TWIN_INTERVALS[0.5]))
    second_look = select(machines, cost, 4.6)
    assert [c.machine.server for c in second_look.measured] == ["a1", "a2", "b1"]


def test_a_budget_is_never_passed_and_what_it_does_not_reach_is_named():
    machines = [machine(f"m{i}", cpu=f"cpu{i}", usd=float(i + 1)) for i in range(6)]
    for max_usd in (0.0, 0.5, 1.0, 3.5, 7.0, 100.0):
        found = select(machines, cost, max_usd)
        assert found.usd <= max_usd
        assert len(found.measured) + len(found.predicted) + len(found.unreached) == len(machines) and not found.known


def test_what_is_fresh_is_not_measured_again_and_predicts_its_twins():
    found = select([machine("a1"), machine("a2", usd=2.0)], cost, 100.0, fresh=frozenset({"v/a1"}))
    assert [c.machine.server for c in found.measured] == ["a2"], "a second look is what the money is good for"
    found = select([machine("a1"), machine("a2", usd=2.0)], cost, 1.0, fresh=frozenset({"v/a1"}))
    assert [(c.machine.server, c.from_ and c.from_.server) for c in found.predicted] == [("a2", "a1")]
    assert [c.machine.server for c in found.known] == ["a1"]


def test_two_measured_twins_narrow_the_interval():
    one, two = interval([10.0], 0.9), interval([10.0, 10.0], 0.9)
    assert one[1] == pytest.approx(10.0) and one[0] < two[0] < 10.0 < two[2] < one[2]
