"""What the end of a llama-bench process means for its cells."""

from __future__ import annotations

from tasks.domain import events as ev
from tasks.domain.bench_state import BenchState
from tasks.domain.cells import Cell, Reason
from tasks.domain.gpu_faults import GpuFault, gpu_fault
from tasks.domain.policy import Verdict
from tasks.domain.run_state import RunState, detail_of

# Exit statuses of a build that this CPU cannot run: SIGILL, SIGSEGV (AMX without permission), no such library.
WRONG_BUILD_RC = (132, 139, 127)
KILLED_RC = 137
MAX_KILLED_RETRIES = 1


def bench_ended(run: RunState, bench: BenchState, event: ev.BenchExited) -> None:
    """Give every cell that the process leaves behind its end, or leave it open to be tried again."""
    bench.close(event.t_s)
    current, samples = bench.interrupted_cell(), bench.samples_s()
    if bench.not_on_gpu is not None:
        _next_build(run, event, bench.missed)
    elif event.aborted:
        if bench.stop is not None:
            _stopped(run, event, bench, bench.stop, samples if current == bench.stop_cell else ())
    elif event.rc in WRONG_BUILD_RC and run.builds[0] not in run.proven_builds:
        _next_build(run, event, "wrong_build_for_this_cpu")
    else:
        _failed(run, event, bench, current, samples)


def _stopped(
    run: RunState, event: ev.BenchExited, bench: BenchState, stop: Verdict, samples: tuple[float, ...]
) -> None:
    if stop.reason is Reason.LOAD_TIMEOUT:
        run.close(event.t_s, run.model(event.model), stop.reason, detail_of(stop))
    elif bench.stop_cell is not None and bench.stop_cell not in run.view.results:
        run.resolve(event.t_s, bench.stop_cell, stop.reason, detail_of(stop), samples)
        run.cascade(event.t_s, bench.stop_cell, event.t_s - bench.view.started_s)


def _next_build(run: RunState, event: ev.BenchExited, reason: str) -> None:
    failed = run.builds.pop(0)
    evidence = {"rc": event.rc, "build": failed, "builds_left": list(run.builds)}
    run.decide(event.t_s, "next_build", event.model, reason, evidence)
    if run.builds and run.offloads.on_gpu(failed) and not run.offloads.on_gpu(run.builds[0]):
        run.view.has_gpu = False
        why = gpu_fault(event.stderr_tail)
        run.decide(event.t_s, "fall_back_to_cpu", event.model, why.value if why else reason, evidence)
    if not run.builds:
        detail = f"build {failed} ended with rc {event.rc} and no other is left. {event.stderr_tail[-300:]}".strip()
        for model in run.models:
            run.close(event.t_s, model, Reason.NO_WORKING_BUILD, detail)


def _fewer_layers(run: RunState, event: ev.BenchExited) -> bool:
    """The GPU ran out of memory: load the model again with fewer layers on it, or give it up as too large."""
    search = run.offloads.searches.get(event.model)
    if search is None or not run.offloads.on_gpu(run.builds[0]) or event.rc == KILLED_RC:
        return False
    before, ngl = search.ngl, search.failed()
    evidence = {"ngl_failed": before, "ngl": ngl or 0, "n_failed_loads": search.n_failed}
    run.decide(event.t_s, "fewer_layers" if ngl else "give_up", event.model, GpuFault.OUT_OF_MEMORY.value, evidence)
    if ngl is None:
        detail = f"{search.n_failed} loads ran out of GPU memory, the last with {before} layers there"
        run.close(event.t_s, run.model(event.model), Reason.VRAM, detail)
    return True


def _failed(
    run: RunState, event: ev.BenchExited, bench: BenchState, current: Cell | None, samples: tuple[float, ...]
) -> None:
    """A process that ended by itself; the cells that it did not give are failed, or tried once more."""
    if all(c in run.view.results for c in bench.view.cells):
        return  # a crash after the last row has cost nothing
    if event.oom and _fewer_layers(run, event):
        return
    fault = gpu_fault(event.stderr_tail)
    named = f" {fault.value}:" if fault else ""
    detail = f"llama-bench ended with rc {event.rc}.{named} {event.stderr_tail[-300:]}".strip()
    model = run.model(event.model)
    killed = event.rc == KILLED_RC and not event.oom
    ended_by_itself = Reason.BENCH_KILLED if killed else Reason.BENCH_FAILED
    reason = Reason.OUT_OF_MEMORY if event.oom else ended_by_itself
    if killed and model.kills < MAX_KILLED_RETRIES:
        model.kills += 1
        run.decide(event.t_s, "retry_bench", event.model, "bench_killed", {"rc": event.rc, "kills": model.kills})
        return
    if current is None and bench.view.loaded_s is not None:
        current = bench.first_open_cell()  # its context is made, KV cache and all, before its first mark
    if current is None:
        run.close(event.t_s, model, reason, detail)
        return
    run.resolve(event.t_s, current, reason, detail, samples)
    if event.oom:
        for cell in run.pending(event.model):
            if cell.task == current.task and cell.n_tokens > current.n_tokens:
                run.resolve(event.t_s, cell, reason, f"{current} ran out of memory")
    run.cascade(event.t_s, current, event.t_s - bench.view.started_s)
