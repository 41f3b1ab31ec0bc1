"""The conductor against a deterministic machine: what it does, why, and how every cell ends."""

from __future__ import annotations

import pytest

from tasks.domain import actions as act
from tasks.domain import events as ev
from tasks.domain.cells import Cell, Outcome, Reason
from tasks.domain.classic import ClassicPolicy, classic_ladder, process_limit_s
from tasks.domain.conductor import Conductor
from tasks.domain.dynamic import DynamicPolicy
from tasks.domain.run_plan import LadderStep, ModelSpec, RunPlan
from tests.machine import Driver, Machine
from tests.plans import GIB, SIZES, header, make_plan, models_of


def run(plan, machine, policy=None):
    return Driver(plan, policy or DynamicPolicy(), machine).run()


def steady(cell: Cell) -> float:
    """A fast server: every gate of the default ladder passes."""
    return {"small": 9000.0, "middle": 5000.0, "large": 3000.0}[cell.model]


def test_every_cell_of_a_fast_server_is_measured_in_one_process_per_model():
    plan = make_plan()
    trace = run(plan, Machine(steady, headers=models_of(plan)))
    assert {r.outcome for r in trace.results} == {Outcome.MEASURED}
    assert [r.cell for r in trace.results] == list(plan.cells())
    starts = [a for _, a in trace.actions if isinstance(a, act.StartBench)]
    assert [a.model for a in starts] == ["small", "middle", "large"]
    assert all(a.cells == tuple(c for c in plan.cells() if c.model == a.model) for a in starts)


def test_the_next_model_is_downloaded_while_the_one_before_is_benchmarked():
    plan = make_plan(guard="off")
    trace = run(plan, Machine(steady, headers=models_of(plan), link_bytes_per_s=20e6))
    started = {(type(a).__name__, a.model): t for t, a in trace.actions if hasattr(a, "model")}
    assert started["StartDownload", "middle"] <= started["StartBench", "small"] + 0.1
    assert started["StartDownload", "middle"] < started["StartBench", "middle"]


def test_the_next_header_is_read_beside_a_download_that_nothing_holds():
    plan = make_plan(guard="off")
    trace = run(plan, Machine(steady, headers=models_of(plan), link_bytes_per_s=20e6))
    at = {
        (type(a).__name__, a.model): t for t, a in trace.actions if isinstance(a, (act.ReadHeader, act.StartDownload))
    }
    assert at["ReadHeader", "middle"] < at["StartDownload", "middle"] - 1.0


def test_guard_holds_downloads_during_timed_repeats_and_lets_go_after():
    plan = make_plan(guard="pause")
    trace = run(plan, Machine(steady, headers=models_of(plan), link_bytes_per_s=20e6))
    kinds = [type(a).__name__ for _, a in trace.actions]
    assert "PauseDownload" in kinds and kinds.count("PauseDownload") == kinds.count("ResumeDownload")
    assert {r.outcome for r in trace.results} == {Outcome.MEASURED}


def test_a_cell_below_its_gate_is_stopped_in_the_middle_and_keeps_its_samples():
    plan = make_plan(models=("small",))
    slow = Cell("small", "tg", 128)  # gate 5 tokens/s
    trace = run(
        plan, Machine(lambda c: 4.6 if c == slow else 5.2 if c.task == "tg" else 9000.0, headers=models_of(plan))
    )
    result = trace.by_cell()[slow]
    assert (result.outcome, result.reason) == (Outcome.GATED, Reason.MEASURED_TOO_SLOW)
    assert 1 <= len(result.samples_s) <= 3, "stopped as soon as its runs cannot be made up for"
    assert result.samples_s[0] == pytest.approx(128 / 4.6)
    longer = trace.by_cell()[Cell("small", "tg", 512)].reason
    assert longer in (Reason.SHORTER_CELL_TOO_SLOW, Reason.PREDICTED_TOO_SLOW)


def test_a_gate_that_a_row_has_just_shut_stops_the_process_before_the_next_cell():
    plan = make_plan(models=("small",))
    machine = Machine(lambda c: 12.0 if c.task == "pp" else 100.0, headers=models_of(plan))
    trace = run(plan, machine, DynamicPolicy(optimism=0.95))
    by_cell = trace.by_cell()
    assert by_cell[Cell("small", "pp", 128)].outcome is Outcome.MEASURED  # gate 10
    assert by_cell[Cell("small", "pp", 512)].reason is Reason.PREDICTED_TOO_SLOW  # gate 29.5 with its warm-up
    assert by_cell[Cell("small", "tg", 16)].outcome is Outcome.MEASURED, "tg must go on in a new process"
    assert sum(isinstance(a, act.StartBench) for _, a in trace.actions) >= 2


