"""One server run on a simulated machine: the real conductor, the real policy, and the event log of a real agent.

Nothing waits here. The whole run is played through at once, on the agent's own clock of seconds since its start; the
host hands out each line when the simulated time has come to it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from tasks.clouds.sim.bench_row import bench_row
from tasks.clouds.sim.machine import SLOW_BYTES_PER_S, Machine, header_of
from tasks.domain import actions as act
from tasks.domain import events as ev
from tasks.domain.cells import PP, TG, Cell
from tasks.domain.conductor import Conductor
from tasks.domain.policies import policy_for
from tasks.domain.run_plan import ModelSpec, RunPlan

Line = dict[str, Any]
BUILDS = ("simulated-native", "simulated-generic")
PROBE_S = 0.6
HEADER_S = 0.3
PROGRESS_S = 2.0
DEAD_AFTER_S = 30.0
MOST_STEPS = 200_000
RC_SIGKILL = 137


@dataclass
class _Download:
    """`stop_at_bytes`: where something happens to it, its end included; `stop_as`: what."""

    spec: ModelSpec
    bytes_per_s: float
    stop_at_bytes: float
    stop_as: str
    since_s: float
    done_bytes: float = 0.0
    paused: bool = False

    def advance(self, now_s: float) -> None:
        if not self.paused:
            moved = (now_s - self.since_s) * self.bytes_per_s
            self.done_bytes = min(self.done_bytes + moved, self.stop_at_bytes)
        self.since_s = now_s

    def due_s(self) -> float:
        return self.since_s + (self.stop_at_bytes - self.done_bytes) / self.bytes_per_s


class Play:
    """Plays one plan on one machine. `lines` is the event log; it ends without `Finished` where the agent dies."""

    def __init__(self, plan: RunPlan, machine: Machine, *, started_unix_s: float, telemetry_s: float) -> None:
        self.plan = replace(plan, builds=plan.builds or BUILDS, n_threads=plan.n_threads or machine.kind.vcpus)
        self.machine = machine
        self.lines: list[Line] = []
        self._conductor = Conductor(self.plan, policy_for(plan.policy, plan.policy_options))
        self._models = {m.name: m for m in plan.models}
        self._started_unix_s, self._telemetry_s = started_unix_s, telemetry_s
        self._now_s = 0.0
        self._due: list[tuple[float, int, tuple[str, int], Callable[[], None]]] = []
        self._n_due = 0
        self._turn = {"bench": 0, "variant": 0, "download": 0, "tick": 0, "header": 0}
        self._download: _Download | None = None
        self._bench_model = ""
        self._phase_began: dict[tuple[str, str], float] = {("probe", ""): 0.0}
        self._killed: set[str] = set()
        self._finish_reason = ""

    def play(self) -> list[Line]:
        """The whole log. Raises AssertionError if the conductor never finishes."""
        self._announce()
        self._at(PROBE_S, "header", self._probe)
        self._at(self._telemetry_s, "tick", self._tick)
        for _ in range(MOST_STEPS):
            self._obey()
            if self._finish_reason:
                self._log("Finished", {"reason": self._finish_reason, "results": self._results()})
                return self._cut_short()
            self._step()
        raise AssertionError(f"the run of {self.plan.server} does not end")

    def _cut_short(self) -> list[Line]:
        if self.machine.happens("agent_dies"):
            n = int(len(self.lines) * self.machine.between(0.1, 0.9, "agent_dies at"))
            self.lines = self.lines[: max(n, 1)]
        return self.lines

    # ---- time ---------------------------------------------------------------------------------------

    def _at(self, t_s: float, what: str, do: Callable[[], None]) -> None:
        """Do it then, unless by then another turn of `what` has begun."""
        self._n_due += 1
        heapq.heappush(self._due, (t_s, self._n_due, (what, self._turn[what]), do))

    def _new_turn(self, what: str) -> None:
        self._turn[what] += 1

    def _step(self) -> None:
        """Go on to what happens next: something that is due, or the time at which the conductor wants to be asked."""
        while self._due and self._turn[self._due[0][2][0]] != self._due[0][2][1]:
            heapq.heappop(self._due)
        wake_s = self._conductor.next_wake_s(self._now_s)
        due_s = self._due[0][0] if self._due else float("inf")
        if wake_s is not None and wake_s < due_s:
            self._now_s = max(self._now_s + 1e-3, wake_s)
            return
        self._now_s = max(self._now_s, due_s)
        heapq.heappop(self._due)[3]()

    # ---- the log ------------------------------------------------------------------------------------

    def _log(self, kind: str, values: dict[str, Any]) -> None:
        head = {"seq": len(self.lines) + 1, "unix_s": round(self._started_unix_s + self._now_s, 6), "kind": kind}
        self.lines.append({**head, "t_s": self._now_s, **values})

    def _on(self, event: ev.Event) -> None:
        """Into the log first, then to the conductor, then what it decided: the order of the agent."""
        values = ev.event_to_dict(event)
        del values["kind"]
        self._log(type(event).__name__, values)
        self._conductor.on(event)
        self._record_decisions()

    def _record_decisions(self) -> None:
        for decision in self._conductor.drain_decisions():
            self._log("Decision", dict(vars(decision)))

    def _phase_ends(self, name: str, model: str) -> None:
        began_s = self._phase_began.pop((name, model), None)
        if began_s is not None:
            self._log("Phase", {"name": name, "model": model, "started_s": began_s, "ended_s": self._now_s})

    def _results(self) -> list[dict[str, Any]]:
        results = self._conductor.results()
        return [{**asdict(r), "outcome": r.outcome.value, "reason": r.reason.value} for r in results]

    def _announce(self) -> None:
        self._log(
            "AgentStarted",
            {
                "agent_sha256": "simulated",
                "python": "simulated",
                "runtime_dir": "simulated",
                "runtime": {"llama_cpp_commit": "simulated"},
                "boot_id": "simulated",
                "boot_unix_s": int(self._started_unix_s) - 60,
                "options": {},
                "resumed": False,
            },
        )

    def _probe(self) -> None:
        m = self.machine
        self._on(
            ev.Probed(
                self._now_s,
                memory_total_bytes=m.memory_total_bytes,
                memory_available_bytes=m.memory_available_bytes,
                disk_free_bytes=m.disk_free_bytes,
                n_cpus=m.kind.vcpus,
                vram_free_bytes=m.vram_free_bytes,
                hardware=m.hardware(),
            )
        )
        self._phase_ends("probe", "")

    def _tick(self) -> None:
        self._on(ev.Tick(self._now_s))
        steal = self.machine.steal_share
        busy = (1.0 - steal) if self._bench_model else 0.02
        download = self._download
        rx = download.bytes_per_s if download is not None and not download.paused else 0.0
        self._log(
            "Telemetry",
            {
                "allowed_cpu_busy": round(busy, 4),
                "allowed_cpu_steal": steal,
                "allowed_cpu_iowait": 0.0,
                "net_rx_bytes_per_s": round(rx, 1),
                "agent_cpu_s": 0.0,
            },
        )
        self._at(self._now_s + self._telemetry_s, "tick", self._tick)

    # ---- what the conductor wants -------------------------------------------------------------------

    def _obey(self) -> None:
        while actions := self._conductor.next(self._now_s):
            self._record_decisions()
            for action in actions:
                _ACTIONS[type(action)](self, action)
                if self._finish_reason:
                    return
        self._record_decisions()

    def _finish(self, action: act.Finish) -> None:
        self._finish_reason = action.reason or "finished"

    def _remove_model(self, action: act.RemoveModel) -> None:
        return

    def _read_header(self, action: act.ReadHeader) -> None:
        model = self._models[action.model]
        self._phase_began["header", model.name] = self._now_s

        def read() -> None:
            self._on(ev.HeaderRead(self._now_s, model.name, header_of(model).to_dict()))
            self._phase_ends("header", model.name)

        self._at(self._now_s + HEADER_S, "header", read)

    # ---- downloads ----------------------------------------------------------------------------------

    def _start_download(self, action: act.StartDownload) -> None:
        spec, m = self._models[action.model], self.machine
        size = float(spec.planned_bytes)
        stop_as, share = "finished", 1.0
        for fault in ("download_dead", "download_slow", "disk_full", "checksum"):
            if m.happens(fault, spec.name):
                stop_as = fault
                share = _SHARE.get(fault) or m.between(0.1, 0.9, fault, spec.name)
                break
        self._new_turn("download")
        self._download = _Download(spec, m.link_bytes_per_s, share * size, stop_as, self._now_s)
        self._phase_began["download", spec.name] = self._now_s
        self._on(ev.DownloadStarted(self._now_s, spec.name, int(size)))
        self._follow_download()

    def _follow_download(self) -> None:
        """What happens next with the download as it goes now."""
        download = self._download
        if download is None or download.paused:
            return
        due_s = download.due_s()
        if due_s <= self._now_s + PROGRESS_S:
            self._at(due_s, "download", self._download_stops)
        else:
            self._at(self._now_s + PROGRESS_S, "download", self._download_progresses)

    def _download_progresses(self) -> None:
        download = self._download
        if download is not None:
            download.advance(self._now_s)
            self._on(ev.DownloadProgress(self._now_s, download.spec.name, int(download.done_bytes), 4))
            self._follow_download()

    def _download_stops(self) -> None:
        download = self._download
        if download is None:
            return
        download.advance(self._now_s)
        if download.stop_as == "download_slow":
            download.bytes_per_s, download.stop_at_bytes = SLOW_BYTES_PER_S, float(download.spec.planned_bytes)
            download.stop_as = "finished"
            self._follow_download()
        elif download.stop_as == "download_dead":
            self._at(self._now_s + DEAD_AFTER_S, "download", self._download_is_over)
        else:
            self._download_is_over()

    def _download_is_over(self) -> None:
        download, self._download = self._download, None
        self._new_turn("download")
        if download is None:
            return
        name, how = download.spec.name, download.stop_as
        if how == "finished":
            self._on(ev.DownloadFinished(self._now_s, name, int(download.done_bytes), download.spec.sha256))
        else:
            self._on(ev.DownloadFailed(self._now_s, name, how, _WHY_NOT[how]))
        self._phase_ends("download", name)

    def _pause_download(self, action: act.PauseDownload) -> None:
        if self._download is not None and not self._download.paused:
            self._download.advance(self._now_s)
            self._download.paused = True
            self._new_turn("download")
            self._on(ev.DownloadPaused(self._now_s, action.model))

    def _resume_download(self, action: act.ResumeDownload) -> None:
        if self._download is not None and self._download.paused:
            self._download.advance(self._now_s)
            self._download.paused = False
            self._new_turn("download")
            self._on(ev.DownloadResumed(self._now_s, action.model))
            self._follow_download()

    def _abort_download(self, action: act.AbortDownload) -> None:
        if self._download is not None:
            self._download = None
            self._new_turn("download")
            self._on(ev.DownloadFailed(self._now_s, action.model, "cancelled", "stopped by the policy"))
            self._phase_ends("download", action.model)

    # ---- llama-bench --------------------------------------------------------------------------------

    def _start_bench(self, action: act.StartBench) -> None:
        self._new_turn("bench")
        process, model = self._turn["bench"], self._models[action.model]
        cells = tuple(c for task in (PP, TG) for c in action.cells if c.task == task)
        self._bench_model = model.name
        self._phase_began["load", model.name] = self._phase_began["bench", model.name] = self._now_s
        self._on(ev.BenchStarted(self._now_s, model.name, action.build, cells, 4000 + process))
        t_s = self._now_s
        if action.build == self.plan.builds[0] and self.machine.happens("wrong_build"):
            self._exits_at(t_s + 0.1, model, 132, "Illegal instruction")
            return
        t_s += self.machine.load_s(model)
        if not self.machine.fits(model):
            self._exits_at(t_s, model, 1, "failed to allocate buffer: out of memory", oom=True)
            return
        self._at(t_s, "bench", lambda: self._engine_loaded(model, action.build))
        end = self._ends_early(model, cells)
        for index, cell in enumerate(cells):
            if end is not None and index == end[0]:
                self._at(t_s, "bench", self._maker(ev.WarmupStarted, cell))
                self._exits_at(
                    t_s + 0.4 * self.machine.repeat_s(model, cell, process, 0), model, RC_SIGKILL, "Killed", end[1]
                )
                return
            t_s = self._play_cell(t_s, model, cell, action.n_repeats, process)
        self._exits_at(t_s + 0.05, model, 0, "")

    def _ends_early(self, model: ModelSpec, cells: tuple[Cell, ...]) -> tuple[int, bool] | None:
        """At which cell this process is killed, and whether for want of memory; None for not at all."""
        at = len(cells) // 2
        if self.machine.happens("out_of_memory", model.name):
            return at, True
        if self.machine.happens("bench_killed", model.name) and model.name not in self._killed:
            return at, False
        return None

    def _maker(self, event: Callable[..., ev.Event], *values: Any) -> Callable[[], None]:
        return lambda: self._on(event(self._now_s, *values))

    def _play_cell(self, t_s: float, model: ModelSpec, cell: Cell, n_repeats: int, process: int) -> float:
        warmup_s = self.machine.repeat_s(model, cell, process, 0)
        self._at(t_s, "bench", self._maker(ev.WarmupStarted, cell))
        t_s += warmup_s if cell.task == PP else warmup_s / cell.n_tokens
        samples_s = []
        for k in range(1, n_repeats + 1):
            self._at(t_s, "bench", self._maker(ev.RepeatStarted, cell, k, n_repeats))
            samples_s.append(self.machine.repeat_s(model, cell, process, k))
            t_s += samples_s[-1]
        row = bench_row(self.machine, model, cell, tuple(samples_s), self.plan.n_threads)
        self._at(t_s, "bench", self._maker(ev.BenchRow, cell, tuple(samples_s), row))
        return t_s

    def _engine_loaded(self, model: ModelSpec, build: str) -> None:
        mib, n_layers = round(model.planned_bytes / 2**20, 2), header_of(model).n_layers
        device, offloaded = ("CUDA0", n_layers + 1) if self.machine.on_gpu else ("CPU", None)
        if self.machine.kind.gpus and not self.machine.on_gpu:
            offloaded = 0
        values = {"buffers_mib": {f"{device} model": mib}, "layers_offloaded": offloaded, "layers_total": n_layers + 1}
        self._phase_ends("load", model.name)
        self._log("EngineLoaded", {"model": model.name, "build": build, **values})

    def _exits_at(self, t_s: float, model: ModelSpec, rc: int, tail: str, oom: bool = False) -> None:
        self._at(t_s, "bench", lambda: self._exited(model.name, rc, False, tail, oom))

    def _exited(self, model: str, rc: int, aborted: bool, tail: str = "", oom: bool = False) -> None:
        self._new_turn("bench")
        self._bench_model = ""
        if rc == RC_SIGKILL and not aborted and not oom:
            self._killed.add(model)
        self._on(ev.BenchExited(self._now_s, model, rc, aborted, tail, oom))
        self._phase_began.pop(("load", model), None)
        self._phase_ends("bench", model)

    def _abort_bench(self, action: act.AbortBench) -> None:
        if self._bench_model:
            self._new_turn("bench")
            self._at(self._now_s + 0.01, "bench", lambda: self._exited(action.model, RC_SIGKILL, True))

    # ---- beside the ladder ----------------------------------------------------------------------------

    def _start_variant(self, action: act.StartVariant) -> None:
        """Simulated servers play the lengths of a variant; what else it changes has no effect on them."""
        self._new_turn("variant")
        variant, model = action.variant, self._models[action.variant.model]
        process, began_s = self._turn["variant"], self._now_s
        lengths = [(PP, n) for n in variant.n_prompt] + [(TG, n) for n in variant.n_gen]
        rows: list[dict[str, Any]] = []
        t_s = began_s + self.machine.load_s(model)
        for cell in (Cell(model.name, task, n) for task, n in lengths):
            samples_s = tuple(
                self.machine.repeat_s(model, cell, process, k) for k in range(1, min(variant.n_repeats, 100) + 1)
            )
            for n_threads in variant.n_threads or (action.n_threads or self.plan.n_threads,):
                rows.append({**bench_row(self.machine, model, cell, samples_s, n_threads), "instance": 0})
            t_s += sum(samples_s)

        def end() -> None:
            values = (variant.kind, variant.label, variant.model, "measured", began_s, action.build)
            self._on(ev.VariantEnded(self._now_s, *values, variant.settings(), rows))

        self._at(t_s, "variant", end)

    def _abort_variant(self, action: act.AbortVariant) -> None:
        self._new_turn("variant")
        values = ("", "", "", "timed_out", self._now_s)
        self._at(self._now_s + 0.01, "variant", lambda: self._on(ev.VariantEnded(self._now_s, *values)))


# How much of the file comes before the fault, where that is not drawn.
_SHARE = {"checksum": 1.0, "download_slow": 0.01}
_WHY_NOT = {
    "download_dead": "no byte came for 30 s",
    "disk_full": "No space left on device",
    "checksum": "the SHA-256 of the file is another one",
}

_ACTIONS: dict[type[act.Action], Callable[[Play, Any], None]] = {
    act.ReadHeader: Play._read_header,
    act.StartDownload: Play._start_download,
    act.PauseDownload: Play._pause_download,
    act.ResumeDownload: Play._resume_download,
    act.AbortDownload: Play._abort_download,
    act.RemoveModel: Play._remove_model,
    act.StartBench: Play._start_bench,
    act.AbortBench: Play._abort_bench,
    act.StartVariant: Play._start_variant,
    act.AbortVariant: Play._abort_variant,
    act.Finish: Play._finish,
}
