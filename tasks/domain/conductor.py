"""The state machine of one server run.

`on(event)` takes in what happened, `next(now)` says what to do. The same object runs on the server inside
the agent, in replay over recorded runs, and in the property tests; it never looks at a clock. Every
question that costs or saves money is put to the policy, and each answer is recorded as a Decision.

How a model moves:  new -> header -> queued -> downloading -> ready -> (benched, once per process) -> closed
"""

from __future__ import annotations

from typing import Any, Sequence

from tasks.domain import actions as act
from tasks.domain import events as ev
from tasks.domain.bench_state import BenchState
from tasks.domain.cells import TASKS, Cell, CellResult, Reason
from tasks.domain.gguf import GgufHeader
from tasks.domain.memory import disk_needed_bytes
from tasks.domain.model_state import ModelState, Stage
from tasks.domain.policy import Policy, RunView, Verdict
from tasks.domain.run_plan import RunPlan

# Exit statuses of a build that this CPU cannot run: SIGILL, SIGSEGV (AMX without permission), no such library.
WRONG_BUILD_RC = (132, 139, 127)
DEFAULT_BUILD = "default"
# The run ends this long before its money or deadline does, so that the last action is over in time.
END_GRACE_S = 1.0
MAX_KILLED_RETRIES = 1


class Conductor:
    """Drives one server run; see the module docstring."""

    def __init__(self, plan: RunPlan, policy: Policy) -> None:
        self.plan = plan
        self.policy = policy
        self.view = RunView(plan=plan)
        self.models = [ModelState(m) for m in sorted(plan.models, key=lambda m: m.planned_bytes)]
        self.builds = list(plan.builds) or [DEFAULT_BUILD]
        self.proven_builds: set[str] = set()
        self.bench: BenchState | None = None
        self.probed = False
        self.finishing: Reason | None = None
        self.finished = False
        self.idle_since_s: float | None = None
        self._decisions: list[act.Decision] = []
        self._order = {c: i for i, c in enumerate(plan.cells())}
        money_s = float("inf")
        if plan.price_usd_per_hour > 0:
            money_s = plan.max_usd / plan.price_usd_per_hour * 3600.0 - plan.billed_before_s
        self.view.end_reason = Reason.MONEY if money_s < plan.deadline_s else Reason.DEADLINE
        self.view.end_s = min(money_s, plan.deadline_s) - plan.teardown_reserve_s - END_GRACE_S
        for cell, samples in plan.measured:
            if cell in self._order:
                self._resolve(0.0, cell, Reason.OK, "measured by an interrupted run of this sweep", tuple(samples))

    # ---- what happened ------------------------------------------------------------------------------

    def on(self, event: ev.Event) -> None:
        """Take in one event; call `next` after it. Events that no longer matter (of a closed model) are ignored."""
        self.view.now_s = max(self.view.now_s, event.t_s)
        if self.finished:
            return
        handler = getattr(self, "_on_" + type(event).__name__, None)
        if handler is not None:
            handler(event)

    def _on_Probed(self, event: ev.Probed) -> None:
        self.probed = True
        self.view.memory_total_bytes = event.memory_total_bytes
        self.view.memory_available_bytes = event.memory_available_bytes
        self.view.disk_free_bytes = event.disk_free_bytes
        self.view.n_cpus = event.n_cpus
        self.view.has_gpu = bool(event.vram_free_bytes)

    def _on_Cancelled(self, event: ev.Cancelled) -> None:
        self.finishing = Reason.CANCELLED

    def _on_HeaderRead(self, event: ev.HeaderRead) -> None:
        model = self._model(event.model)
        if model.stage is Stage.HEADER:
            self.view.headers[event.model] = GgufHeader.from_dict(event.header)
            model.stage = Stage.QUEUED

    def _on_HeaderFailed(self, event: ev.HeaderFailed) -> None:
        self._close(event.t_s, self._model(event.model), Reason(event.reason), event.detail)

    def _on_DownloadStarted(self, event: ev.DownloadStarted) -> None:
        self._model(event.model).download_started(event.t_s, event.bytes_total, event.bytes_resumed)

    def _on_DownloadProgress(self, event: ev.DownloadProgress) -> None:
        self._model(event.model).progress(event.t_s, event.bytes_done)

    def _on_DownloadPaused(self, event: ev.DownloadPaused) -> None:
        self._model(event.model).paused(event.t_s)

    def _on_DownloadResumed(self, event: ev.DownloadResumed) -> None:
        self._model(event.model).resumed(event.t_s)

    def _on_DownloadFinished(self, event: ev.DownloadFinished) -> None:
        model = self._model(event.model)
        if model.stage is not Stage.DOWNLOADING or model.download is None:
            return
        model.progress(event.t_s, event.bytes)
        model.download.finished = True
        model.stage = Stage.READY
        self.view.finished_downloads.append(model.download)
        self.view.disk_free_bytes -= model.spec.planned_bytes

    def _on_DownloadFailed(self, event: ev.DownloadFailed) -> None:
        model = self._model(event.model)
        if model.stage is Stage.DOWNLOADING:
            self._close(event.t_s, model, Reason(event.reason), event.detail)

    def _on_BenchStarted(self, event: ev.BenchStarted) -> None:
        if self.bench is not None:
            self.bench.started(event.t_s)

    def _on_WarmupStarted(self, event: ev.WarmupStarted) -> None:
        if self.bench is None:
            return
        self.bench.warmup(event.t_s, event.cell)
        if self.bench.view.loaded_s is not None:
            self.view.load_s.setdefault(self.bench.view.model, self.bench.view.loaded_s)

    def _on_RepeatStarted(self, event: ev.RepeatStarted) -> None:
        if self.bench is not None:
            self.bench.repeat(event.t_s, event.cell, event.k)

    def _on_BenchRow(self, event: ev.BenchRow) -> None:
        if self.bench is None or event.cell in self.view.results:
            return
        self._resolve(event.t_s, event.cell, Reason.OK, "", event.samples_s)
        self.bench.row(event.cell)
        self.proven_builds.add(self.builds[0])
        self._cascade(event.t_s, event.cell, event.t_s - self.bench.view.started_s)

    def _on_BenchExited(self, event: ev.BenchExited) -> None:
        bench, self.bench = self.bench, None
        if bench is None or self.finishing is not None:
            return
        bench.close(event.t_s)
        current, samples = bench.interrupted_cell(), bench.samples_s()
        if event.aborted:
            if bench.stop is not None:
                self._stopped(event, bench, bench.stop, samples if current == bench.stop_cell else ())
        elif event.rc in WRONG_BUILD_RC and self.builds[0] not in self.proven_builds:
            self._next_build(event)
        else:
            self._bench_failed(event, bench, current, samples)

    def _stopped(self, event: ev.BenchExited, bench: BenchState, stop: Verdict, samples: tuple[float, ...]) -> None:
        if stop.reason is Reason.LOAD_TIMEOUT:
            self._close(event.t_s, self._model(event.model), stop.reason, _detail(stop))
        elif bench.stop_cell is not None and bench.stop_cell not in self.view.results:
            self._resolve(event.t_s, bench.stop_cell, stop.reason, _detail(stop), samples)
            self._cascade(event.t_s, bench.stop_cell, event.t_s - bench.view.started_s)

    def _next_build(self, event: ev.BenchExited) -> None:
        failed = self.builds.pop(0)
        evidence = {"rc": event.rc, "build": failed, "builds_left": list(self.builds)}
        self._decide(event.t_s, "next_build", event.model, "wrong_build_for_this_cpu", evidence)
        if not self.builds:
            detail = f"build {failed} ended with rc {event.rc} and no other is left. {event.stderr_tail[-300:]}".strip()
            for model in self.models:
                self._close(event.t_s, model, Reason.NO_WORKING_BUILD, detail)

    def _bench_failed(
        self, event: ev.BenchExited, bench: BenchState, current: Cell | None, samples: tuple[float, ...]
    ) -> None:
        """A process that ended by itself; the cells that it did not give are failed, or tried once more."""
        if event.rc == 0 and all(c in self.view.results for c in bench.view.cells):
            return
        detail = f"llama-bench ended with rc {event.rc}. {event.stderr_tail[-300:]}".strip()
        model = self._model(event.model)
        killed = event.rc == 137 and not event.oom
        ended_by_itself = Reason.BENCH_KILLED if killed else Reason.BENCH_FAILED
        reason = Reason.OUT_OF_MEMORY if event.oom else ended_by_itself
        if killed and model.kills < MAX_KILLED_RETRIES:
            model.kills += 1
            self._decide(event.t_s, "retry_bench", event.model, "bench_killed", {"rc": event.rc, "kills": model.kills})
            return
        if current is None:
            self._close(event.t_s, model, reason, detail)
            return
        self._resolve(event.t_s, current, reason, detail, samples)
        if event.oom:
            for cell in self._pending(event.model):
                if cell.task == current.task and cell.n_tokens > current.n_tokens:
                    self._resolve(event.t_s, cell, reason, f"{current} ran out of memory")
        self._cascade(event.t_s, current, event.t_s - bench.view.started_s)

    # ---- what to do ---------------------------------------------------------------------------------

    def next(self, now_s: float) -> list[act.Action]:
        """Actions to carry out now, in order; empty when there is nothing to do but wait."""
        self.view.now_s = max(self.view.now_s, now_s)
        if self.finished:
            return []
        if self.finishing is None and self.view.now_s >= self.view.end_s:
            self.finishing = self.view.end_reason
        if self.finishing is not None:
            return self._finish(self.finishing)
        if not self.probed:
            return []
        out: list[act.Action] = []
        self._judge_bench(out)
        self._start_bench(out)
        self._judge_downloads(out)
        self._feed_downloads(out)
        if self.bench is None and all(m.stage is Stage.CLOSED for m in self.models):
            return out + self._finish(None)
        return out

    def next_wake_s(self, now_s: float) -> float | None:
        """When `next` must be called although nothing happens; None once finished."""
        if self.finished:
            return None
        wake = self.view.end_s
        if self.bench is not None and self.bench.view.started_s >= 0 and self.bench.stop is None:
            wake = min(wake, self.policy.next_check_s(self.view, self.bench.view))
        if any(m.stage is Stage.DOWNLOADING for m in self.models):
            wake = min(wake, now_s + 1.0)
        return max(wake, now_s)

    def results(self) -> tuple[CellResult, ...]:
        """One result for every cell of the plan, in ladder order; complete once Finish was returned."""
        return tuple(sorted(self.view.results.values(), key=lambda r: self._order[r.cell]))

    def drain_decisions(self) -> list[act.Decision]:
        """Decisions since the last call."""
        out, self._decisions = self._decisions, []
        return out

    def _judge_bench(self, out: list[act.Action]) -> None:
        bench = self.bench
        if bench is None or bench.stop is not None or not bench.running:
            return
        verdict = self._next_cell_verdict(bench) or self.policy.judge_running(self.view, bench.view)
        if not verdict.go:
            bench.stop, bench.stop_cell = verdict, bench.view.current or bench.first_open_cell()
            subject = str(bench.view.current or bench.view.model)
            action = "enough_repeats" if verdict.reason is Reason.OK else "abort_bench"
            self._decide(self.view.now_s, action, subject, verdict.reason.value, verdict.evidence)
            out.append(act.AbortBench(bench.view.model))

    def _next_cell_verdict(self, bench: BenchState) -> Verdict | None:
        """When a row has just shut the gate for a cell that the process would run next: stop the process."""
        cell = bench.upcoming_cell()
        if cell is None:
            return None
        if cell in self.view.results:
            return Verdict(False, self.view.results[cell].reason, {"closed": str(cell)})
        verdict = self.policy.judge_cell(self.view, cell)
        bench.accepted(cell)
        self._record(cell, verdict)
        return None if verdict.go else verdict

    def _start_bench(self, out: list[act.Action]) -> None:
        if self.bench is not None:
            return
        for model in self.models:
            if model.stage is not Stage.READY:
                continue
            cells = self._open_cells(model)
            if cells:
                self.bench = BenchState(model.spec.name, cells, self.policy.n_repeats, self.view.now_s)
                self.idle_since_s = None
                out.append(act.StartBench(model.spec.name, self.builds[0], cells, self.policy.n_repeats))
                return
            self._done_with(model, out)
        if self.idle_since_s is None:
            self.idle_since_s = self.view.now_s

    def _open_cells(self, model: ModelState) -> tuple[Cell, ...]:
        """Cells to run in the next process; closes those whose gate is shut."""
        chosen: list[Cell] = []
        for task in TASKS:
            for cell in [c for c in self._pending(model.spec.name) if c.task == task]:
                verdict = self.policy.judge_cell(self.view, cell)
                if verdict.go:
                    chosen.append(cell)
                else:
                    self._record(cell, verdict)
                    self._resolve(self.view.now_s, cell, verdict.reason, _detail(verdict))
            if chosen and self.policy.one_cell_per_process:
                break
        if self.policy.one_cell_per_process:
            chosen = chosen[:1]
        for cell in chosen[:1]:
            self._record(cell, self.policy.judge_cell(self.view, cell))
        return tuple(chosen)

    def _done_with(self, model: ModelState, out: list[act.Action]) -> None:
        model.stage = Stage.CLOSED
        self.view.disk_free_bytes += model.spec.planned_bytes
        out.append(act.RemoveModel(model.spec.name))

    def _judge_downloads(self, out: list[act.Action]) -> None:
        guarded = self._guarded()
        for model in self.models:
            download = model.download
            if model.stage is not Stage.DOWNLOADING or download is None:
                continue
            if not self._pending(model.spec.name):
                self._decide(self.view.now_s, "abort_download", model.spec.name, "no_cell_left", {})
                out.append(act.AbortDownload(model.spec.name))
                model.stage = Stage.CLOSED
                continue
            if guarded != model.pause_asked:
                model.pause_asked = guarded
                out.append(act.PauseDownload(model.spec.name) if guarded else act.ResumeDownload(model.spec.name))
            waiting_s = 0.0
            if self.idle_since_s is not None:
                waiting_s = self.view.now_s - max(self.idle_since_s, download.started_s)
            verdict = self.policy.judge_download(self.view, download, waiting_s)
            if not verdict.go:
                self._decide(self.view.now_s, "abort_download", model.spec.name, verdict.reason.value, verdict.evidence)
                out.append(act.AbortDownload(model.spec.name))
                self._close(self.view.now_s, model, verdict.reason, _detail(verdict))

    def _guarded(self) -> bool:
        bench = self.bench
        if bench is None or bench.view.loaded_s is None:
            return False
        return self.policy.pauses_downloads(self.view, bench.view.current or bench.view.cells[0])

    def _feed_downloads(self, out: list[act.Action]) -> None:
        """Keep one download going, in size order, if what it brings is worth having and has room."""
        if any(m.stage is Stage.HEADER for m in self.models):
            return
        if any(m.stage is Stage.DOWNLOADING for m in self.models):
            if not self._guarded():
                self._read_next_header(out)
            return
        waiting = [m for m in self.models if m.stage is Stage.READY]
        for model in self.models:
            if model.stage is Stage.NEW and self.policy.reads_headers and self._pending(model.spec.name):
                self._read_next_header(out)
                return
            if model.stage not in (Stage.NEW, Stage.QUEUED):
                continue
            if not self._pending(model.spec.name):
                model.stage = Stage.CLOSED
                continue
            if waiting and disk_needed_bytes(model.spec.planned_bytes) > self.view.disk_free_bytes:
                return  # room may come when a waiting model is done
            verdict = self.policy.judge_model(self.view, model.spec)
            waiting_bytes = sum(m.spec.planned_bytes for m in waiting)
            if verdict.go and not self.policy.may_run_ahead(self.view, waiting_bytes, model.spec.planned_bytes):
                return  # asked again when a waiting model is done
            action = "download" if verdict.go else "skip_model"
            self._decide(self.view.now_s, action, model.spec.name, verdict.reason.value, verdict.evidence)
            if not verdict.go:
                self._close_judged(model, verdict)
                continue
            model.begin_download(self.view.now_s)
            out.append(act.StartDownload(model.spec.name))
            return

    def _read_next_header(self, out: list[act.Action]) -> None:
        """At most one header ahead: it is read beside the download before, so that nothing waits for it."""
        if not self.policy.reads_headers or any(m.stage is Stage.QUEUED for m in self.models):
            return
        for model in self.models:
            if model.stage is Stage.NEW and self._pending(model.spec.name):
                model.stage = Stage.HEADER
                out.append(act.ReadHeader(model.spec.name))
                return

    def _finish(self, reason: Reason | None) -> list[act.Action]:
        out: list[act.Action] = []
        now_s = self.view.now_s
        if self.bench is not None:
            self.bench.close(now_s)
            current = self.bench.interrupted_cell()
            if current is not None and reason is not None:
                self._resolve(now_s, current, reason, "stopped in the middle", self.bench.samples_s())
            out.append(act.AbortBench(self.bench.view.model))
        out += [act.AbortDownload(m.spec.name) for m in self.models if m.stage is Stage.DOWNLOADING]
        for cell in self._order:
            if cell not in self.view.results:
                self._resolve(now_s, cell, reason or Reason.SERVER_FAILED, "the run ended before it")
        self.finished = True
        word = reason.value if reason is not None else "complete"
        self._decide(now_s, "finish", self.plan.server, word, {"now_s": now_s, "end_s": min(self.view.end_s, 1e12)})
        return [*out, act.Finish(word)]

    # ---- bookkeeping --------------------------------------------------------------------------------

    def _model(self, name: str) -> ModelState:
        return next(m for m in self.models if m.spec.name == name)

    def _pending(self, model: str) -> list[Cell]:
        return [c for c in self._order if c.model == model and c not in self.view.results]

    def _resolve(self, t_s: float, cell: Cell, reason: Reason, detail: str, samples: Sequence[float] = ()) -> None:
        if cell in self.view.results:
            return
        if reason is Reason.OK and len(samples) < min(3, self.policy.n_repeats):
            reason = Reason.FEWER_REPEATS
        self.view.results[cell] = CellResult(cell, reason, detail, tuple(samples))
        self._decide(t_s, "resolve", str(cell), reason.value, {"detail": detail, "n_samples": len(samples)})

    def _close(self, t_s: float, model: ModelState, reason: Reason, detail: str) -> None:
        model.stage = Stage.CLOSED
        for cell in self._pending(model.spec.name):
            self._resolve(t_s, cell, reason, detail)

    def _close_judged(self, model: ModelState, verdict: Verdict) -> None:
        """Each cell gets the reason that holds for itself, not the one of its neighbour."""
        for cell in self._pending(model.spec.name):
            own = self.policy.judge_cell(self.view, cell)
            chosen = verdict if own.go else own
            self._resolve(self.view.now_s, cell, chosen.reason, _detail(chosen))
        model.stage = Stage.CLOSED

    def _cascade(self, t_s: float, cell: Cell, process_s: float) -> None:
        for other, reason in self.policy.after_cell(self.view, cell, process_s):
            self._resolve(t_s, other, reason, f"because of {cell}")

    def _record(self, cell: Cell, verdict: Verdict) -> None:
        action = "run_cell" if verdict.go else "skip_cell"
        self._decide(self.view.now_s, action, str(cell), verdict.reason.value, verdict.evidence)

    def _decide(self, t_s: float, action: str, subject: str, reason: str, evidence: dict[str, Any]) -> None:
        self._decisions.append(act.Decision(t_s, action, subject, reason, dict(evidence)))


def _detail(verdict: Verdict) -> str:
    return ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in verdict.evidence.items())