def test_repeats_stop_once_the_interval_is_narrow_and_go_on_while_it_is_wide():
    plan = make_plan(models=("small",), ladder=(LadderStep("tg", 512, 1.0),))
    cell = Cell("small", "tg", 512)
    quiet = run(plan, Machine(lambda c: 40.0, headers=models_of(plan))).by_cell()[cell]
    noisy_machine = Machine(lambda c: 40.0, headers=models_of(plan), jitter=lambda c, k: 1.0 + 0.3 * (k % 2))
    noisy = run(plan, noisy_machine).by_cell()[cell]
    assert (len(quiet.samples_s), quiet.outcome) == (3, Outcome.MEASURED)
    assert (len(noisy.samples_s), noisy.outcome) == (5, Outcome.MEASURED)


def test_marks_that_arrive_at_the_same_instant_do_no_harm():
    plan = make_plan(models=("small",))
    conductor = Conductor(plan, DynamicPolicy())
    cell = plan.cells()[0]
    conductor.on(ev.Probed(0.0, 64 * GIB, 64 * GIB, 500 * GIB, 8))
    conductor.next(0.0)
    conductor.on(ev.HeaderRead(0.1, "small", models_of(plan)["small"].to_dict()))
    conductor.next(0.1)
    conductor.on(ev.DownloadFinished(0.2, "small", plan.models[0].bytes, ""))
    assert any(isinstance(a, act.StartBench) for a in conductor.next(0.2))
    conductor.on(ev.BenchStarted(0.3, "small", "default", plan.cells()))
    for event in (ev.WarmupStarted(0.4, cell), *(ev.RepeatStarted(0.4, cell, k, 5) for k in range(1, 6))):
        conductor.on(event)
        assert conductor.next(0.4) == []


def test_a_model_that_does_not_fit_into_memory_is_not_downloaded():
    plan = make_plan()
    machine = Machine(steady, headers=models_of(plan), memory_bytes=3 * GIB)
    trace = run(plan, machine)
    large = [r for r in trace.results if r.cell.model == "large"]
    assert {(r.outcome, r.reason) for r in large} == {(Outcome.INFEASIBLE, Reason.MEMORY)}
    assert not any(isinstance(a, act.StartDownload) and a.model == "large" for _, a in trace.actions)


def test_a_model_that_does_not_fit_onto_the_disk_is_not_downloaded():
    plan = make_plan()
    trace = run(plan, Machine(steady, headers=models_of(plan), disk_bytes=2 * GIB))
    assert {r.reason for r in trace.results if r.cell.model == "large"} == {Reason.DISK}
    assert {r.outcome for r in trace.results if r.cell.model != "large"} == {Outcome.MEASURED}


def test_a_slow_link_gates_the_large_model_by_measured_throughput():
    plan = make_plan(deadline_s=100_000.0, max_usd=1000.0)
    trace = run(plan, Machine(steady, headers=models_of(plan), link_bytes_per_s=1e6))
    large = [r for r in trace.results if r.cell.model == "large"]
    assert {r.reason for r in large} == {Reason.DOWNLOAD_TOO_SLOW}
    assert "optimistic_bytes_per_s" in large[0].detail
    assert {r.outcome for r in trace.results if r.cell.model == "small"} == {Outcome.MEASURED}


@pytest.mark.parametrize("crawl_bytes_per_s", [100e3, 1e3, 0.0])
def test_a_download_that_starts_fast_and_then_crawls_is_given_up_within_minutes(crawl_bytes_per_s):
    plan = make_plan(deadline_s=1e6, max_usd=1e6)
    # 500 MiB of 4 GiB are missing when it begins to crawl: 1.4 hours at best.
    begins_s = (SIZES["small"] + SIZES["middle"] + SIZES["large"] - 500 * 2**20) / 100e6
    machine = Machine(steady, headers=models_of(plan), link_changes=[(begins_s, crawl_bytes_per_s)])
    trace = run(plan, machine)
    large = [r for r in trace.results if r.cell.model == "large"]
    assert {r.reason for r in large} == {Reason.DOWNLOAD_TOO_SLOW}
    assert "optimistic_bytes_per_s" in large[0].detail
    assert trace.end_s < begins_s + 900.0
    assert {r.outcome for r in trace.results if r.cell.model != "large"} == {Outcome.MEASURED}


