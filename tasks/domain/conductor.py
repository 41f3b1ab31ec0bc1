"""The state machine of one server run.

`on(event)` takes in what happened, `next(now)` says what to do. The same object runs on the server inside
the agent, in replay over recorded runs, and in the property tests; it never looks at a clock. Every
question that costs or saves money is put to the policy, and each answer is recorded as a Decision.

How a model moves:  new -> header -> queued -> downloading -> ready -> (benched, once per process) -> closed
"""

from __future__ import annotations

from typing import Any, Callable

from tasks.domain import actions as act
from tasks.domain import events as ev
from tasks.domain.bench_ending import bench_ended
from tasks.domain.bench_state import BenchState
from tasks.domain.cells import TASKS, Cell, CellResult, Reason
from tasks.domain.download_feed import feed_downloads, judge_downloads, waiting_s
from tasks.domain.gguf import GgufHeader
from tasks.domain.model_state import ModelState, Stage
from tasks.domain.offload import fits_server
from tasks.domain.policy import Policy, RunView, Verdict
from tasks.domain.run_plan import RunPlan
from tasks.domain.run_state import RunState, detail_of
from tasks.domain.variant_book import VariantBook
from tasks.domain.variants import Variant


class Conductor:
    """Drives one server run; see the module docstring."""

    def __init__(self, plan: RunPlan, policy: Policy) -> None:
        self.plan = plan
        self.policy = policy
        self.run = RunState(plan, policy)
        self.variants = VariantBook(self.run)
        self.bench: BenchState | None = None
        self.probed = False
        self.finishing: Reason | None = None
        self.finished = False
        self.idle_since_s: float | None = None
        self._handlers: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.Probed: self._on_probed,
            ev.HeaderRead: self._on_header_read,
            ev.HeaderFailed: self._on_header_failed,
            ev.DownloadStarted: self._on_download_started,
            ev.DownloadProgress: self._on_download_progress,
            ev.DownloadPaused: self._on_download_paused,
            ev.DownloadResumed: self._on_download_resumed,
            ev.DownloadFinished: self._on_download_finished,
            ev.DownloadFailed: self._on_download_failed,
            ev.BenchStarted: self._on_bench_started,
            ev.WarmupStarted: self._on_warmup_started,
            ev.RepeatStarted: self._on_repeat_started,
            ev.EngineLoaded: self._on_engine_loaded,
            ev.NoWorkingBuild: self._on_no_working_build,
            ev.BenchRow: self._on_bench_row,
            ev.BenchExited: self._on_bench_exited,
            ev.VariantEnded: self._on_variant_ended,
            ev.Cancelled: self._on_cancelled,
        }

    @property
    def view(self) -> RunView:
        return self.run.view

    # ---- what happened ------------------------------------------------------------------------------

    def on(self, event: ev.Event) -> None:
        """Take in one event; call `next` after it. Events that no longer matter (of a closed model) are ignored."""
        self._advance(event.t_s)
        if self.finished:
            return
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _advance(self, t_s: float) -> None:
        view = self.run.view
        if t_s > view.now_s:
            view.now_s = t_s

    def _on_probed(self, event: ev.Probed) -> None:
        self.probed = True
        self.view.memory_total_bytes = event.memory_total_bytes
        self.view.memory_available_bytes = event.memory_available_bytes
        self.view.disk_free_bytes = event.disk_free_bytes
        self.view.n_cpus = event.n_cpus
        self.view.has_gpu = bool(event.vram_free_bytes)
        self.run.offloads.vram_free_bytes = tuple(event.vram_free_bytes)
        self.variants.probed(event)

    def _on_cancelled(self, event: ev.Cancelled) -> None:
        self.finishing = Reason.CANCELLED

    def _on_header_read(self, event: ev.HeaderRead) -> None:
        model = self.run.model(event.model)
        if model.stage is Stage.HEADER:
            header = self.view.headers[event.model] = GgufHeader.from_dict(event.header)
            model.stage = Stage.QUEUED
            vram, n_ctx = self.run.offloads.vram_free_bytes, self.run.longest(event.model, shortest=True)
            known = bool(vram) and all(vram)
            too_large = known and not fits_server(header, n_ctx, vram, self.view.memory_total_bytes)
            if self.view.has_gpu and too_large:
                detail = f"needs more than the {sum(vram)} bytes of the GPUs and the server's memory together"
                self.run.close(event.t_s, model, Reason.VRAM, detail)

    def _on_header_failed(self, event: ev.HeaderFailed) -> None:
        self.run.close(event.t_s, self.run.model(event.model), Reason(event.reason), event.detail)

    def _on_download_started(self, event: ev.DownloadStarted) -> None:
        self.run.model(event.model).download_started(event.t_s, event.bytes_total, event.bytes_resumed)

    def _on_download_progress(self, event: ev.DownloadProgress) -> None:
        self.run.model(event.model).progress(event.t_s, event.bytes_done)

    def _on_download_paused(self, event: ev.DownloadPaused) -> None:
        self.run.model(event.model).paused(event.t_s)

    def _on_download_resumed(self, event: ev.DownloadResumed) -> None:
        self.run.model(event.model).resumed(event.t_s)

    def _on_download_finished(self, event: ev.DownloadFinished) -> None:
        model = self.run.model(event.model)
        if model.stage is not Stage.DOWNLOADING or model.download is None:
            return
        model.progress(event.t_s, event.bytes)
        model.download.finished = True
        model.stage = Stage.READY
        self.view.finished_downloads.append(model.download)
        self.view.disk_free_bytes -= model.spec.planned_bytes

    def _on_download_failed(self, event: ev.DownloadFailed) -> None:
        model = self.run.model(event.model)
        if model.stage is Stage.DOWNLOADING:
            self.run.close(event.t_s, model, Reason(event.reason), event.detail)

    def _on_bench_started(self, event: ev.BenchStarted) -> None:
        if self.bench is not None:
            self.bench.started(event.t_s)

    def _on_warmup_started(self, event: ev.WarmupStarted) -> None:
        if self.bench is None:
            return
        self.bench.warmup(event.t_s, event.cell)
        if self.bench.view.loaded_s is not None:
            self.view.load_s.setdefault(self.bench.view.model, self.bench.view.loaded_s)

    def _on_repeat_started(self, event: ev.RepeatStarted) -> None:
        if self.bench is not None:
            self.bench.repeat(event.t_s, event.cell, event.k)

    def _on_engine_loaded(self, event: ev.EngineLoaded) -> None:
        """A build for the GPU that has put nothing there would give the CPU's numbers under the GPU's name."""
        missed = self.run.offloads.missed_the_gpu(self.run.builds[0], event)
        if self.bench is not None and missed is not None:
            evidence = {"build": event.build, "buffers_mib": dict(event.buffers_mib), "n_gpus_used": event.n_gpus_used}
            self.bench.stop_as_not_on_gpu(missed, evidence)

    def _on_no_working_build(self, event: ev.NoWorkingBuild) -> None:
        for model in self.run.models:
            self.run.close(event.t_s, model, Reason.NO_WORKING_BUILD, event.detail)

    def _on_bench_row(self, event: ev.BenchRow) -> None:
        if self.bench is None or event.cell in self.view.results:
            return
        if self.bench.not_on_gpu is not None:
            return  # it was printed before the process could be stopped
        self.run.resolve(event.t_s, event.cell, Reason.OK, "", event.samples_s)
        self.bench.row(event.cell)
        self.run.proven_builds.add(self.run.builds[0])
        self.run.cascade(event.t_s, event.cell, event.t_s - self.bench.view.started_s)

    def _on_bench_exited(self, event: ev.BenchExited) -> None:
        bench, self.bench = self.bench, None
        if bench is not None and self.finishing is None:
            bench_ended(self.run, bench, event)

    def _on_variant_ended(self, event: ev.VariantEnded) -> None:
        self.variants.ended(event)

    # ---- what to do ---------------------------------------------------------------------------------

    def next(self, now_s: float) -> list[act.Action]:
        """Actions to carry out now, in order; empty when there is nothing to do but wait."""
        self._advance(now_s)
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
        self._judge_variant(out)
        self._start_bench(out)
        guarded = self._guarded()
        judge_downloads(self.run, out, guarded=guarded, idle_since_s=self.idle_since_s)
        feed_downloads(self.run, out, guarded=guarded)
        if self.idle and all(m.stage is Stage.CLOSED for m in self.run.models):
            return out + self._finish(None)
        return out

    def next_wake_s(self, now_s: float) -> float | None:
        """When `next` must be called although nothing happens; None once finished."""
        if self.finished:
            return None
        view, bench = self.view, self.bench
        wake = view.end_s
        if bench is not None and bench.running and bench.stop is None:
            wake = min(wake, self.policy.next_check_s(view, bench.view))
        if self.variants.running is not None and not self.variants.abort_sent:
            wake = min(wake, self.variants.abort_at_s)
        for model in self.run.models:
            if model.stage is Stage.DOWNLOADING and model.download is not None:
                waited_s = waiting_s(self.run, model, self.idle_since_s)
                wake = min(wake, self.policy.next_download_check_s(view, model.download, waited_s))
        return max(wake, now_s)

    def results(self) -> tuple[CellResult, ...]:
        """One result for every cell of the plan, in ladder order; complete once Finish was returned."""
        return tuple(sorted(self.view.results.values(), key=lambda r: self.run.order[r.cell]))

    def drain_decisions(self) -> list[act.Decision]:
        """Decisions since the last call."""
        return self.run.drain_decisions()

    def _judge_bench(self, out: list[act.Action]) -> None:
        bench = self.bench
        if bench is None or not bench.running or bench.abort_sent:
            return
        if bench.not_on_gpu is not None:
            bench.abort_sent = True
            self.run.decide(self.view.now_s, "abort_bench", bench.view.model, bench.missed, bench.not_on_gpu)
            out.append(act.AbortBench(bench.view.model))
            return
        verdict = self._next_cell_verdict(bench) or self.policy.judge_running(self.view, bench.view)
        if not verdict.go:
            bench.stop, bench.stop_cell = verdict, bench.view.current or bench.first_open_cell()
            bench.abort_sent = True
            subject = str(bench.view.current or bench.view.model)
            action = "enough_repeats" if verdict.reason is Reason.OK else "abort_bench"
            self.run.decide(self.view.now_s, action, subject, verdict.reason.value, verdict.evidence)
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
        self.run.record(cell, verdict)
        return None if verdict.go else verdict

    @property
    def idle(self) -> bool:
        """Whether nothing is being measured."""
        return self.bench is None and self.variants.running is None

    def _judge_variant(self, out: list[act.Action]) -> None:
        book = self.variants
        if book.running is not None and not book.abort_sent and self.view.now_s >= book.abort_at_s:
            book.abort_sent = True
            out.append(act.AbortVariant())

    def _begin_variant(self, variant: Variant | None, out: list[act.Action]) -> bool:
        if variant is None:
            return False
        self.variants.begin(variant)
        self.idle_since_s = None
        ngl = variant.ngl
        if ngl is None:
            ngl = self.run.layers_to_offload(self.view.now_s, variant.model)
        out.append(act.StartVariant(variant, self.run.builds[0], ngl, self.run.n_threads))
        return True

    def _start_bench(self, out: list[act.Action]) -> None:
        """The next process: of the ladder, or beside it."""
        if not self.idle or self._begin_variant(self.variants.between_models(), out):
            return
        out += [act.RemoveModel(name) for name in [self.variants.kept()] if name]
        for model in self.run.models:
            if model.stage is not Stage.READY:
                continue
            if self._begin_variant(self.variants.before_ladder(model), out):
                return
            cells = self._open_cells(model)
            if cells:
                self.bench = BenchState(model.spec.name, cells, self.policy.n_repeats, self.view.now_s)
                self.idle_since_s = None
                ngl = self.run.layers_to_offload(self.view.now_s, model.spec.name)
                out.append(
                    act.StartBench(
                        model.spec.name, self.run.builds[0], cells, self.policy.n_repeats, ngl, self.run.n_threads
                    )
                )
                return
            if self._begin_variant(self.variants.after_ladder(model), out):
                return
            model.stage = Stage.CLOSED
            if not self.variants.keeps(model.spec.name):
                self.view.disk_free_bytes += model.spec.planned_bytes
                out.append(act.RemoveModel(model.spec.name))
            if self._begin_variant(self.variants.between_models(), out):
                return
        if self.idle_since_s is None:
            self.idle_since_s = self.view.now_s

    def _open_cells(self, model: ModelState) -> tuple[Cell, ...]:
        """Cells to run in the next process; closes those whose gate is shut."""
        chosen: list[Cell] = []
        pending = self.run.pending(model.spec.name)
        for task in TASKS:
            for cell in pending:
                if cell.task != task:
                    continue
                verdict = self.policy.judge_cell(self.view, cell)
                if verdict.go:
                    if not chosen:
                        self.run.record(cell, verdict)
                    chosen.append(cell)
                    if self.policy.one_cell_per_process:
                        return (cell,)
                else:
                    self.run.record(cell, verdict)
                    self.run.resolve(self.view.now_s, cell, verdict.reason, detail_of(verdict))
        return tuple(chosen)

    def _guarded(self) -> bool:
        bench = self.bench
        if self.variants.running is not None:
            return self.plan.guard != "off"
        if bench is None or bench.view.loaded_s is None:
            return False
        return self.policy.pauses_downloads(self.view, bench.view.current or bench.view.cells[0])

    def _finish(self, reason: Reason | None) -> list[act.Action]:
        out: list[act.Action] = []
        now_s = self.view.now_s
        if self.bench is not None:
            self.bench.close(now_s)
            current = self.bench.interrupted_cell()
            if current is not None and reason is not None:
                self.run.resolve(now_s, current, reason, "stopped in the middle", self.bench.samples_s())
            out.append(act.AbortBench(self.bench.view.model))
        if self.variants.running is not None:
            out.append(act.AbortVariant())
        out += [act.AbortDownload(m.spec.name) for m in self.run.models if m.stage is Stage.DOWNLOADING]
        for cell in self.run.order:
            if cell not in self.view.results:
                self.run.resolve(now_s, cell, reason or Reason.SERVER_FAILED, "the run ended before it")
        self.finished = True
        word = reason.value if reason is not None else "complete"
        evidence = {"now_s": now_s, "end_s": min(self.view.end_s, 1e12)}
        self.run.decide(now_s, "finish", self.plan.server, word, evidence)
        return [*out, act.Finish(word)]
