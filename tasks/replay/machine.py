"""A recorded run as the conductor's machine: what it asks for happens as it was recorded, on a virtual clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tasks.domain import actions as act
from tasks.domain import events as ev
from tasks.domain.cells import Cell, CellResult
from tasks.domain.classic import classic_ladder
from tasks.domain.conductor import Conductor
from tasks.domain.gguf import GgufHeader
from tasks.domain.known import KnownCell
from tasks.domain.model_state import Stage
from tasks.domain.policy import Policy
from tasks.domain.run_plan import ModelSpec, RunPlan
from tasks.replay.recorded import RecordedModel, RecordedRun
from tasks.replay.truth import EXIT_S, CellTruth

MAX_STEPS = 200_000
HEADER_S = 0.1
DEAD_AFTER_S = 60.0
"""Our downloader gives up a link that brings no byte for this long; the recorded one was waited for."""

MEMORY_SHARE = 0.94
"""Of a server's nominal memory that a process can have."""

PROGRESS_S = 1.0
AMPLE = 10**9
LADDER = classic_ladder()
FOREVER = float("inf")
LOAD, WARMUP, REPEATS, WAIT = "load", "warmup", "repeats", "wait"


@dataclass(frozen=True)
class Harness:
    """What the program around llama-bench does beside the policy.

    probes_ngl: it tries how many layers fit on the GPU. sees_dead_downloads: it gives up a silent link by itself.
    sees_loads: it tells the load from the first repeat.
    """

    probes_ngl: bool
    sees_dead_downloads: bool
    sees_loads: bool


RECORDED_HARNESS = Harness(probes_ngl=True, sees_dead_downloads=False, sees_loads=False)
OUR_HARNESS = Harness(probes_ngl=False, sees_dead_downloads=True, sees_loads=True)


def plan_of(
    run: RecordedRun,
    policy: str,
    guard: str = "off",
    max_usd: float | None = None,
    billing: tuple[float, float] = (0.0, 1.0),
    known: tuple[KnownCell, ...] = (),
) -> RunPlan:
    """The plan of a replayed run: the models that the record came to, ample time, and ample money unless told.

    billing: minimum and increment in seconds. known: what earlier runs showed.
    """
    return RunPlan(
        sweep_id="replay",
        server_run_id="replay",
        server=run.server,
        models=tuple(ModelSpec(m.name, m.name, (), m.bytes) for m in run.models),
        ladder=LADDER,
        policy=policy,
        price_usd_per_hour=run.usd_per_hour or 0.0,
        max_usd=float(AMPLE) if max_usd is None else max_usd,
        deadline_s=float(AMPLE),
        billing_minimum_s=billing[0],
        billing_increment_s=billing[1],
        known=known,
        n_threads=run.n_threads,
        guard=guard,
    )


