"""The event loop of one server run: feeds the conductor, carries out its actions, writes everything down.

It decides nothing. One thread; whatever may block (downloads, headers, nvidia-smi) is a process of its own.
"""

from __future__ import annotations

import os
import selectors
import signal
from pathlib import Path
from typing import Any, Callable, Sequence

from agent.bench import Bench, bench_argv, bench_environment
from agent.child import Kill, OutputPipe
from agent.eventlog import EventLog
from agent.gpu import GpuStream
from agent.lifecycle import STOP_REASON_FILE, STOP_SIGNALS
from agent.limits import read_text
from agent.model_fetch import HeaderRequest, ModelFetch, remove_model
from agent.phases import Phases
from agent.telemetry import Telemetry
from agent.variant_run import VariantRun
from tasks.domain import actions as act
from tasks.domain.conductor import Conductor
from tasks.domain.errors import AgentError
from tasks.domain.events import (
    BenchRow,
    Cancelled,
    Event,
    Tick,
    WarmupStarted,
    event_to_dict,
)
from tasks.domain.run_plan import ModelSpec, RunPlan

TICK_S = 1.0
LEAST_WAIT_S = 0.01
MAX_ROUNDS = 1000
MODELS_FOLDER = "models"


class Driver:
    """Carries out one plan. `options` go to every fetch (see FetchSpec), `bench_extra` to llama-bench's environment."""

    def __init__(
        self,
        plan: RunPlan,
        conductor: Conductor,
        log: EventLog,
        *,
        run_dir: Path,
        runtime_dir: Path,
        clock: Callable[[], float],
        options: dict[str, Any],
        bench_extra: dict[str, str],
    ) -> None:
        self.rows: dict[Any, BenchRow] = {}
        self._plan = plan
        self._conductor = conductor
        self._log = log
        self._run_dir = run_dir
        self._runtime_dir = runtime_dir
        self._clock = clock
        self._options = options
        self._bench_extra = bench_extra
        self._models: dict[str, ModelSpec] = {m.name: m for m in plan.models}
        self._fetches: dict[str, ModelFetch] = {}
        self._headers: dict[str, HeaderRequest] = {}
        self._bench: Bench | None = None
        self._engine_of: Bench | None = None
        self._variant: VariantRun | None = None
        self._phases = Phases()
        self._telemetry = Telemetry()
        self._selector = selectors.DefaultSelector()
        self._gpus = GpuStream()
        self._finish_reason = ""
        self._actions: dict[type[act.Action], Callable[[Any], None]] = {
            act.ReadHeader: self._read_header,
            act.StartDownload: self._start_download,
            act.PauseDownload: self._pause_download,
            act.ResumeDownload: self._resume_download,
            act.AbortDownload: self._abort_download,
            act.RemoveModel: self._remove_model,
            act.StartBench: self._start_bench,
            act.AbortBench: self._abort_bench,
            act.StartVariant: self._start_variant,
            act.AbortVariant: self._abort_variant,
            act.Finish: self._finish,
        }

    def run(self, first: Sequence[Event], decisions: Sequence[act.Decision] = ()) -> str:
        """Drive until the conductor finishes; returns its reason. Nothing that was started is left running.

        first: what is known at the start. decisions: those that were taken before it, for the log.
        """
        signals = self._catch_signals()
        try:
            if self._gpus.pipe is not None:
                self._watch(self._gpus.pipe, self._gpus.read)
            for decision in decisions:
                self._log.append("Decision", dict(vars(decision)))
            for event in first:
                self._on(event)
            next_tick_s = self._clock()
            while True:
                self._obey()
                if self._finish_reason:
                    return self._finish_reason
                self._wait(next_tick_s, signals)
                if self._clock() >= next_tick_s:
                    next_tick_s = max(next_tick_s + TICK_S, self._clock())
                    self._tick()
        finally:
            self._end_children()

    def _on(self, event: Event) -> None:
        """An event: into the log first, then to the conductor, then what the conductor decided on it."""
        self._log.append(type(event).__name__, {k: v for k, v in event_to_dict(event).items() if k != "kind"})
        for phase in self._phases.on(event):
            self._log.append("Phase", phase)
        if isinstance(event, BenchRow):
            self.rows[event.cell] = event
        self._conductor.on(event)
        self._record_decisions()
        if self._bench is not None:
            self._record_engine(self._bench, event)

    def _record_decisions(self) -> None:
        for decision in self._conductor.drain_decisions():
            self._log.append("Decision", dict(vars(decision)))

    def _obey(self) -> None:
        """Carry out actions until the conductor has none left."""
        for _ in range(MAX_ROUNDS):
            actions = self._conductor.next(self._clock())
            self._record_decisions()
            if not actions:
                return
            for action in actions:
                self._actions[type(action)](action)
                if self._finish_reason:
                    return
        raise AgentError(f"The conductor asked for actions {MAX_ROUNDS} times without waiting; last: {actions!r}.")

    # ---- waiting -------------------------------------------------------------------------------------

    def _catch_signals(self) -> int:
        """Signals as bytes in a pipe: SIGTERM and SIGINT cancel, SIGCHLD only wakes the loop."""
        reader, writer = os.pipe()
        for fd in (reader, writer):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        self._selector.register(reader, selectors.EVENT_READ)
        return reader

    def _watch(self, pipe: OutputPipe, on_ready: Callable[[], None]) -> None:
        self._selector.register(pipe.fileno(), selectors.EVENT_READ, (pipe, on_ready))

    def _unwatch(self, pipe: OutputPipe) -> None:
        if pipe.fileno() in self._selector.get_map():
            self._selector.unregister(pipe.fileno())

    def _wait(self, until_s: float, signals: int) -> None:
        """Sleep until a child speaks or ends, a signal comes, or something is due; pass on what happened."""
        wake_s = self._conductor.next_wake_s(self._clock())
        due_s = until_s if wake_s is None else min(until_s, wake_s)
        for key, _ in self._selector.select(max(LEAST_WAIT_S, due_s - self._clock())):
            if key.fd == signals:
                numbers = os.read(signals, 4096)
                if any(number in numbers for number in STOP_SIGNALS):
                    detail = read_text(str(self._run_dir / STOP_REASON_FILE))
                    self._on(Cancelled(self._clock(), detail or "the agent was told to stop"))
            else:
                pipe, on_ready = key.data
                on_ready()
                if pipe.ended:
                    self._unwatch(pipe)
        self._reap()

    def _kills(self) -> list[Kill]:
        of_bench = [self._bench.kill] if self._bench is not None and self._bench.kill is not None else []
        return [*of_bench, *(self._variant.kills if self._variant is not None else [])]

    def _tick(self) -> None:
        if any(kill.in_vain for kill in self._kills()):
            raise AgentError("llama-bench cannot be killed: it hangs in the driver of a GPU, which is lost.")
        self._on(Tick(self._clock()))
        values = self._telemetry.sample()
        if self._gpus.latest:
            values["gpus"] = self._gpus.latest
        self._log.append("Telemetry", {"t_s": self._clock(), **values})

    def _reap(self) -> None:
        """Notice every child that has ended."""
        if self._bench is not None and self._bench.ended:
            self._bench_ended(self._bench)
        if self._variant is not None and self._variant.ended:
            self._variant_ended(self._variant)
        for name, fetch in list(self._fetches.items()):
            if fetch.child.ended:
                self._unwatch(fetch.child.stdout)
                events, restarted = fetch.reap(self._clock())
                if restarted:
                    self._watch_fetch(fetch)
                else:
                    del self._fetches[name]
                self._pass_on(events)
        for name, header in list(self._headers.items()):
            if header.child.ended:
                self._unwatch(header.child.stdout)
                del self._headers[name]
                self._on(header.reap(self._clock()))

    def _bench_ended(self, bench: Bench) -> None:
        for pipe in bench.pipes:
            self._unwatch(pipe)
        self._bench = None
        self._telemetry.watch(0)
        self._pass_on(bench.reap(self._clock()))

    def _variant_ended(self, variant: VariantRun) -> None:
        for pipe in variant.pipes:
            self._unwatch(pipe)
        self._variant = None
        self._telemetry.watch(0)
        self._on(variant.reap(self._clock()))

    def _end_children(self) -> None:
        if self._bench is not None:
            self._bench.abort()
        if self._variant is not None:
            self._variant.abort()
        if all(kill.works() for kill in self._kills()):
            if self._bench is not None:
                self._bench.reap(self._clock())
            if self._variant is not None:
                self._variant.reap(self._clock())
        for fetch in self._fetches.values():
            fetch.child.close()
        for header in self._headers.values():
            header.child.close()
        self._gpus.close()

    # ---- actions -------------------------------------------------------------------------------------

    def _model_path(self, name: str) -> Path:
        return self._run_dir / MODELS_FOLDER / self._models[name].file

    def _read_header(self, action: act.ReadHeader) -> None:
        model = self._models[action.model]
        self._phases.begin("header", model.name, self._clock())
        self._headers[model.name] = header = HeaderRequest(model, self._options)
        self._watch(header.child.stdout, header.read)

    def _start_download(self, action: act.StartDownload) -> None:
        model = self._models[action.model]
        self._fetches[model.name] = fetch = ModelFetch(model, self._model_path(model.name), self._options)
        self._watch_fetch(fetch)

    def _watch_fetch(self, fetch: ModelFetch) -> None:
        self._watch(fetch.child.stdout, lambda: self._pass_on(fetch.read(self._clock())))

    def _pause_download(self, action: act.PauseDownload) -> None:
        if action.model in self._fetches:
            self._pass_on(self._fetches[action.model].pause(self._clock()))

    def _resume_download(self, action: act.ResumeDownload) -> None:
        if action.model in self._fetches:
            self._pass_on(self._fetches[action.model].resume(self._clock()))

    def _abort_download(self, action: act.AbortDownload) -> None:
        fetch = self._fetches.pop(action.model, None)
        if fetch is not None:
            self._unwatch(fetch.child.stdout)
            self._pass_on(fetch.abort(self._clock()))

    def _pass_on(self, events: list[Event]) -> None:
        for event in events:
            self._on(event)

    def _remove_model(self, action: act.RemoveModel) -> None:
        remove_model(self._model_path(action.model))

    def _start_bench(self, action: act.StartBench) -> None:
        if self._bench is not None:
            raise AgentError(f"The conductor started {action.model} while {self._bench.start.model} was running.")
        n_threads = action.n_threads or self._plan.n_threads
        argv = bench_argv(self._runtime_dir, self._model_path(action.model), action, n_threads)
        environment = bench_environment(self._runtime_dir, action.build, self._bench_extra)
        self._bench = bench = Bench(action, argv, environment)
        self._on(bench.started(self._clock()))
        if bench.process is None:
            self._bench_ended(bench)
            return
        self._telemetry.watch(bench.process.pid)
        for pipe in bench.pipes:
            self._watch(pipe, lambda: self._pass_on(bench.read(self._clock())))

    def _record_engine(self, bench: Bench, event: Event) -> None:
        """At the first warm-up of a process: where the engine has put the model."""
        if isinstance(event, WarmupStarted) and self._engine_of is not bench:
            self._engine_of = bench
            self._on(bench.loaded(event.t_s, self._gpus.memory_used_bytes()))

    def _abort_bench(self, action: act.AbortBench) -> None:
        if self._bench is not None:
            self._bench.abort()

    def _start_variant(self, action: act.StartVariant) -> None:
        model = self._model_path(action.variant.model)
        self._variant = variant = VariantRun(
            action, self._runtime_dir, model, self._plan.n_threads, self._bench_extra, self._clock()
        )
        self._telemetry.watch(variant.pid)
        for pipe in variant.pipes:
            self._watch(pipe, variant.read)

    def _abort_variant(self, action: act.AbortVariant) -> None:
        if self._variant is not None:
            self._variant.abort()

    def _finish(self, action: act.Finish) -> None:
        self._finish_reason = action.reason or "finished"
