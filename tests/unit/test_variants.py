"""Measurements beside the ladder: what is planned, when it runs, and what comes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.domain import actions as act
from tasks.domain.burst import CREDITS, SHARED, Burst, burst_of, sustained
from tasks.domain.cells import Cell, CellResult, Outcome, Reason
from tasks.domain.dynamic import DynamicPolicy
from tasks.domain.errors import ConfigError
from tasks.domain.policy import RunView
from tasks.domain.run_plan import RunPlan
from tasks.domain.thread_search import choose_threads, thread_candidates
from tasks.domain.variants import Machine as Seen
from tasks.domain.variants import VariantOptions, after_ladder
from tests.machine import Driver, Machine, Trace
from tests.plans import GIB, header, make_plan, models_of

CORES = {"cpu": {"n_cores": 4, "n_numa_nodes": 1, "cgroup_cpus": None}}


def steady(cell: Cell) -> float:
    return {"small": 9000.0, "middle": 5000.0, "large": 3000.0}[cell.model]


def played(wanted: dict[str, Any], **machine: Any) -> Trace:
    plan = replace(make_plan(), variants=wanted)
    return Driver(plan, DynamicPolicy(), Machine(steady, headers=models_of(plan), **machine)).run()


def variants_of(trace: Trace) -> list[tuple[str, str, str]]:
    return [
        (a.variant.model, a.variant.kind, a.variant.label) for _, a in trace.actions if isinstance(a, act.StartVariant)
    ]


def names(trace: Trace) -> list[str]:
    return [f"{type(a).__name__} {getattr(a, 'model', '') or getattr(getattr(a, 'variant', None), 'label', '')}".strip()
            for _, a in trace.actions]  # fmt: skip


def test_without_wishes_nothing_runs_beside_the_ladder() -> None:
    assert variants_of(played({})) == []


def test_the_anchor_runs_after_the_first_model_in_the_middle_and_at_the_end_and_its_file_stays() -> None:
    trace = played({"anchor": True})
    assert variants_of(trace) == [("small", "anchor", label) for label in ("start", "middle", "end")]
    order = [n for n in names(trace) if n.startswith(("StartBench", "StartVariant", "RemoveModel", "Finish"))]
    assert order == [
        "StartBench small", "StartVariant start", "StartBench middle", "RemoveModel middle", "StartVariant middle",
        "StartBench large", "RemoveModel large", "StartVariant end", "RemoveModel small", "Finish",
    ]  # fmt: skip
    shapes = {(a.variant.n_prompt, a.variant.n_gen, a.variant.n_repeats) for _, a in trace.actions
              if isinstance(a, act.StartVariant)}  # fmt: skip
    assert shapes == {((512,), (512,), 3)}, "the same test each time"
    assert {r.outcome for r in trace.results} == {Outcome.MEASURED}


def test_a_single_model_has_no_anchor() -> None:
    plan = replace(make_plan(models=("small",)), variants={"anchor": True})
    trace = Driver(plan, DynamicPolicy(), Machine(steady, headers=models_of(plan))).run()
    assert variants_of(trace) == []


def test_downloads_make_way_for_a_variant() -> None:
    plan = replace(make_plan(guard="auto"), variants={"anchor": True})
    trace = Driver(plan, DynamicPolicy(), Machine(steady, headers=models_of(plan), link_bytes_per_s=20e6)).run()
    kinds = [type(a).__name__ for _, a in trace.actions]
    began = kinds.index("StartVariant")
    assert "PauseDownload" in kinds[: began + 2]


def test_a_variant_that_hangs_is_killed_and_the_run_goes_on() -> None:
    trace = played({"anchor": True}, variants={"anchor": (True, [])})
    assert sum(isinstance(a, act.AbortVariant) for _, a in trace.actions) == 3
    assert {r.outcome for r in trace.results} == {Outcome.MEASURED}
    assert {d.reason for d in trace.decisions if d.action == "variant_ended"} == {"timed_out"}


def test_no_variant_outlives_money_and_deadline() -> None:
    plan = replace(make_plan(deadline_s=60.0), variants={"depth": [16384], "anchor": True})
    trace = Driver(plan, DynamicPolicy(), Machine(steady, headers=models_of(plan), link_bytes_per_s=1e9)).run()
    assert trace.end_s <= 60.0
    assert any(d.action == "skip_variant" for d in trace.decisions)


def rows(speeds: dict[int, tuple[float, float]]) -> list[dict[str, Any]]:
    out = []
    for n, (pp, tg) in speeds.items():
        out.append({"n_threads": n, "n_prompt": 64, "n_gen": 0, "samples_ns": [64 / pp * 1e9] * 2})
        out.append({"n_threads": n, "n_prompt": 0, "n_gen": 8, "samples_ns": [8 / tg * 1e9] * 2})
    return out


def test_the_thread_search_decides_what_the_ladder_runs_with() -> None:
    found = rows({8: (100.0, 50.0), 4: (120.0, 70.0)})
    trace = played({"threads": True}, hardware=CORES, variants={"threads": (False, found)})
    assert variants_of(trace) == [("small", "threads", "8 4")]
    assert {a.n_threads for _, a in trace.actions if isinstance(a, act.StartBench)} == {4}
    (chosen,) = [d for d in trace.decisions if d.action == "choose_threads"]
    assert chosen.evidence["n_threads"] == 4


def test_a_thread_search_that_is_too_slow_changes_nothing() -> None:
    trace = played({"threads": True}, hardware=CORES, variants={"threads": (True, [])})
    assert {a.n_threads for _, a in trace.actions if isinstance(a, act.StartBench)} == {8}


@pytest.mark.parametrize(
    ("n_cpus", "n_cores", "quota", "candidates"),
    [
        (1, 1, None, (1,)),
        (2, 1, None, (2,)),  # a server this small has nothing to choose
        (8, 8, None, (8,)),
        (8, 4, None, (8, 4)),
        (8, None, None, (8,)),
        (3, 4, 3.5, (3, 4)),
        (4, 16, 4.0, (4,)),
    ],
)
def test_threads_worth_trying(n_cpus: int, n_cores: int | None, quota: float | None, candidates: Any) -> None:
    assert thread_candidates(n_cpus, n_cores, quota) == candidates


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ({8: (100.0, 50.0), 4: (103.0, 51.0)}, 8),  # within noise
        ({8: (100.0, 50.0), 4: (80.0, 80.0)}, 4),
        ({8: (100.0, 50.0), 4: (50.0, 80.0)}, 8),
    ],
)
def test_fewer_threads_must_be_clearly_faster(speeds: dict[int, tuple[float, float]], chosen: int) -> None:
    assert choose_threads(rows(speeds), (8, 4)).n_threads == chosen


def test_a_search_that_was_cut_off_keeps_the_default() -> None:
    assert choose_threads(rows({8: (100.0, 50.0), 4: (900.0, 900.0)})[:3], (8, 4)).n_threads == 8


def view_of(plan: RunPlan, memory: int = 64 * GIB) -> RunView:
    """Everything of `small` measured at 1000 tokens/s."""
    view = RunView(plan, memory_total_bytes=memory, memory_available_bytes=memory)
    for cell in plan.cells():
        if cell.model == "small":
            view.add_result(CellResult(cell, Reason.OK, "", (cell.n_tokens / 1000.0,) * 3))
    layers = (4 * 2**20,) * 24
    view.headers["small"] = replace(header(100 * 2**20), layer_bytes=layers)
    return view


def planned(options: dict[str, Any], seen: Seen, memory: int = 64 * GIB) -> list[tuple[str, str]]:
    found = after_ladder(view_of(make_plan(), memory), VariantOptions.from_dict(options), seen, "small")
    return [(v.kind, v.label) for v in found]


ALL = {"depth": [4096], "combined": [[512, 128]], "kv_types": ["q8_0"], "gpus": True, "instances": True, "numa": True,
       "batched": [1, 5, 10, 50, 100]}  # fmt: skip


def test_what_a_plain_cpu_server_gets() -> None:
    assert planned(ALL, Seen()) == [("depth", "d4096"), ("combined", "pg512+128"), ("kv_type", "q8_0")]


def test_numa_modes_on_a_machine_of_two_nodes() -> None:
    assert planned({"numa": True}, Seen(n_numa_nodes=2)) == [("numa", "distribute"), ("numa", "isolate")]
    assert planned({"numa": True}, Seen(n_numa_nodes=2, vram_free_bytes=(24 * GIB,))) == []


def test_gpus_alone_in_sets_and_as_instances() -> None:
    seen = Seen(vram_free_bytes=(24 * GIB,) * 4)
    found = planned({"gpus": True, "instances": True}, seen)
    assert found == [("gpu", f"CUDA{i}") for i in range(4)] + [
        ("gpu_set", "2 GPUs"), ("gpu_set", "4 GPUs"), ("instances", "4 instances")]  # fmt: skip
    variants = after_ladder(
        view_of(make_plan()), VariantOptions.from_dict({"gpus": True, "instances": True}), seen, "small"
    )
    by_label = {v.label: v for v in variants}
    assert by_label["4 GPUs"].devices == ("CUDA0/CUDA1/CUDA2/CUDA3",)
    assert by_label["4 instances"].devices == ("CUDA0", "CUDA1", "CUDA2", "CUDA3")
    assert planned({"gpus": True, "instances": True}, Seen(vram_free_bytes=(24 * GIB,))) == []


def test_batched_decoding_needs_its_program_and_stays_within_memory() -> None:
    seen = Seen(programs=("llama-bench", "llama-batched-bench"))
    assert planned({"batched": [1, 5, 10, 50, 100]}, seen) == [("batched", "1-5-10-50-100")]
    assert planned({"batched": [1, 5, 10, 50, 100]}, seen, memory=GIB) == [("batched", "1-5-10")]
    assert planned({"batched": [1]}, Seen(programs=("llama-bench",))) == []


def test_a_depth_beyond_the_memory_is_left_out() -> None:
    assert planned({"depth": [1024, 60000]}, Seen(), memory=GIB) == [("depth", "d1024")]


def test_a_model_of_which_nothing_was_measured_gets_nothing() -> None:
    view = view_of(make_plan())
    assert after_ladder(view, VariantOptions.from_dict(ALL), Seen(), "large") == []


def test_wishes_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="no variant 'deep'"):
        VariantOptions.from_dict({"deep": True})
    with pytest.raises(ConfigError, match="no cache type 'q3'"):
        VariantOptions.from_dict({"kv_types": ["q3"]})


def test_a_long_run_is_made_of_pieces_until_its_time_is_over() -> None:
    trace = played({"sustain_s": 30.0})
    kinds = [kind for _, kind, _ in variants_of(trace)]
    assert 20 <= kinds.count("sustain") <= 40
    assert len({label for _, _, label in variants_of(trace)}) == len(kinds)


def test_a_speed_that_falls_is_a_burst_with_a_baseline() -> None:
    fell = sustained([(t, 100.0 if t < 200 else 20.0) for t in range(0, 600, 10)])
    assert fell is not None
    assert (fell.burst_tok_per_s, fell.baseline_tok_per_s, fell.fell) == (100.0, 20.0, True)
    kept = sustained([(t, 100.0 - t / 100) for t in range(0, 600, 10)])
    assert kept is not None
    assert not kept.fell
    assert sustained([(0.0, 1.0)]) is None


@pytest.mark.parametrize(
    ("vendor", "server", "expected"),
    [
        ("aws", "t3.micro", Burst(CREDITS, 0.10)),
        ("aws", "t4g.2xlarge", Burst(CREDITS, 0.40)),
        ("aws", "t2.xlarge", Burst(CREDITS, 0.225)),
        ("aws", "m7i.large", None),
        ("aws", "trn1.2xlarge", None),
        ("azure", "Standard_B2s", Burst(CREDITS, 0.20)),
        ("azure", "Standard_B2ts_v2", Burst(CREDITS, None)),
        ("azure", "Standard_D2s_v5", None),
        ("gcp", "e2-micro", Burst(CREDITS, 0.125)),
        ("gcp", "e2-standard-2", None),
        ("hetzner", "cx22", Burst(SHARED)),
        ("hetzner", "ccx13", None),
        ("upcloud", "DEV-1xCPU-1GB", Burst(SHARED)),
        ("local", "loop-1", None),
    ],
)
def test_server_types_that_are_fast_only_for_a_while(vendor: str, server: str, expected: Burst | None) -> None:
    assert burst_of(vendor, server) == expected


EVERYTHING = {"anchor": True, "threads": True, "depth": [512], "combined": [[128, 16]], "kv_types": ["q8_0"],
              "sustain_s": 20.0}  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.floats(1.0, 1e5),
    st.sampled_from([0.5e6, 50e6, 500e6]),
    st.sampled_from(["off", "pause", "auto"]),
    st.sets(st.sampled_from(["anchor", "threads", "depth", "combined", "kv_type", "sustain"])),
    st.floats(0.02, 3.0),
    st.floats(0.1, 40.0),
)
def test_whatever_runs_beside_the_ladder_money_holds_and_every_cell_ends_once(
    speed: float, link: float, guard: str, hanging: set[str], max_usd: float, price: float
) -> None:
    """Machines of any speed, of which any kind of variant may hang for ever."""
    plan = replace(make_plan(guard=guard, price=price, max_usd=max_usd), variants=EVERYTHING)
    machine = Machine(
        lambda cell: speed / (16 / cell.n_tokens + 1),
        headers=models_of(plan),
        link_bytes_per_s=link,
        hardware=CORES,
        variants={kind: (True, []) for kind in hanging},
    )
    trace = Driver(plan, DynamicPolicy(), machine).run()
    assert [r.cell for r in trace.results] == list(plan.cells())
    assert all(r.reason is not Reason.SERVER_FAILED for r in trace.results)
    over = plan.teardown_reserve_s * price / 3600 > max_usd
    assert (trace.end_s + plan.teardown_reserve_s) * price / 3600 <= max_usd or (over and trace.end_s == 0.0)
    begun = [a for _, a in trace.actions if isinstance(a, (act.StartBench, act.StartVariant, act.RemoveModel))]
    gone: set[str] = set()
    for action in begun:
        if isinstance(action, act.RemoveModel):
            assert action.model not in gone, "a file is removed once"
            gone.add(action.model)
        else:
            model = action.model if isinstance(action, act.StartBench) else action.variant.model
            assert model not in gone, "nothing runs whose file is gone"