class Playback:
    """Plays one run to one conductor."""

    def __init__(
        self,
        run: RecordedRun,
        truth: dict[Cell, CellTruth],
        policy: Policy,
        harness: Harness,
        headers: dict[str, GgufHeader],
        plan: RunPlan | None = None,
    ) -> None:
        """`plan`: another one than `plan_of` makes; its models are those of the record."""
        self.run_record = run
        self.truth = truth
        self.harness = harness
        self.headers = headers
        self.conductor = Conductor(plan or plan_of(run, policy.name), policy)
        self.now_s = run.head_s
        self._models = {m.name: m for m in run.models}
        self._probed_models: set[str] = set()
        self._soon: list[tuple[float, ev.Event]] = []
        self._process: Iterator[tuple[float, ev.Event]] | None = None
        self._process_next: tuple[float, ev.Event | None] = (FOREVER, None)
        self._running: Cell | None = None
        self._download: _Download | None = None
        self._progress_s = 0.0
        self._doing: tuple[str, Cell | None] = (WAIT, None)
        self.spent_s: dict[tuple[str, Cell | None], float] = {}
        self.decisions: list[act.Decision] = []
        self.most_ahead_bytes = 0

    def play(self) -> tuple[CellResult, ...]:
        """Run to the end; `now_s` is then the time at which the conductor finished. Raises RuntimeError for a
        policy that never ends."""
        run, conductor = self.run_record, self.conductor
        memory = int(run.memory_bytes * MEMORY_SHARE) or AMPLE * 1000  # unknown: as recorded, nothing was in the way
        vram = (run.vram_bytes,) if run.has_gpu else ()
        conductor.on(ev.Probed(self.now_s, memory, memory, AMPLE * 1000, run.n_cpus, vram))
        for _ in range(MAX_STEPS):
            while actions := conductor.next(self.now_s):
                for action in actions:
                    self._carry_out(action)
            self.decisions += conductor.drain_decisions()
            if conductor.finished:
                return conductor.results()
            self._step()
        raise RuntimeError(f"The replay of {run.vendor}/{run.server} does not end.")

    def _step(self) -> None:
        """On to the next thing that happens."""
        conductor = self.conductor
        download_s = self._download.ends_s() if self._download else FOREVER
        soon_s = self._soon[0][0] if self._soon else FOREVER
        process_s = self._process_next[0]
        at_s = min(process_s, download_s, soon_s)
        wake_s = conductor.next_wake_s(self.now_s)
        if wake_s is not None and wake_s < at_s:
            self._pass_to(wake_s)
            return
        self._pass_to(at_s)
        event = self._process_next[1]
        if process_s <= at_s and event is not None:
            self._advance_process()
            self._note(event)
            conductor.on(event)
        elif soon_s <= at_s:
            event = self._soon.pop(0)[1]
            self._note(event)
            conductor.on(event)
        else:
            self._end_download()

    def _pass_to(self, at_s: float) -> None:
        """Time goes on; it is spent on what is being done."""
        if at_s > self.now_s:
            self.spent_s[self._doing] = self.spent_s.get(self._doing, 0.0) + at_s - self.now_s
            self.now_s = at_s
            self._tell_progress()

    def _note(self, event: ev.Event) -> None:
        """What llama-bench is doing from now on."""
        if isinstance(event, ev.RepeatStarted):
            if event.k == 1:
                self._doing = (REPEATS, event.cell)
        elif isinstance(event, ev.WarmupStarted):
            self._doing = (WARMUP, event.cell)
        elif isinstance(event, ev.BenchExited):
            self._doing = (WAIT, None)

    # ---- llama-bench --------------------------------------------------------------------------------

    def _events(self, action: act.StartBench) -> Iterator[tuple[float, ev.Event]]:
        t_s = self.now_s
        if self.harness.probes_ngl and action.model not in self._probed_models:
            t_s += self._models[action.model].probe_s
        self._probed_models.add(action.model)
        yield t_s, ev.BenchStarted(t_s, action.model, action.build, action.cells)
        for i, cell in enumerate(action.cells):
            truth = self.truth[cell]
            self._running = cell
            if truth.rc is not None:
                if truth.loads or not self.harness.sees_loads:
                    yield t_s, ev.WarmupStarted(t_s, cell)
                t_s += truth.fail_s
                yield t_s, ev.BenchExited(t_s, action.model, truth.rc, False, "as recorded")
                return
            if i == 0:
                t_s += truth.load_s
            if truth.hangs:
                return
            yield t_s, ev.WarmupStarted(t_s, cell)
            t_s += truth.warmup_s
            samples_s = tuple(truth.samples_s[k % len(truth.samples_s)] for k in range(action.n_repeats))
            for k, sample_s in enumerate(samples_s, 1):
                yield t_s, ev.RepeatStarted(t_s, cell, k, action.n_repeats)
                t_s += sample_s
            yield t_s, ev.BenchRow(t_s, cell, samples_s)
        t_s += EXIT_S
        yield t_s, ev.BenchExited(t_s, action.model, 0, False)

    def _advance_process(self) -> None:
        if self._process is not None:
            self._process_next = next(self._process, (FOREVER, None))

    # ---- actions ------------------------------------------------------------------------------------

    def _carry_out(self, action: act.Action) -> None:
        now_s = self.now_s
        if isinstance(action, act.StartBench):
            self._process = self._events(action)
            self._advance_process()
            self._doing = (LOAD, action.cells[0])
        elif isinstance(action, act.AbortBench):
            self._process, self._process_next = None, (FOREVER, None)
            kill_s = self.truth[self._running].kill_s if self._running else EXIT_S
            self._post(now_s + kill_s, ev.BenchExited(now_s + kill_s, action.model, 137, True))
        elif isinstance(action, act.ReadHeader):
            header = self.headers[action.model]
            self._post(now_s + HEADER_S, ev.HeaderRead(now_s + HEADER_S, action.model, _Prepared(header)))
        elif isinstance(action, act.StartDownload):
            model = self._models[action.model]
            waiting = sum(m.spec.planned_bytes for m in self.conductor.run.models if m.stage is Stage.READY)
            self.most_ahead_bytes = max(self.most_ahead_bytes, waiting + model.bytes)
            self._download = _Download(model, now_s, self.harness)
            self.conductor.on(ev.DownloadStarted(now_s, model.name, model.bytes))
        elif isinstance(action, act.PauseDownload) and self._download is not None:
            self._download.pause(now_s)
            self.conductor.on(ev.DownloadPaused(now_s, action.model))
        elif isinstance(action, act.ResumeDownload) and self._download is not None:
            self._download.resume(now_s)
            self.conductor.on(ev.DownloadResumed(now_s, action.model))
        elif isinstance(action, act.AbortDownload):
            self._download = None
            self.conductor.on(ev.DownloadFailed(now_s, action.model, "cancelled", ""))

    def _post(self, at_s: float, event: ev.Event) -> None:
        self._soon.append((at_s, event))
        self._soon.sort(key=lambda item: item[0])

    def _tell_progress(self) -> None:
        download = self._download
        if download is not None and not download.paused and self.now_s - self._progress_s >= PROGRESS_S:
            self._progress_s = self.now_s
            self.conductor.on(ev.DownloadProgress(self.now_s, download.model.name, download.bytes_at(self.now_s)))

    def _end_download(self) -> None:
        download, self._download = self._download, None
        if download is None:
            return
        name = download.model.name
        if download.dies:
            self.conductor.on(ev.DownloadFailed(self.now_s, name, "download_dead", "no byte for a minute"))
        else:
            self.conductor.on(ev.DownloadFinished(self.now_s, name, download.model.bytes, ""))


