"""What a gate policy sees and what it answers.

A policy decides whether a cell, a download or a running repeat is worth its money. It holds no state:
everything that it may use is in `RunView`. The conductor asks, acts and records every answer.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, Sequence

from tasks.domain.cells import Cell, CellResult, Outcome, Reason
from tasks.domain.gguf import GgufHeader
from tasks.domain.memory import MemoryNeed, memory_needed_bytes
from tasks.domain.run_plan import LadderStep, ModelSpec, RunPlan
from tasks.domain.stats import mean, median, sd

TOO_SLOW = (
    Reason.PREDICTED_TOO_SLOW,
    Reason.MEASURED_TOO_SLOW,
    Reason.SHORTER_CELL_TOO_SLOW,
    Reason.SMALLER_MODEL_TOO_SLOW,
)
"""Reasons that speak of the speed of a cell."""


@dataclass(frozen=True)
class Verdict:
    """Go on, or stop with a reason. `evidence` has units in its keys; it is recorded either way."""

    go: bool
    reason: Reason = Reason.OK
    evidence: dict[str, Any] = field(default_factory=dict)


GO = Verdict(go=True)


@dataclass(frozen=True)
class Speed:
    """Of a cell with at least one finished repeat. spread: coefficient of variation, None for a single repeat."""

    median_tok_per_s: float
    best_tok_per_s: float
    spread: float | None


@dataclass
class DownloadView:
    """One download as it stands. `active_s` counts only the time in which it was neither paused nor ended.

    recent_bytes_per_s: over the last two minutes of that; bytes of an earlier run count in bytes_done alone.
    """

    model: str
    bytes_total: int
    bytes_done: int = 0
    started_s: float = 0.0
    active_s: float = 0.0
    recent_bytes_per_s: float = 0.0
    paused: bool = False
    finished: bool = False

    @property
    def mean_bytes_per_s(self) -> float:
        return self.bytes_done / self.active_s if self.active_s > 0 else 0.0


@dataclass
class BenchView:
    """The llama-bench process as it stands. `samples_s` are the finished repeats of the current cell."""

    model: str
    cells: tuple[Cell, ...]
    started_s: float
    n_repeats: int
    current: Cell | None = None
    loaded_s: float | None = None
    warming_since_s: float | None = None
    repeat_since_s: float | None = None
    samples_s: tuple[float, ...] = ()


@dataclass
class RunView:
    """All that a policy may look at: the plan, what was measured, what is left of time and money."""

    plan: RunPlan
    now_s: float = 0.0
    end_s: float = float("inf")
    end_reason: Reason = Reason.DEADLINE
    memory_total_bytes: int = 0
    memory_available_bytes: int = 0
    disk_free_bytes: int = 0
    n_cpus: int = 1
    has_gpu: bool = False
    results: dict[Cell, CellResult] = field(default_factory=dict)
    headers: dict[str, GgufHeader] = field(default_factory=dict)
    load_s: dict[str, float] = field(default_factory=dict)
    finished_downloads: list[DownloadView] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._steps = {(s.task, s.n_tokens): s for s in self.plan.ladder}
        self._models = {m.name: m for m in self.plan.models}
        self.cells = self.plan.cells()
        self._shorter: dict[Cell, tuple[Cell, ...]] = {}
        self._smaller: dict[str, tuple[ModelSpec, ...]] = {}
        self._speeds: dict[Cell, Speed] = {}
        self._needs: dict[Cell, MemoryNeed] = {}
        self.billing = self.plan.billing
        self.known = {k.cell: k for k in self.plan.known}
        self.memo: dict[Cell, Any] = {}
        self.noise: list[tuple[int, float]] = []
        for result in self.results.values():
            self._note_speed(result)

    def add_result(self, result: CellResult) -> None:
        """Take in how a cell ended. `memo`, where a policy keeps what it reckoned of open cells, is cleared."""
        self.results[result.cell] = result
        self.memo.clear()
        self._note_speed(result)

    def _note_speed(self, result: CellResult) -> None:
        """Keep what is asked for again and again: the speed, and how far its repeats lie apart.

        `noise` has, for each cell with two repeats or more, its degrees of freedom and its variance as a share of
        the squared mean.
        """
        samples, n_tokens = result.samples_s, result.cell.n_tokens
        if not samples:
            return
        spread = None
        if len(samples) > 1:
            spread = sd(samples) / mean(samples)
            self.noise.append((len(samples) - 1, spread**2))
        self._speeds[result.cell] = Speed(n_tokens / median(samples), n_tokens / min(samples), spread)

    @property
    def remaining_s(self) -> float:
        """Seconds of work that deadline and money still allow."""
        return self.end_s - self.now_s

    @property
    def lifetime_s(self) -> float:
        """Age at which the vendor would stop billing if the run ended now."""
        return self.plan.billed_before_s + self.now_s + self.plan.teardown_reserve_s

    @property
    def paid_s(self) -> float:
        """Seconds from now on that cost nothing more; 0 where the vendor bills by the second."""
        if self.billing.by_the_second:
            return 0.0
        return self.billing.paid_until_s(self.lifetime_s) - self.lifetime_s

    def step(self, cell: Cell) -> LadderStep:
        """Raises KeyError for a cell that is not of the plan's ladder."""
        return self._steps[cell.task, cell.n_tokens]

    def model(self, name: str) -> ModelSpec:
        return self._models[name]

    def tok_per_s(self, cell: Cell) -> float | None:
        """Median tokens/s of a cell that has at least one finished repeat."""
        found = self._speeds.get(cell)
        return None if found is None else found.median_tok_per_s

    def speed(self, cell: Cell) -> Speed | None:
        return self._speeds.get(cell)

    def memory_needed_bytes(self, cell: Cell) -> int | None:
        """What llama-bench would touch for this cell on the CPU, or None while the header is not known."""
        header = self.headers.get(cell.model)
        if header is None:
            return None
        if cell not in self._needs:
            self._needs[cell] = memory_needed_bytes(header, cell.n_tokens)
        return self._needs[cell].total

    def too_slow(self, cell: Cell) -> bool:
        """Whether the cell was stopped because its speed was, or was bound to be, below its gate."""
        result = self.results.get(cell)
        return result is not None and (result.reason in TOO_SLOW or result.outcome is Outcome.TIMED_OUT)

    def shorter(self, cell: Cell) -> Sequence[Cell]:
        """Cells of the same model and task with fewer tokens, longest first."""
        found = self._shorter.get(cell)
        if found is None:
            lengths = sorted((s.n_tokens for s in self.plan.ladder if s.task == cell.task), reverse=True)
            found = tuple(Cell(cell.model, cell.task, n) for n in lengths if n < cell.n_tokens)
            self._shorter[cell] = found
        return found

    def smaller_models(self, name: str) -> Sequence[ModelSpec]:
        """Models with fewer bytes, largest first."""
        found = self._smaller.get(name)
        if found is None:
            limit = self.model(name).planned_bytes
            fewer = [m for m in self.plan.models if m.planned_bytes < limit]
            found = self._smaller[name] = tuple(sorted(fewer, key=lambda m: -m.planned_bytes))
        return found