def test_a_link_that_comes_back_after_a_minute_of_silence_is_waited_for():
    plan = make_plan(deadline_s=1e6, max_usd=1e6)
    machine = Machine(
        steady, headers=models_of(plan), link_bytes_per_s=20e6, link_changes=[(120.0, 0.0), (180.0, 20e6)]
    )
    assert {r.outcome for r in run(plan, machine).results} == {Outcome.MEASURED}


def test_a_download_that_goes_on_beside_a_benchmark_costs_nothing_and_is_let_come():
    plan = make_plan(deadline_s=1e6, max_usd=1e6, ladder=(LadderStep("tg", 512, 0.05),))
    slow_bench = Machine(lambda c: 0.6 if c.model == "middle" else 100.0, headers=models_of(plan))
    slow_bench.link_changes = [((SIZES["small"] + SIZES["middle"]) / 100e6 + 1.0, 1.5e6)]
    assert {r.outcome for r in run(plan, slow_bench).results} == {Outcome.MEASURED}
    slow_bench.speed = lambda c: 100.0  # the server would stand idle for the same download
    assert {r.reason for r in run(plan, slow_bench).results if r.cell.model == "large"} == {Reason.DOWNLOAD_TOO_SLOW}


@pytest.mark.parametrize("reason", ["download_dead", "checksum", "download_failed", "disk_full", "not_gguf"])
def test_a_failed_download_fails_its_own_model_only(reason):
    plan = make_plan()
    trace = run(plan, Machine(steady, headers=models_of(plan), download_fails={"middle": reason}))
    assert {r.reason.value for r in trace.results if r.cell.model == "middle"} == {reason}
    assert {r.outcome for r in trace.results if r.cell.model != "middle"} == {Outcome.MEASURED}


def test_a_file_that_is_no_gguf_is_known_before_its_download():
    plan = make_plan()
    headers = models_of(plan)
    del headers["middle"]
    trace = run(plan, Machine(steady, headers=headers))
    assert {r.reason for r in trace.results if r.cell.model == "middle"} == {Reason.NOT_GGUF}
    assert not any(isinstance(a, act.StartDownload) and a.model == "middle" for _, a in trace.actions)


@pytest.mark.parametrize("rc", [132, 139, 127])
def test_a_build_that_this_cpu_cannot_run_is_replaced_by_the_next(rc):
    plan = make_plan(builds=("amx", "avx512", "avx2"))
    machine = Machine(steady, headers=models_of(plan), dies_with=lambda build, model: None if build == "avx2" else rc)
    trace = run(plan, machine)
    assert {r.outcome for r in trace.results} == {Outcome.MEASURED}
    assert [a.build for _, a in trace.actions if isinstance(a, act.StartBench)][:3] == ["amx", "avx512", "avx2"]
    assert [d.evidence["build"] for d in trace.decisions if d.action == "next_build"] == ["amx", "avx512"]


def test_no_working_build_is_said_for_every_cell():
    plan = make_plan(builds=("amx",))
    trace = run(plan, Machine(steady, headers=models_of(plan), dies_with=lambda b, m: 132))
    assert {r.reason for r in trace.results} == {Reason.NO_WORKING_BUILD}
    assert "rc 132" in trace.results[0].detail


def test_a_crash_with_a_proven_build_is_a_failure_of_that_model_not_of_the_build():
    plan = make_plan(builds=("avx512", "avx2"))
    machine = Machine(steady, headers=models_of(plan), dies_with=lambda b, m: 139 if m == "middle" else None)
    trace = run(plan, machine)
    assert {r.reason for r in trace.results if r.cell.model == "middle"} == {Reason.BENCH_FAILED}
    assert {r.outcome for r in trace.results if r.cell.model == "large"} == {Outcome.MEASURED}


def test_a_killed_llama_bench_is_tried_once_more_then_failed():
    plan = make_plan()
    trace = run(plan, Machine(steady, headers=models_of(plan), dies_with=lambda b, m: 137 if m == "middle" else None))
    assert {r.reason for r in trace.results if r.cell.model == "middle"} == {Reason.BENCH_KILLED}
    assert sum(isinstance(a, act.StartBench) and a.model == "middle" for _, a in trace.actions) == 2


