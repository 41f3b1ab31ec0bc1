"""A deterministic machine that plays the conductor's driver on a virtual clock.

It stands for the physical server (CPU, memory, link), not for any of our code: the conductor under test is
the real one. Used by the property tests and for what-if questions in unit tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.domain import actions as act
from tasks.domain import events as ev
from tasks.domain.cells import Cell, CellResult
from tasks.domain.conductor import Conductor
from tasks.domain.gguf import GgufHeader
from tasks.domain.policy import Policy
from tasks.domain.run_plan import RunPlan
from tasks.domain.variants import Variant

MAX_STEPS = 50_000


@dataclass
class Machine:
    """`speed(cell)` gives tokens/s; `jitter(cell, k)` a factor on the seconds of repeat k (from 1).

    variants: by kind, whether it hangs, and the rows that it gives after a second.
    link_changes: (seconds of the run, bytes per second from then on), after `link_bytes_per_s`.
    """

    speed: Callable[[Cell], float]
    link_bytes_per_s: float = 100e6
    link_changes: Sequence[tuple[float, float]] = ()
    disk_bytes_per_s: float = 1e9
    memory_bytes: int = 64 * 2**30
    disk_bytes: int = 500 * 2**30
    n_cpus: int = 8
    jitter: Callable[[Cell, int], float] = lambda cell, k: 1.0
    headers: dict[str, GgufHeader] = field(default_factory=dict)
    dies_with: Callable[[str, str], int | None] = lambda build, model: None
    download_fails: dict[str, str] = field(default_factory=dict)
    vram_free_bytes: tuple[int, ...] = ()
    hardware: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, tuple[bool, list[dict[str, Any]]]] = field(default_factory=dict)

    def moved_bytes(self, from_s: float, to_s: float) -> float:
        """What the link brings between two times."""
        starts = (0.0, *(t for t, _ in self.link_changes), math.inf)
        rates = (self.link_bytes_per_s, *(rate for _, rate in self.link_changes))
        pieces = zip(starts, starts[1:], rates, strict=False)
        return sum(max(0.0, min(to_s, end) - max(from_s, start)) * rate for start, end, rate in pieces)

    def arrives_s(self, n_bytes: float, from_s: float) -> float:
        """When the link has brought so many bytes."""
        for change_s, _ in self.link_changes:
            moved = self.moved_bytes(from_s, change_s)
            if moved >= n_bytes:
                break
            n_bytes, from_s = n_bytes - moved, max(from_s, change_s)
        rate = [self.link_bytes_per_s, *(rate for since_s, rate in self.link_changes if since_s <= from_s)][-1]
        return from_s + n_bytes / rate if rate > 0 else math.inf


@dataclass
class Trace:
    results: tuple[CellResult, ...]
    decisions: list[act.Decision]
    actions: list[tuple[float, act.Action]]
    end_s: float

    def by_cell(self) -> dict[Cell, CellResult]:
        return {r.cell: r for r in self.results}


class Driver:
    """Runs one conductor against one machine until it says Finish."""

    def __init__(self, plan: RunPlan, policy: Policy, machine: Machine) -> None:
        self.plan, self.machine = plan, machine
        self.conductor = Conductor(plan, policy)
        self.now_s = 0.0
        self.queue: list[tuple[float, int, ev.Event]] = []
        self.counter = 0
        self.download: tuple[str, float, float] | None = None  # model, bytes left, since
        self.paused = False
        self.bench_tag = 0
        self.actions: list[tuple[float, act.Action]] = []
        self.decisions: list[act.Decision] = []

    def post(self, t_s: float, make: Callable[[float], ev.Event], tag: int = 0) -> None:
        self.counter += 1
        self.queue.append((t_s, self.counter, make(t_s)))
        if tag:
            self.tags[self.counter] = tag

    def run(self) -> Trace:
        self.tags: dict[int, int] = {}
        m = self.machine
        self.post(
            0.0,
            lambda t: ev.Probed(
                t, m.memory_bytes, m.memory_bytes, m.disk_bytes, m.n_cpus, m.vram_free_bytes, m.hardware
            ),
        )
        for _ in range(MAX_STEPS):
            if self.act():
                return Trace(self.conductor.results(), self.decisions, self.actions, self.now_s)
            self.step()
        raise AssertionError("the run does not end")

    def act(self) -> bool:
        while actions := self.conductor.next(self.now_s):
            for action in actions:
                self.actions.append((self.now_s, action))
                getattr(self, "do_" + type(action).__name__)(action)
        self.decisions += self.conductor.drain_decisions()
        return self.conductor.finished

    def step(self) -> None:
        self.queue.sort(key=lambda item: (item[0], item[1]))
        wake = self.conductor.next_wake_s(self.now_s)
        download_end = self.download_end_s()
        candidates = [t for t in (wake, download_end, self.queue[0][0] if self.queue else None) if t is not None]
        self.now_s = max(self.now_s, min(candidates))
        self.progress(self.now_s)
        if self.queue and self.queue[0][0] <= self.now_s:
            _, number, event = self.queue.pop(0)
            if self.tags.get(number, self.bench_tag) == self.bench_tag or not self.tags.get(number):
                self.conductor.on(event)

    # -- downloads --

    def download_end_s(self) -> float | None:
        if self.download is None or self.paused:
            return None
        _, left, since = self.download
        return self.machine.arrives_s(left, since)

    def progress(self, now_s: float) -> None:
        if self.download is None:
            return
        name, left, since = self.download
        spec = next(x for x in self.plan.models if x.name == name)
        if not self.paused:
            left -= self.machine.moved_bytes(since, now_s)
        if left < 1.0:
            self.download = None
            fails = self.machine.download_fails.get(name)
            if fails:
                self.conductor.on(ev.DownloadFailed(now_s, name, fails, "as told"))
            else:
                self.conductor.on(ev.DownloadFinished(now_s, name, spec.bytes, spec.sha256))
            return
        self.download = (name, left, now_s)
        self.conductor.on(ev.DownloadProgress(now_s, name, int(spec.bytes - left)))

    def do_ReadHeader(self, a: act.ReadHeader) -> None:
        header = self.machine.headers.get(a.model)
        if header is None:
            self.post(self.now_s + 0.05, lambda t: ev.HeaderFailed(t, a.model, "not_gguf", "no header here"))
        else:
            self.post(self.now_s + 0.05, lambda t: ev.HeaderRead(t, a.model, header.to_dict()))

    def do_StartDownload(self, a: act.StartDownload) -> None:
        assert self.download is None, "two downloads at once"
        spec = next(x for x in self.plan.models if x.name == a.model)
        self.download, self.paused = (a.model, float(spec.bytes), self.now_s), False
        self.conductor.on(ev.DownloadStarted(self.now_s, a.model, spec.bytes))

    def do_PauseDownload(self, a: act.PauseDownload) -> None:
        self.progress(self.now_s)
        self.paused = True
        self.conductor.on(ev.DownloadPaused(self.now_s, a.model))

    def do_ResumeDownload(self, a: act.ResumeDownload) -> None:
        if self.download is not None:
            self.download = (self.download[0], self.download[1], self.now_s)
        self.paused = False
        self.conductor.on(ev.DownloadResumed(self.now_s, a.model))

    def do_AbortDownload(self, a: act.AbortDownload) -> None:
        self.download = None
        self.conductor.on(ev.DownloadFailed(self.now_s, a.model, "cancelled", ""))

    def do_RemoveModel(self, a: act.RemoveModel) -> None:
        pass

    # -- beside the ladder --

    def do_StartVariant(self, a: act.StartVariant) -> None:
        v, t = a.variant, self.now_s
        hangs, rows = self.machine.variants.get(v.kind, (False, []))
        if not hangs:
            self.post(t + 1.0, self.variant_ended(v, t, "measured", rows))

    def do_AbortVariant(self, a: act.AbortVariant) -> None:
        starts = [x.variant for _, x in self.actions if isinstance(x, act.StartVariant)]
        self.post(self.now_s + 0.01, self.variant_ended(starts[-1], self.now_s, "timed_out", []))

    @staticmethod
    def variant_ended(v: Variant, t: float, outcome: str, rows: list[dict[str, Any]]) -> Callable[[float], ev.Event]:
        return lambda now: ev.VariantEnded(now, v.kind, v.label, v.model, outcome, t, "", v.settings(), rows)

    # -- llama-bench --

    def do_StartBench(self, a: act.StartBench) -> None:
        self.bench_tag += 1
        tag, m = self.bench_tag, self.machine
        spec = next(x for x in self.plan.models if x.name == a.model)
        t = self.now_s
        self.post(t, lambda t: ev.BenchStarted(t, a.model, a.build, a.cells), tag)
        rc = m.dies_with(a.build, a.model)
        if rc is not None:
            self.post(t + 0.1, lambda t: ev.BenchExited(t, a.model, rc, False, "died as told"), tag)
            return
        t += 0.05 + spec.bytes / m.disk_bytes_per_s
        for cell in a.cells:
            t = self.play_cell(t, cell, a.n_repeats, tag)
        self.post(t + 0.01, lambda t: ev.BenchExited(t, a.model, 0, False), tag)

    def play_cell(self, t: float, cell: Cell, n_repeats: int, tag: int) -> float:
        repeat_s = cell.n_tokens / self.machine.speed(cell)
        self.post(t, lambda t: ev.WarmupStarted(t, cell), tag)
        t += repeat_s if cell.task == "pp" else repeat_s / cell.n_tokens
        samples = []
        for k in range(1, n_repeats + 1):
            self.post(t, lambda t, k=k: ev.RepeatStarted(t, cell, k, n_repeats), tag)
            samples.append(repeat_s * self.machine.jitter(cell, k))
            t += samples[-1]
        self.post(t, lambda t: ev.BenchRow(t, cell, tuple(samples)), tag)
        return t

    def do_AbortBench(self, a: act.AbortBench) -> None:
        self.bench_tag += 1  # everything still queued from the killed process is void
        self.post(self.now_s + 0.01, lambda t: ev.BenchExited(t, a.model, 137, True), self.bench_tag)

    def do_Finish(self, a: act.Finish) -> None:
        pass
