"""Which servers a budget measures, and which it predicts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.domain.choose import EXPECTED_ERROR, TWIN_INTERVALS, interval, select
from tasks.domain.twins import Machine, twin_groups

GIB = 2**30


def machine(name: str, cpu: str = "A", usd: float | None = 1.0, memory_gib: int = 16, n_cpus: int = 4) -> Machine:
    return Machine("v", name, cpu, n_cpus, n_cpus, memory_bytes=memory_gib * GIB, usd_per_hour=usd)


def cost(m: Machine) -> float:
    return m.usd_per_hour or 0.0


def test_twins_share_cpu_threads_and_gpu_but_neither_memory_nor_price():
    groups = twin_groups(
        [machine("a"), machine("b", usd=2.0, memory_gib=64), machine("c", "B"), machine("d", n_cpus=8)]
    )
    assert [[m.server for m in g.machines] for g in groups] == [["b", "a"], ["c"], ["d"]]


@pytest.mark.parametrize(
    "other",
    [{"vendor": "w"}, {"l3_bytes": 2**25}, {"vram_bytes": 3 * GIB}, {"server": "a.metal-48xl"}, {"sweep": "may"}],
)
def test_another_vendor_cache_gpu_memory_bare_metal_or_sweep_makes_no_twin(other: dict[str, object]):
    a = Machine("v", "a", "A", 4, 4, "T4", 1, l3_bytes=2**24, vram_bytes=16 * GIB)
    assert len(twin_groups([a, replace(a, server="b")])) == 1
    assert len(twin_groups([a, replace(a, **{"server": "b", **other})])) == 2  # type: ignore[arg-type]


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
    assert only_first.usd == 3.0 and only_first.expected_error == EXPECTED_ERROR
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


def test_a_large_group_is_opened_before_a_small_one_and_what_is_cheap_is_measured_instead_of_guessed():
    many = [machine(f"a{i}", usd=3.0) for i in range(4)]
    assert [c.machine.server for c in select([machine("b", "B", usd=2.0), *many], cost, 4.0).measured] == ["a0"]
    cheap = [machine("c1", "C", usd=0.01), machine("c2", "C", usd=0.02)]
    found = select([*cheap, machine("b", "B", usd=2.0)], cost, 2.02)
    assert [c.machine.server for c in found.measured] == ["c1", "c2"], "0.01 USD for one known, 2 for another"
    assert [c.machine.server for c in found.unreached] == ["b"]


def test_what_is_not_run_is_predicted_from_all_measured_twins():
    machines = [machine("a1"), machine("a2"), machine("a3", usd=50.0)]
    (predicted,) = select(machines, cost, 3.0).predicted
    assert predicted.machine.server == "a3" and [m.server for m in predicted.sources] == ["a1", "a2"]


def test_the_interval_is_wider_the_further_the_repeats_of_the_twin_lay_apart():
    low, middle, high = interval([9.0, 10.0, 12.0], 0.9, [0.02, 0.001, 0.02])
    assert middle == pytest.approx(10.0) and high / middle == pytest.approx(middle / low)
    assert high < interval([10.0], 0.9, [0.2])[2] and high > interval([10.0], 0.9, [0.001])[2]
    assert interval([10.0], 0.9) == interval([10.0], 0.9, [None]), "a single repeat says nothing of its spread"
    for widths in TWIN_INTERVALS.values():
        assert list(widths) == sorted(widths)