def test_exit_0_without_data_is_a_failure():
    plan = make_plan(models=("small",))
    trace = run(plan, Machine(steady, headers=models_of(plan), dies_with=lambda b, m: 0))
    assert {r.reason for r in trace.results} == {Reason.BENCH_FAILED}


def test_the_run_ends_before_the_money_does():
    plan = make_plan(price=36.0, max_usd=1.0, teardown_reserve_s=10.0)  # one cent a second
    trace = run(plan, Machine(lambda c: 30.0, headers=models_of(plan)))
    assert (trace.end_s + plan.teardown_reserve_s) * plan.price_usd_per_hour / 3600 <= plan.max_usd
    assert Reason.MONEY in {r.reason for r in trace.results}


def test_a_deadline_ends_the_run_with_the_finished_repeats_kept():
    plan = make_plan(deadline_s=60.0, teardown_reserve_s=5.0, ladder=(LadderStep("tg", 512, 1.0),), models=("small",))
    trace = run(plan, Machine(lambda c: 25.0, headers=models_of(plan), jitter=lambda c, k: 1 + 0.5 * (k % 2)))
    result = trace.results[0]
    assert (result.outcome, result.reason) == (Outcome.NOT_REACHED, Reason.DEADLINE)
    assert 1 <= len(result.samples_s) < 5


def test_cells_measured_by_an_interrupted_run_are_not_measured_again():
    cell = Cell("small", "pp", 16)
    plan = make_plan(models=("small",), measured=((cell, (0.1, 0.1, 0.1)),))
    trace = run(plan, Machine(steady, headers=models_of(plan)))
    assert trace.by_cell()[cell].samples_s == (0.1, 0.1, 0.1)
    assert all(cell not in a.cells for _, a in trace.actions if isinstance(a, act.StartBench))


def test_a_sweep_with_nothing_left_downloads_nothing():
    first = make_plan(models=("small",))
    plan = make_plan(models=("small",), measured=tuple((c, (0.1, 0.1, 0.1)) for c in first.cells()))
    trace = run(plan, Machine(steady, headers=models_of(plan)))
    assert [type(a).__name__ for _, a in trace.actions] == ["Finish"]


def test_decisions_record_going_on_as_well_as_stopping_with_evidence():
    plan = make_plan(models=("small",))
    trace = run(plan, Machine(steady, headers=models_of(plan)))
    run_cells = [d for d in trace.decisions if d.action == "run_cell"]
    assert {d.subject for d in run_cells} == {str(c) for c in plan.cells()}
    assert all(d.evidence for d in run_cells)


# -- policy classic: the predecessor's numbers ---------------------------------------------------------


@pytest.mark.parametrize(
    ("gib", "n_tokens", "tps", "limit_s"),
    [(0.0977, 16, 2.0, 41), (0.0977, 128, 10.0, 65), (39.6, 16, 1.0, 239), (3.8, 16384, 1000.0, 98)],
)
def test_classic_time_limits(gib, n_tokens, tps, limit_s):
    assert process_limit_s(int(gib * 2**30), n_tokens, tps) == limit_s


def test_classic_gates_are_the_predecessors():
    steps = {(s.task, s.n_tokens): s.min_tok_per_s for s in classic_ladder()}
    assert steps["pp", 16] == 2 and steps["pp", 16384] == 1000 and steps["tg", 16] == 1 and steps["tg", 4096] == 250
    assert len(steps) == 11


def test_classic_runs_one_process_per_cell_with_five_repeats():
    plan = make_plan(policy="classic", ladder=classic_ladder())
    trace = run(plan, Machine(steady, headers=models_of(plan)), ClassicPolicy())
    starts = [a for _, a in trace.actions if isinstance(a, act.StartBench)]
    assert all(len(a.cells) == 1 and a.n_repeats == 5 for a in starts)
    assert {r.outcome for r in trace.results} == {Outcome.MEASURED}


def test_classic_stops_the_server_when_the_shortest_cell_times_out():
    plan = make_plan(policy="classic", ladder=classic_ladder())
    trace = run(
        plan, Machine(lambda c: 0.1 if c.model == "middle" else 9000.0, headers=models_of(plan)), ClassicPolicy()
    )
    by_cell = trace.by_cell()
    assert by_cell[Cell("middle", "pp", 16)].reason is Reason.CELL_TIMEOUT
    assert by_cell[Cell("middle", "pp", 16)].outcome is Outcome.TIMED_OUT
    assert {r.reason for r in trace.results if r.cell.model == "large"} == {Reason.SMALLEST_FAILED}


