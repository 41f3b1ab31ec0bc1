"""What happened on the server: the inputs of the conductor and the lines of the event log.

`t_s` is seconds since the agent started, from a monotonic clock (replay: the virtual clock).
Every event is one JSON line of the log: `{"seq": 7, "unix_s": ..., "kind": "BenchRow", "t_s": ..., ...}`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tasks.domain.cells import Cell
from tasks.domain.errors import AgentError


@dataclass(frozen=True)
class Event:
    t_s: float


@dataclass(frozen=True)
class Probed(Event):
    """What the server has. Bytes are what a process may really use (limits of cgroup or rlimit included)."""

    memory_total_bytes: int
    memory_available_bytes: int
    disk_free_bytes: int
    n_cpus: int
    vram_free_bytes: tuple[int, ...] = ()
    hardware: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HeaderRead(Event):
    """The GGUF header of a model, read by range request before its download."""

    model: str
    header: dict[str, Any]


@dataclass(frozen=True)
class HeaderFailed(Event):
    """`reason` is a value of Reason (`not_gguf`, `download_failed`, `download_dead`)."""

    model: str
    reason: str
    detail: str


@dataclass(frozen=True)
class DownloadStarted(Event):
    model: str
    bytes_total: int
    bytes_resumed: int = 0


@dataclass(frozen=True)
class DownloadProgress(Event):
    """`bytes_done` counts from the beginning of the file; `n_connections` is how many are open now."""

    model: str
    bytes_done: int
    n_connections: int = 1


@dataclass(frozen=True)
class DownloadPaused(Event):
    model: str


@dataclass(frozen=True)
class DownloadResumed(Event):
    model: str


@dataclass(frozen=True)
class DownloadFinished(Event):
    model: str
    bytes: int
    sha256: str
    n_retries: int = 0


@dataclass(frozen=True)
class DownloadFailed(Event):
    """`reason` is a value of Reason: download_failed, download_dead, checksum, disk_full, not_gguf, cancelled."""

    model: str
    reason: str
    detail: str


@dataclass(frozen=True)
class BenchStarted(Event):
    """A llama-bench process was started; `cells` in the order in which it runs them."""

    model: str
    build: str
    cells: tuple[Cell, ...]
    pid: int = 0


@dataclass(frozen=True)
class WarmupStarted(Event):
    """The model is loaded and the untimed warm-up of a cell begins."""

    cell: Cell


@dataclass(frozen=True)
class RepeatStarted(Event):
    """Repeat k (from 1) of a cell begins; the one before it, if any, has just ended."""

    cell: Cell
    k: int
    n_repeats: int


@dataclass(frozen=True)
class EngineLoaded(Event):
    """Where the engine has put the model, from its own log at the first warm-up of a process.

    buffers_mib: by device and kind, e.g. {"CUDA0 model": 4403.5}. layers_offloaded: None where it does not say.
    gpu_memory_used_bytes: in use on all GPUs, as it was read last; None without a reading.
    n_gpus_used: among which the engine divides the model; None where it names none.
    """

    model: str
    build: str
    buffers_mib: dict[str, Any] = field(default_factory=dict)
    layers_offloaded: int | None = None
    layers_total: int | None = None
    gpu_memory_used_bytes: int | None = None
    n_gpus_used: int | None = None


@dataclass(frozen=True)
class NoWorkingBuild(Event):
    """The runtime has builds, and none of them runs on this server."""

    detail: str


@dataclass(frozen=True)
class BenchRow(Event):
    """llama-bench finished a cell. `samples_s`: seconds of every repeat, from its own raw samples.

    `row` is the JSON line as printed, unknown keys kept.
    """

    cell: Cell
    samples_s: tuple[float, ...]
    row: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchExited(Event):
    """The process ended. rc: exit status, 128+n after signal n. `aborted`: we stopped it on purpose.

    `oom` is true when the kernel killed it for memory, as far as that can be told.
    """

    model: str
    rc: int
    aborted: bool
    stderr_tail: str = ""
    oom: bool = False


@dataclass(frozen=True)
class VariantEnded(Event):
    """A measurement beside the ladder has ended (tasks/domain/variants.py).

    variant: one of KINDS there. outcome: measured, failed or timed_out. started_s: on the clock of t_s. settings: what
    was changed. rows: the engine's JSON lines, each with the number of its process (`instance`, from 0) and its device
    set.
    """

    variant: str
    label: str
    model: str
    outcome: str
    started_s: float
    build: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    detail: str = ""


@dataclass(frozen=True)
class Cancelled(Event):
    detail: str = ""


@dataclass(frozen=True)
class Tick(Event):
    """Time passed and nothing else."""


EVENT_TYPES: dict[str, type[Event]] = {
    cls.__name__: cls
    for cls in (
        Probed,
        HeaderRead,
        HeaderFailed,
        DownloadStarted,
        DownloadProgress,
        DownloadPaused,
        DownloadResumed,
        DownloadFinished,
        DownloadFailed,
        BenchStarted,
        WarmupStarted,
        RepeatStarted,
        EngineLoaded,
        NoWorkingBuild,
        BenchRow,
        BenchExited,
        VariantEnded,
        Cancelled,
        Tick,
    )
}


def event_to_dict(event: Event) -> dict[str, Any]:
    """The event as JSON-ready values, with its kind."""
    return {"kind": type(event).__name__, **asdict(event)}


def event_from_dict(raw: dict[str, Any]) -> Event:
    """Rebuild an event. Keys that this version does not know are ignored.

    Raises AgentError for an unknown kind or a missing field.
    """
    try:
        cls = EVENT_TYPES[raw["kind"]]
        values = {f.name: raw[f.name] for f in fields(cls) if f.name in raw}
        if "cell" in values:
            values["cell"] = Cell(**values["cell"])
        if "cells" in values:
            values["cells"] = tuple(Cell(**c) for c in values["cells"])
        for key in ("samples_s", "vram_free_bytes"):
            if key in values:
                values[key] = tuple(values[key])
        return cls(**values)
    except (KeyError, TypeError) as exc:
        raise AgentError(f"The agent's event log has a line that is no event: {exc!r} in {str(raw)[:200]}.") from exc
