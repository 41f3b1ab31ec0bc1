"""What the conductor asks its driver to do, and the record of why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tasks.domain.cells import Cell
from tasks.domain.variants import Variant


@dataclass(frozen=True)
class Action:
    pass


@dataclass(frozen=True)
class ReadHeader(Action):
    """Fetch the GGUF header by range request; answer with HeaderRead or HeaderFailed."""

    model: str


@dataclass(frozen=True)
class StartDownload(Action):
    """Answer with DownloadStarted, DownloadProgress (about 1 Hz) and one of DownloadFinished, DownloadFailed."""

    model: str


@dataclass(frozen=True)
class PauseDownload(Action):
    """Stop moving bytes but keep what is there; answer with DownloadPaused."""

    model: str


@dataclass(frozen=True)
class ResumeDownload(Action):
    model: str


@dataclass(frozen=True)
class AbortDownload(Action):
    """End it for good; answer with DownloadFailed(reason="cancelled")."""

    model: str


@dataclass(frozen=True)
class RemoveModel(Action):
    """Delete the model's file: it is not needed again. No answer."""

    model: str


@dataclass(frozen=True)
class StartBench(Action):
    """Start one llama-bench process over these cells; they share a model, pp before tg.

    n_threads: 0 takes the plan's. ngl: layers to offload; None for a build without a GPU, whose command line then
    does not speak of them.
    Answer with BenchStarted, then WarmupStarted/RepeatStarted/BenchRow as they come, then BenchExited.
    """

    model: str
    build: str
    cells: tuple[Cell, ...]
    n_repeats: int
    ngl: int | None = None
    n_threads: int = 0


@dataclass(frozen=True)
class AbortBench(Action):
    """Kill the running llama-bench; answer with BenchExited(aborted=True)."""

    model: str


@dataclass(frozen=True)
class StartVariant(Action):
    """Start the processes of one measurement beside the ladder; answer with VariantEnded when all have ended."""

    variant: Variant
    build: str
    ngl: int | None = None
    n_threads: int = 0


@dataclass(frozen=True)
class AbortVariant(Action):
    """Kill what is left of it; answer with VariantEnded(outcome="timed_out")."""


@dataclass(frozen=True)
class Finish(Action):
    """The run is over; `Conductor.results()` has one result for every cell."""

    reason: str


@dataclass(frozen=True)
class Decision:
    """One decision, "go on" included: what was decided about what, why, and on which evidence.

    evidence: numbers with their unit in the key, e.g. {"predicted_tok_per_s": 3.1, "min_tok_per_s": 25.0}.
    """

    t_s: float
    action: str
    subject: str
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)