class Policy(Protocol):
    """The questions that the conductor asks. All answers are pure functions of their arguments."""

    name: str
    n_repeats: int
    reads_headers: bool
    one_cell_per_process: bool

    def judge_model(self, view: RunView, model: ModelSpec) -> Verdict:
        """Before its download: is any cell of the model worth having?"""
        ...

    def judge_cell(self, view: RunView, cell: Cell) -> Verdict:
        """Before it starts: is this cell worth running?"""
        ...

    def judge_running(self, view: RunView, bench: BenchView) -> Verdict:
        """Now: go on, or stop the current cell? OK as the reason of a stop means "enough repeats"."""
        ...

    def next_check_s(self, view: RunView, bench: BenchView) -> float:
        """When `judge_running` may change its mind although nothing happens."""
        ...

    def judge_download(self, view: RunView, download: DownloadView, waiting_s: float) -> Verdict:
        """Go on with this download? `waiting_s`: how long llama-bench has been idle for want of it."""
        ...

    def next_download_check_s(self, view: RunView, download: DownloadView, waiting_s: float) -> float:
        """When `judge_download` may change its mind although nothing happens."""
        ...

    def may_run_ahead(self, view: RunView, waiting_bytes: int, next_bytes: int) -> bool:
        """May the next download start while `waiting_bytes` of models are here and not yet measured?"""
        ...

    def pauses_downloads(self, view: RunView, cell: Cell) -> bool:
        """Must downloads stand still during the timed repeats of this cell?"""
        ...

    def after_cell(self, view: RunView, cell: Cell, process_s: float) -> Sequence[tuple[Cell, Reason]]:
        """Cells that need not be tried now that this one has ended, with the reason for each."""
        ...


def policy_sha256(policy: Any) -> str:
    """Identifies a policy with all its thresholds (policies are dataclasses)."""
    text = json.dumps({"class": type(policy).__name__, **asdict(policy)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