class _Prepared(dict[str, object]):
    """A header as the event carries it; reading it back each time would be most of a replay's work."""

    def __init__(self, header: GgufHeader) -> None:
        super().__init__(header.to_dict())


class _Download:
    def __init__(self, model: RecordedModel, now_s: float, harness: Harness) -> None:
        self.model = model
        self.paused = False
        self.dies = model.download_s is None and model.rate_bytes_per_s == 0 and harness.sees_dead_downloads
        self._since_s = now_s + model.lag_s
        self._done_s = 0.0
        if self.dies:
            self._needs_s = DEAD_AFTER_S
        elif model.download_s is not None:
            self._needs_s = model.download_s
        else:
            self._needs_s = model.bytes / model.rate_bytes_per_s if model.rate_bytes_per_s else FOREVER

    def ends_s(self) -> float:
        return FOREVER if self.paused else self._since_s + self._needs_s - self._done_s

    def bytes_at(self, now_s: float) -> int:
        moved_s = self._done_s + (0.0 if self.paused else max(0.0, now_s - self._since_s))
        if self.dies or self._needs_s == FOREVER:
            return 0
        return int(self.model.bytes * min(1.0, moved_s / self._needs_s)) if self._needs_s > 0 else self.model.bytes

    def pause(self, now_s: float) -> None:
        if not self.paused:
            self._done_s += max(0.0, now_s - self._since_s)
            self.paused = True

    def resume(self, now_s: float) -> None:
        self.paused, self._since_s = False, now_s