def test_classic_stops_only_the_task_when_a_longer_cell_times_out():
    plan = make_plan(policy="classic", models=("small",), ladder=classic_ladder())
    trace = run(plan, Machine(lambda c: 15.0 if c.task == "pp" else 9000.0, headers=models_of(plan)), ClassicPolicy())
    by_cell = trace.by_cell()
    assert by_cell[Cell("small", "pp", 512)].reason is Reason.CELL_TIMEOUT
    assert by_cell[Cell("small", "pp", 1024)].reason is Reason.SHORTER_CELL_TOO_SLOW
    assert by_cell[Cell("small", "tg", 4096)].outcome is Outcome.MEASURED


def test_classic_drops_the_next_length_when_a_long_cell_was_too_near_its_limit():
    plan = make_plan(policy="classic", models=("small",), ladder=classic_ladder())
    trace = run(plan, Machine(lambda c: 80.0 if c.task == "pp" else 9000.0, headers=models_of(plan)), ClassicPolicy())
    by_cell = trace.by_cell()
    assert by_cell[Cell("small", "pp", 1024)].outcome is Outcome.MEASURED
    assert by_cell[Cell("small", "pp", 4096)].reason is Reason.PREDICTED_TOO_SLOW


def test_classic_waits_at_most_900_s_for_a_download():
    plan = make_plan(policy="classic", models=("small",), deadline_s=1e6, max_usd=1e6)
    trace = run(plan, Machine(steady, headers=models_of(plan), link_bytes_per_s=0.1e6), ClassicPolicy())
    assert {r.reason for r in trace.results} == {Reason.DOWNLOAD_TOO_SLOW}
    assert 900 <= trace.end_s <= 903


def test_the_models_are_taken_in_order_of_size_whatever_the_plan_says():
    specs = tuple(ModelSpec(n, f"{n}.gguf", ("http://x/" + n,), b) for n, b in (("b", 2 * GIB), ("a", GIB)))
    plan = RunPlan("s", "r", "srv", specs, (LadderStep("pp", 16, 2.0),), "dynamic", 1.0, 10.0, 1000.0)
    trace = run(plan, Machine(lambda c: 100.0, headers={n: header(b) for n, b in (("a", GIB), ("b", 2 * GIB))}))
    assert [a.model for _, a in trace.actions if isinstance(a, act.StartBench)] == ["a", "b"]


class ContextsThatDoNotFit(Driver):
    """Memory ends where llama.cpp makes the context of a cell, KV cache and all: after the row before it, before its
    first mark."""

    no_room = staticmethod(lambda cell: cell.task == "pp" and cell.n_tokens == 512)

    def do_StartBench(self, a):
        super().do_StartBench(a)
        first = next((c for c in a.cells if self.no_room(c)), None)
        if first is None:
            return
        at_s = next(t for t, _, e in self.queue if isinstance(e, ev.WarmupStarted) and e.cell == first)
        self.queue = [(t, n, e) for t, n, e in self.queue if t < at_s or (t == at_s and isinstance(e, ev.BenchRow))]
        self.post(at_s, lambda t: ev.BenchExited(t, a.model, 137, False, "", oom=True), self.bench_tag)


def test_a_context_without_room_ends_its_own_cell_and_no_other_task_or_model():
    plan = make_plan(models=("small", "middle"))
    found = ContextsThatDoNotFit(plan, DynamicPolicy(), Machine(steady, headers=models_of(plan))).run().by_cell()
    too_long = Cell("small", "pp", 512), Cell("middle", "pp", 512)
    assert [found[c].reason for c in too_long] == [Reason.OUT_OF_MEMORY, Reason.MEMORY]
    assert {r.outcome for c, r in found.items() if c not in too_long} == {Outcome.MEASURED}


class DiesAtItsExit(Driver):
    """llama-bench prints all its rows and then dies in the destructors of a driver's library."""

    def do_StartBench(self, a):
        super().do_StartBench(a)
        self.queue = [
            (t, n, ev.BenchExited(t, a.model, 134, False, "double free") if isinstance(e, ev.BenchExited) else e)
            for t, n, e in self.queue
        ]


def test_a_crash_after_the_last_row_takes_nothing_from_the_other_cells():
    plan = make_plan(models=("small",), policy="classic")
    trace = DiesAtItsExit(plan, ClassicPolicy(), Machine(steady, headers=models_of(plan))).run()
    assert {(r.reason, len(r.samples_s)) for r in trace.results} == {(Reason.OK, 5)}
