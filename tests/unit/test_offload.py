"""Layers on the GPU: the arithmetic, the search when it is wrong, and a GPU that is not used in silence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.domain import actions as act
from tasks.domain import events as ev
from tasks.domain.cells import Outcome, Reason
from tasks.domain.conductor import Conductor
from tasks.domain.dynamic import DynamicPolicy
from tasks.domain.gguf import GgufHeader
from tasks.domain.memory import memory_needed_bytes
from tasks.domain.offload import MAX_LOADS, OffloadSearch, backend_used, fits_server, gpu_mib, plan_offload
from tests.plans import GIB, make_plan
from tests.plans import header as plain_header
from tests.unit.test_memory import header

LLAMA_70B = header("llama-3.3-70b")


@pytest.mark.parametrize(
    ("gib", "n_gpus", "least", "most"),
    [(24, 1, 35, 46), (48, 1, 81, 81), (24, 2, 78, 81), (80, 1, 81, 81), (16, 1, 20, 30), (16, 4, 81, 81)],
)
def test_the_70b_on_cards_that_are_sold(gib: int, n_gpus: int, least: int, most: int) -> None:
    planned = plan_offload(LLAMA_70B, [gib * GIB] * n_gpus, 4096)
    assert least <= planned.ngl <= most
    assert planned.whole == (planned.ngl == 81)
    assert planned.gpu_bytes < planned.vram_free_bytes
    needed = memory_needed_bytes(LLAMA_70B, 4096)
    assert planned.gpu_bytes + planned.host_bytes >= needed.weights + needed.kv_cache


@settings(deadline=None)
@given(st.integers(0, 90 * GIB), st.integers(1, 8), st.integers(16, 16384))
def test_a_search_only_goes_down_and_ends(free: int, n_gpus: int, n_ctx: int) -> None:
    search = OffloadSearch(LLAMA_70B, [free] * n_gpus, n_ctx)
    tried = [search.ngl]
    while (ngl := search.failed()) is not None:
        tried.append(ngl)
    assert len(tried) <= MAX_LOADS
    assert tried == sorted(tried, reverse=True)
    assert len(set(tried)) == len(tried)
    assert tried[-1] >= min(1, tried[0])


def test_a_model_without_a_header_is_tried_whole_and_then_in_part() -> None:
    search = OffloadSearch(None, [16 * GIB], 512)
    assert search.ngl == 99
    assert 1 < (search.failed() or 0) < 99


def test_memory_that_nvidia_smi_does_not_tell_is_not_none() -> None:
    """Unified memory has "[N/A]" (https://docs.nvidia.com/dgx/dgx-spark/known-issues.html), MIG "[Insufficient
    Permissions]" (https://github.com/NVIDIA/nvidia-container-toolkit/issues/842): with no layer on the GPU it would be
    the CPU's speed under a GPU's name."""
    search = OffloadSearch(LLAMA_70B, [0], 4096)
    assert (search.ngl, search.first.whole) == (81, True)
    assert 0 < (search.failed() or 0) < 81
    assert OffloadSearch(LLAMA_70B, [80 * GIB, 0], 4096).ngl == 81


def test_what_no_memory_of_the_server_could_hold() -> None:
    assert not fits_server(LLAMA_70B, 512, [16 * GIB], 16 * GIB)
    assert fits_server(LLAMA_70B, 512, [24 * GIB], 32 * GIB)


@pytest.mark.parametrize(
    ("buffers", "layers", "used"),
    [
        ({"CPU model": 90.0, "CUDA0 model": 4000.0, "CUDA_Host model": 12.0}, (33, 33), "CUDA"),
        ({"CPU model": 2000.0, "CUDA0 model": 2000.0}, (17, 33), "CUDA+CPU"),
        ({"CUDA0 model": 2000.0, "CUDA1 model": 2000.0, "CUDA0 KV": 20.0}, (33, 33), "CUDA"),
        ({"CPU model": 90.0, "CPU_REPACK model": 4000.0}, (None, None), "CPU"),
        ({"CPU model": 90.0, "CUDA_Host model": 4000.0}, (0, 33), "CPU"),
        ({"CPU model": 434.0, "CUDA0 model": 1500.0}, (19, 19), "CUDA"),
        ({}, (None, None), ""),
    ],
)
def test_the_backend_is_where_the_weights_are(
    buffers: dict[str, float], layers: tuple[int | None, int | None], used: str
) -> None:
    assert backend_used(buffers, *layers) == used


def test_only_a_gpus_own_memory_counts() -> None:
    assert gpu_mib({"CUDA0 model": 1.5, "CUDA1 model": 2.0, "CUDA_Host model": 9.0, "CUDA0 KV": 7.0}) == 3.5
    assert gpu_mib({"CUDA0 KV": 7.0}, "KV") == 7.0


class OnGpu:
    """A conductor on a server with one GPU, fed by hand up to the first process."""

    def __init__(self, vram: int = 16 * GIB, builds: tuple[str, ...] = ("cuda", "cpu"), memory: int = 64 * GIB) -> None:
        plan = replace(make_plan(models=("large",), builds=builds), gpu_builds=("cuda",))
        self.plan, self.now_s = plan, 0.0
        self.conductor = Conductor(plan, DynamicPolicy())
        self.starts: list[act.StartBench] = []
        self.conductor.on(ev.Probed(0.0, memory, memory, 500 * GIB, 8, (vram,)))
        self.go()
        self.conductor.on(ev.HeaderRead(1.0, "large", gpu_header().to_dict()))
        self.go()

    def go(self) -> None:
        self.now_s += 1.0
        for _ in range(10):
            actions = self.conductor.next(self.now_s)
            for action in actions:
                if isinstance(action, act.StartDownload):
                    self.conductor.on(ev.DownloadStarted(self.now_s, "large", self.plan.models[0].bytes))
                    self.conductor.on(ev.DownloadFinished(self.now_s, "large", self.plan.models[0].bytes, ""))
                elif isinstance(action, act.StartBench):
                    self.starts.append(action)
                    self.conductor.on(ev.BenchStarted(self.now_s, "large", action.build, action.cells))
                elif isinstance(action, act.AbortBench):
                    self.exit(137, aborted=True)
            if not actions:
                return

    def exit(self, rc: int, text: str = "", *, aborted: bool = False, oom: bool = False) -> None:
        self.now_s += 1.0
        self.conductor.on(ev.BenchExited(self.now_s, "large", rc, aborted, text, oom))
        self.go()

    def decisions(self, action: str) -> list[act.Decision]:
        self._seen = [*getattr(self, "_seen", []), *self.conductor.drain_decisions()]
        return [d for d in self._seen if d.action == action]


def gpu_header() -> GgufHeader:
    whole = plain_header(4 * GIB)
    return replace(whole, layer_bytes=(int(4 * GIB * 0.9 / 24),) * 24)


def test_the_first_process_has_the_layers_of_the_arithmetic() -> None:
    server = OnGpu()
    assert [(s.build, s.ngl) for s in server.starts] == [("cuda", 25)]
    (decision,) = server.decisions("offload")
    assert decision.reason == "ok"
    assert decision.evidence["ngl"] == 25


def test_a_small_gpu_gets_a_part_and_that_is_recorded() -> None:
    server = OnGpu(vram=4 * GIB)
    (start,) = server.starts
    assert start.ngl is not None
    assert 5 < start.ngl < 25
    assert server.decisions("offload")[0].reason == "partial"


def test_loads_that_run_out_of_gpu_memory_get_fewer_layers_and_then_the_model_is_given_up() -> None:
    server = OnGpu(vram=4 * GIB)
    text = "allocating 4000.00 MiB on device 0: cudaMalloc failed: out of memory"
    for _ in range(5):
        if server.conductor.bench is not None:
            server.exit(1, text, oom=True)
    layers = [start.ngl or 0 for start in server.starts]
    assert len(layers) == MAX_LOADS
    assert layers == sorted(set(layers), reverse=True)
    assert {r.reason for r in server.conductor.results()} == {Reason.VRAM}
    assert {r.outcome for r in server.conductor.results()} == {Outcome.INFEASIBLE}
    assert len(server.decisions("fewer_layers")) == MAX_LOADS - 1


def test_a_kill_for_the_hosts_memory_does_not_move_layers() -> None:
    server = OnGpu()
    server.exit(137, oom=True)
    assert not server.decisions("fewer_layers")
    assert server.conductor.results()[0].reason is Reason.OUT_OF_MEMORY


def test_a_build_that_uses_the_cpu_in_silence_is_stopped_and_the_cpu_build_takes_over() -> None:
    server = OnGpu()
    server.conductor.on(ev.WarmupStarted(server.now_s, server.plan.cells()[0]))
    server.conductor.on(ev.EngineLoaded(server.now_s, "large", "cuda", {"CPU model": 4096.0}, 0, 25))
    server.go()
    assert [(s.build, s.ngl) for s in server.starts] == [("cuda", 25), ("cpu", None)]
    (fell,) = server.decisions("fall_back_to_cpu")
    assert fell.reason == "gpu_not_used"
    assert not server.conductor.view.has_gpu
    assert not server.conductor.results(), "nothing that was measured there counts"


def test_a_build_that_uses_the_gpu_goes_on() -> None:
    server = OnGpu()
    server.conductor.on(ev.WarmupStarted(server.now_s, server.plan.cells()[0]))
    server.conductor.on(ev.EngineLoaded(server.now_s, "large", "cuda", {"CUDA0 model": 4000.0}, 25, 25))
    server.go()
    assert len(server.starts) == 1
    assert not server.decisions("fall_back_to_cpu")


def test_a_gpu_build_that_dies_names_the_gpus_fault() -> None:
    server = OnGpu()
    server.exit(139, "CUDA error: no kernel image is available for execution on the device")
    (fell,) = server.decisions("fall_back_to_cpu")
    assert fell.reason == "no_kernels_for_gpu"
    assert [s.build for s in server.starts] == ["cuda", "cpu"]


def test_a_gpu_that_is_lost_in_the_middle_is_named_in_the_cells_reason() -> None:
    server = OnGpu()
    first = server.plan.cells()[0]
    server.conductor.on(ev.WarmupStarted(server.now_s, first))
    server.exit(134, "CUDA error: uncorrectable ECC error encountered")
    (result,) = [r for r in server.conductor.results() if r.cell == first]
    assert result.reason is Reason.BENCH_FAILED
    assert "gpu_memory_error" in result.detail


def test_a_model_that_gpu_and_host_cannot_hold_together_is_not_downloaded() -> None:
    server = OnGpu(vram=2 * GIB, memory=GIB)
    assert not server.starts
    assert {r.reason for r in server.conductor.results()} == {Reason.VRAM}


def test_a_model_is_loaded_where_the_gpus_memory_is_not_known() -> None:
    assert [(s.build, s.ngl) for s in OnGpu(vram=0, memory=2 * GIB).starts] == [("cuda", 25)]


def test_a_gpu_of_several_that_is_lost_in_the_middle_ends_the_measuring_with_the_others() -> None:
    """A GPU that has fallen off the bus is not counted any more by cudaGetDeviceCount; the rest would go on as all."""
    server = OnGpu()
    server.conductor.run.offloads.vram_free_bytes = (24 * GIB,) * 8
    server.conductor.on(ev.WarmupStarted(server.now_s, server.plan.cells()[0]))
    buffers = {f"CUDA{n} model": 500.0 for n in range(7)}
    server.conductor.on(ev.EngineLoaded(server.now_s, "large", "cuda", buffers, 25, 25, None, 7))
    server.go()
    (fell,) = server.decisions("fall_back_to_cpu")
    assert fell.reason == "not_all_gpus_used"
    assert not server.conductor.results()


def test_rows_of_a_process_that_missed_the_gpu_do_not_count() -> None:
    """A short cell may be over before the process is stopped: its row then comes in the same breath."""
    server = OnGpu()
    first = server.plan.cells()[0]
    server.conductor.on(ev.WarmupStarted(server.now_s, first))
    server.conductor.on(ev.EngineLoaded(server.now_s, "large", "cuda", {"CPU model": 4096.0}, 0, 25))
    server.conductor.on(ev.BenchRow(server.now_s, first, (0.01,) * 5))
    server.go()
    assert [(s.build, first in s.cells) for s in server.starts] == [("cuda", True), ("cpu", True)]
    assert not server.conductor.results()
