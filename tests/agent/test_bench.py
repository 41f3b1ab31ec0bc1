"""One llama-bench process: what its end means."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from agent.bench import Bench, bench_argv, bench_environment
from agent.child import Kill, start_program
from agent.driver import Driver
from agent.eventlog import EventLog
from agent.limits import usable

from tasks.domain.actions import StartBench
from tasks.domain.cells import Cell
from tasks.domain.conductor import Conductor
from tasks.domain.errors import AgentError
from tasks.domain.events import BenchExited, BenchRow, BenchStarted, Event, RepeatStarted, WarmupStarted
from tasks.domain.policies import policy_for
from tests.agent.gpu_output import runtime_of_programs, says
from tests.agent.runtimes import fake_runtime, real_model, real_runtime
from tests.plans import make_plan

CELLS = (Cell("m", "pp", 16), Cell("m", "pp", 32), Cell("m", "tg", 4))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    return path


def start(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, **run: Any) -> Bench:
    monkeypatch.setenv("FAKE_BENCH", json.dumps([run]))
    monkeypatch.setenv("FAKE_BENCH_COUNTER", str(tmp_path / "counter"))
    runtime = fake_runtime(tmp_path)
    action = StartBench("m", "generic", CELLS, 3)
    return Bench(action, bench_argv(runtime, model, action, 1), bench_environment(runtime, "generic", {}))


def follow(bench: Bench, until: type[Event] | None = None) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        events += bench.reap(9.0) if bench.ended else bench.read(1.0)
        if any(isinstance(e, BenchExited) or (until and isinstance(e, until)) for e in events):
            return events
        time.sleep(0.005)
    raise AssertionError(events)


def end(bench: Bench) -> BenchExited:
    exited = follow(bench)[-1]
    assert isinstance(exited, BenchExited)
    return exited


def test_every_cell_gives_warmup_repeats_and_row(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = start(tmp_path, model, monkeypatch)
    started = bench.started(0.5)
    assert started == BenchStarted(0.5, "m", "generic", CELLS, started.pid)
    assert started.pid > 0
    events = follow(bench)
    for cell in CELLS:
        of_cell = [e for e in events if isinstance(e, (WarmupStarted, RepeatStarted, BenchRow)) and e.cell == cell]
        assert [type(e) for e in of_cell] == [WarmupStarted, RepeatStarted, RepeatStarted, RepeatStarted, BenchRow]
        assert [e.k for e in of_cell if isinstance(e, RepeatStarted)] == [1, 2, 3]
    assert events[-1] == BenchExited(9.0, "m", 0, False, "")


@pytest.mark.parametrize(("signal", "rc"), [("SIGILL", 132), ("SIGABRT", 134), ("SIGSEGV", 139)])
def test_a_crash_is_told_as_a_shell_would(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, signal: str, rc: int
) -> None:
    fault = {"cell": 1, "do": "signal", "signal": signal, "text": "GGML_ASSERT failed"}
    events = follow(start(tmp_path, model, monkeypatch, fault=fault))
    assert sum(isinstance(e, BenchRow) for e in events) == 1, "rows before the crash are kept"
    assert events[-1] == BenchExited(9.0, "m", rc, False, "GGML_ASSERT failed")


def test_a_kill_by_somebody_else_is_no_abort(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exited = end(start(tmp_path, model, monkeypatch, fault={"cell": 0, "do": "signal", "signal": "SIGKILL"}))
    assert (exited.rc, exited.aborted, exited.oom) == (137, False, False)


@pytest.mark.parametrize("text", ["std::bad_alloc", "ggml: failed to allocate buffer of size 9"])
def test_a_failed_allocation_is_out_of_memory(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    exited = end(start(tmp_path, model, monkeypatch, fault={"cell": -1, "do": "exit", "rc": 1, "text": text}))
    assert (exited.rc, exited.oom) == (1, True)


def test_memory_that_cannot_be_pinned_is_no_lack_of_memory(tmp_path: Path) -> None:
    """ggml_cuda_host_malloc (ggml-cuda.cu) takes ordinary memory then; what ends the process is another thing."""
    log = (
        "ggml_cuda_host_malloc: failed to allocate 512.00 MiB of pinned memory: out of memory\n"
        "CUDA error: an illegal memory access was encountered"
    )
    runtime = runtime_of_programs(tmp_path, [{"name": "cuda"}], {"cuda": says(tmp_path / "cuda", log, 134)})
    action = StartBench("m", "cuda", (Cell("m", "pp", 16),), 1, 99, 1)
    bench = Bench(action, bench_argv(runtime, tmp_path / "m.gguf", action, 1), bench_environment(runtime, "cuda", {}))
    ended = end(bench)
    assert (ended.rc, ended.oom) == (134, False)
    assert "illegal memory access" in ended.stderr_tail


def test_garbage_between_the_rows_does_no_harm(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = follow(start(tmp_path, model, monkeypatch, garbage=True))
    assert [e.cell for e in events if isinstance(e, BenchRow)] == list(CELLS)
    assert events[-1] == BenchExited(9.0, "m", 0, False, "")


def test_abort_ends_a_process_that_hangs(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = start(tmp_path, model, monkeypatch, fault={"cell": 1, "do": "hang"})
    events = follow(bench, BenchRow)
    bench.abort()
    bench.abort()
    events += follow(bench)
    assert sum(isinstance(e, BenchRow) for e in events) == 1
    exited = events[-1]
    assert isinstance(exited, BenchExited)
    assert (exited.rc, exited.aborted) == (137, True)


def test_a_process_that_no_signal_reaches_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs in the driver of a GPU that has fallen off the bus: https://github.com/NVIDIA/nvidia-docker/issues/1553.

    No process can be made so on purpose, so the signal is kept from it.
    """
    process = start_program(["sleep", "600"])
    kill = Kill(process)
    with monkeypatch.context() as patched:
        patched.setattr("os.killpg", lambda *_: None)
        patched.setattr("agent.child.KILL_PATIENCE_S", 0.0)
        patched.setattr("agent.child.END_PATIENCE_S", 0.01)
        assert not kill.in_vain, "nobody has killed it yet"
        kill.send()
        time.sleep(0.01)
        assert kill.in_vain
        assert not kill.works()
    kill.send()
    assert kill.works()
    assert not kill.in_vain
    kill.send()


