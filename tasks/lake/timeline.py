"""What the event log of one run tells, on one clock: unix seconds of the server as its agent started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tasks.domain import events as ev
from tasks.domain.cells import Cell


@dataclass
class Attempt:
    """One attempt at a cell by llama-bench process number `process`. `marks_s`: when each repeat began."""

    cell: Cell
    build: str
    process: int
    warmup_s: float | None = None
    marks_s: list[float] = field(default_factory=list)
    n_repeats: int | None = None
    row: ev.BenchRow | None = None
    ended_s: float | None = None


@dataclass
class Process:
    """One llama-bench process."""

    model: str
    started_s: float
    loaded_s: float | None = None
    ended_s: float | None = None
    engine: ev.EngineLoaded | None = None
    cpu_fallback: str | None = None


@dataclass(frozen=True)
class EndedVariant:
    """A measurement beside the ladder."""

    event: ev.VariantEnded
    started_s: float
    ended_s: float


@dataclass
class Download:
    model: str
    attempt: int
    started_s: float
    bytes_total: int
    bytes_resumed: int
    bytes_done: int
    pauses: list[tuple[float, float]] = field(default_factory=list)
    paused_since_s: float | None = None
    ended_s: float | None = None
    outcome: str = "interrupted"
    reason: str | None = None
    detail: str = ""
    sha256: str | None = None
    n_retries: int | None = None
    n_connections: int | None = None
    url_host: str | None = None

    def end(self, at_s: float) -> None:
        if self.paused_since_s is not None:
            self.pauses.append((self.paused_since_s, at_s))
            self.paused_since_s = None
        self.ended_s = at_s

    def moving(self, until_s: float) -> Iterator[tuple[float, float]]:
        """Intervals in which it moved bytes, for one that is open up to `until_s`."""
        begin = self.started_s
        pauses = [*self.pauses, *([] if self.paused_since_s is None else [(self.paused_since_s, until_s)])]
        for pause_begin, pause_end in pauses:
            if pause_begin > begin:
                yield begin, pause_begin
            begin = pause_end
        end = until_s if self.ended_s is None else self.ended_s
        if end > begin:
            yield begin, end


@dataclass(frozen=True)
class Reading:
    """One line of telemetry, about the time from `since_s` to `at_s`."""

    since_s: float
    at_s: float
    t_s: float
    values: dict[str, Any]


@dataclass(frozen=True)
class TimedLine:
    at_s: float
    raw: dict[str, Any]
