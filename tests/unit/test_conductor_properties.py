"""Properties that hold on every machine: hundreds of machines drawn by Hypothesis."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tasks.domain.cells import Cell, Outcome, Reason
from tasks.domain.classic import ClassicPolicy, classic_ladder
from tasks.domain.dynamic import DynamicPolicy
from tasks.domain.run_plan import RunPlan
from tests.machine import Driver, Machine
from tests.plans import GIB, make_plan, models_of

PROPERTY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MODEL_RANK = {"small": 1.0, "middle": 8.0, "large": 30.0}


@dataclass(frozen=True)
class Draw:
    """A machine's character: speeds at the smallest model, how they fall with length, its noise and its link."""

    pp: float
    tg: float
    fall: float
    noise: float
    link: float
    memory: int

    def machine(self, plan: RunPlan, slower: float = 1.0) -> Machine:
        def speed(cell: Cell) -> float:
            base = self.pp if cell.task == "pp" else self.tg
            return base / MODEL_RANK[cell.model] * (16 / cell.n_tokens) ** self.fall / slower

        def jitter(cell: Cell, k: int) -> float:
            return 1.0 + self.noise * ((hash((cell.task, cell.n_tokens, k)) % 100) / 100.0)

        return Machine(
            speed, headers=models_of(plan), link_bytes_per_s=self.link, memory_bytes=self.memory, jitter=jitter,
            disk_bytes_per_s=2e8,
        )  # fmt: skip


draws = st.builds(
    Draw,
    pp=st.floats(1.0, 1e5),
    tg=st.floats(0.5, 1e4),
    fall=st.floats(0.0, 0.2),
    noise=st.sampled_from([0.0, 0.02, 0.3]),
    link=st.sampled_from([0.5e6, 5e6, 50e6, 500e6]),
    memory=st.sampled_from([GIB // 4, 2 * GIB, 64 * GIB]),
)
guards = st.sampled_from(["off", "pause"])
policies = st.sampled_from(["classic", "dynamic"])


def policy_of(name):
    return ClassicPolicy() if name == "classic" else DynamicPolicy()


@PROPERTY
@given(draws, guards, policies)
def test_every_cell_ends_with_exactly_one_outcome_and_reason(draw, guard, name):
    plan = make_plan(guard=guard, policy=name, ladder=classic_ladder())
    trace = Driver(plan, policy_of(name), draw.machine(plan)).run()
    assert [r.cell for r in trace.results] == list(plan.cells())
    for result in trace.results:
        assert isinstance(result.reason, Reason) and isinstance(result.outcome, Outcome)
        if result.outcome is Outcome.MEASURED:
            assert result.samples_s and all(s > 0 for s in result.samples_s)
        assert result.reason is not Reason.SERVER_FAILED, "a cell was forgotten and swept up at the end"


@PROPERTY
@given(draws, guards, policies, st.floats(0.02, 3.0), st.floats(0.1, 40.0), st.floats(0.0, 300.0))
@example(Draw(1e5, 1e4, 0.0, 0.0, 5e8, 64 * GIB), "off", "dynamic", 0.02, 40.0, 300.0)
def test_spend_never_passes_the_cap(draw, guard, name, max_usd, price, billed_before_s):
    from dataclasses import replace

    plan = make_plan(guard=guard, policy=name, ladder=classic_ladder(), price=price, max_usd=max_usd)
    plan = replace(plan, billed_before_s=billed_before_s)
    trace = Driver(plan, policy_of(name), draw.machine(plan)).run()
    spent_before_usd = billed_before_s * price / 3600
    spent_usd = (billed_before_s + trace.end_s + plan.teardown_reserve_s) * price / 3600
    already_over = spent_before_usd + plan.teardown_reserve_s * price / 3600 > max_usd
    assert spent_usd <= max_usd or (already_over and trace.end_s == 0.0)


@PROPERTY
@given(draws, guards, st.floats(1.0, 50.0))
def test_a_slower_machine_never_unlocks_more(draw, guard, slower):
    plan = make_plan(guard=guard, ladder=classic_ladder(), deadline_s=1e7, max_usd=1e6)
    fast = Driver(plan, DynamicPolicy(), draw.machine(plan)).run()
    slow = Driver(plan, DynamicPolicy(), draw.machine(plan, slower)).run()

    def unlocked(trace):
        return {r.cell for r in trace.results if r.outcome is Outcome.MEASURED}

    assert unlocked(slow) <= unlocked(fast)


@PROPERTY
@given(draws, st.floats(1.0, 50.0))
def test_a_slower_link_never_unlocks_more(draw, slower):
    from dataclasses import replace

    plan = make_plan(ladder=classic_ladder(), deadline_s=1e7, max_usd=1e6)
    fast = Driver(plan, DynamicPolicy(), draw.machine(plan)).run()
    slow = Driver(plan, DynamicPolicy(), replace(draw, link=draw.link / slower).machine(plan)).run()
    measured = [{r.cell for r in t.results if r.outcome is Outcome.MEASURED} for t in (slow, fast)]
    assert measured[0] <= measured[1]


rates = st.sampled_from([0.0, 1e3, 1e5, 3e6, 30e6, 300e6])
changes = st.lists(st.tuples(st.floats(0.0, 6000.0), rates), max_size=6).map(sorted)


@PROPERTY
@given(rates, changes)
def test_no_link_however_it_changes_keeps_a_server_idle_for_long(rate, changes):
    plan = make_plan(deadline_s=1e7, max_usd=1e6)
    policy = DynamicPolicy()
    machine = Machine(lambda c: 1e5, headers=models_of(plan), link_bytes_per_s=rate, link_changes=changes)
    trace = Driver(plan, policy, machine).run()
    seconds_of_benchmarks = 60.0
    allowed_s = policy.download_idle_s + policy.download_judge_s + policy.download_check_s
    assert trace.end_s <= len(plan.models) * allowed_s + seconds_of_benchmarks


@PROPERTY
@given(st.floats(10e6, 500e6), st.floats(60.0, 1000.0), st.floats(0.0, 60.0))
def test_a_link_that_brings_every_model_in_time_is_never_given_up_for_a_minute_of_silence(rate, stalls_s, stall_s):
    plan = make_plan(deadline_s=1e7, max_usd=1e6)
    changes = [(stalls_s, 0.0), (stalls_s + stall_s, rate)]
    machine = Machine(lambda c: 1e5, headers=models_of(plan), link_bytes_per_s=rate, link_changes=changes)
    trace = Driver(plan, DynamicPolicy(), machine).run()
    assert {r.outcome for r in trace.results} == {Outcome.MEASURED}


@PROPERTY
@given(draws)
def test_less_memory_never_unlocks_more(draw):
    from dataclasses import replace

    plan = make_plan(deadline_s=1e7, max_usd=1e6)
    much = Driver(plan, DynamicPolicy(), replace(draw, memory=64 * GIB).machine(plan)).run()
    little = Driver(plan, DynamicPolicy(), replace(draw, memory=GIB).machine(plan)).run()
    measured = [{r.cell for r in t.results if r.outcome is Outcome.MEASURED} for t in (little, much)]
    assert measured[0] <= measured[1]


@PROPERTY
@given(draws, guards, policies)
def test_the_same_events_give_the_same_decisions(draw, guard, name):
    plan = make_plan(guard=guard, policy=name)
    traces = [Driver(plan, policy_of(name), draw.machine(plan)).run() for _ in range(2)]
    assert traces[0].decisions == traces[1].decisions and traces[0].actions == traces[1].actions