@pytest.mark.parametrize("aborts_by_itself", [True, False])
def test_a_run_whose_engine_cannot_be_killed_ends_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aborts_by_itself: bool
) -> None:
    plan = make_plan(models=("small",), builds=("cpu",))
    log = EventLog(tmp_path / "events.jsonl")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / plan.models[0].file).write_bytes(b"")
    runtime = runtime_of_programs(tmp_path, [{"name": "cpu"}], {"cpu": Path("/usr/bin/yes")})
    driver = Driver(plan, Conductor(plan, policy_for("dynamic", {})), log, run_dir=tmp_path, runtime_dir=runtime,
                    clock=time.monotonic, options={}, bench_extra={})  # fmt: skip
    bench = Bench(StartBench("small", "cpu", plan.cells()[:1], 1, None, 1), ["sleep", "600"], dict(os.environ))
    driver._bench = bench
    with monkeypatch.context() as patched:
        patched.setattr("os.killpg", lambda *_: None)
        patched.setattr("agent.child.KILL_PATIENCE_S", 0.0)
        patched.setattr("agent.child.END_PATIENCE_S", 0.01)
        if aborts_by_itself:
            bench.abort()
            time.sleep(0.01)
            with pytest.raises(AgentError, match="cannot be killed"):
                driver._tick()
        driver._end_children()
    bench.abort()
    assert bench.reap(0.0)
    log.close()


def test_a_build_that_is_not_there_ends_as_a_shell_would(tmp_path: Path, model: Path) -> None:
    action = StartBench("m", "generic", CELLS, 1)
    bench = Bench(action, bench_argv(tmp_path / "nowhere", model, action, 1), dict(os.environ))
    exited = end(bench)
    assert exited.rc == 127
    assert "nowhere/bin/llama-bench" in exited.stderr_tail


def test_the_real_llama_bench_speaks_as_expected() -> None:
    runtime, build = real_runtime()
    action = StartBench("m", build, CELLS, 2)
    argv = bench_argv(runtime, real_model(), action, usable().n_cpus)
    bench = Bench(action, argv, bench_environment(runtime, build, {}))
    events = follow(bench)
    for cell in CELLS:
        of_cell = [e for e in events if isinstance(e, (WarmupStarted, RepeatStarted, BenchRow)) and e.cell == cell]
        assert [type(e) for e in of_cell] == [WarmupStarted, RepeatStarted, RepeatStarted, BenchRow]
    rows = [e for e in events if isinstance(e, BenchRow)]
    assert all(len(row.samples_s) == 2 for row in rows)
    assert all(row.row["n_threads"] == usable().n_cpus for row in rows)
    loaded = bench.loaded(1.0, None)
    assert (loaded.model, loaded.build) == ("m", build)
    assert any(name.endswith(" model") and size > 0 for name, size in loaded.buffers_mib.items())
    assert events[-1] == BenchExited(9.0, "m", 0, False, "")


def test_the_real_llama_bench_refuses_a_broken_model(tmp_path: Path) -> None:
    runtime, build = real_runtime()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(real_model().read_bytes()[:1_000_000])
    action = StartBench("m", build, CELLS, 1)
    exited = end(Bench(action, bench_argv(runtime, broken, action, 1), bench_environment(runtime, build, {})))
    assert exited.rc == 1
    assert "failed to load model" in exited.stderr_tail


def test_memory_that_does_not_suffice_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address space limit makes the engine's own allocation fail; nobody kills it."""
    runtime, build = real_runtime()
    action = StartBench("m", build, CELLS, 1)
    argv = bench_argv(runtime, real_model(), action, 1)
    limited = ["prlimit", f"--data={4 << 20}", *argv]
    exited = end(Bench(action, limited, bench_environment(runtime, build, {})))
    assert exited.oom, exited
    assert not exited.aborted
