"""What was recorded of one server run, in the terms of a replay. Times are seconds since the run's start."""

from __future__ import annotations

from dataclasses import dataclass, field

from tasks.domain.cells import Cell
from tasks.domain.twins import Machine

OK, TIMED_OUT, FAILED, UNTRIED = "ok", "timed_out", "failed", "untried"


@dataclass(frozen=True)
class RecordedCall:
    """One call of llama-bench for one cell, or a cell that was never tried (`UNTRIED`).

    wall_s: the whole process. timeout_s: when it would have been killed. samples_s: of the repeats of an ok call.
    """

    status: str
    started_s: float = 0.0
    wall_s: float = 0.0
    timeout_s: float = 0.0
    samples_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class RecordedModel:
    """One model of the ladder. download_s: from its start to its end; None where it never came.

    lag_s: from the end of the download before to this one's start. rate_bytes_per_s: of a download that never came;
    0 for one that had died. probe_s: spent trying how many layers go to the GPU.
    """

    name: str
    bytes: int
    lag_s: float
    download_s: float | None
    rate_bytes_per_s: float
    probe_s: float


@dataclass(frozen=True)
class RecordedRun:
    """One run of one server as far as its ladder went: models that it never came to are left out.

    head_s: until its program began (image pull, container start). tail_s: after its last activity.
    bytes_downloaded: of every model, those that the ladder never came to included. calm: calls beside which nothing was
    downloaded. cpu_model: as llama-bench saw it in this very run.
    """

    vendor: str
    server: str
    run: int
    wall_s: float
    usd_per_hour: float | None
    head_s: float
    tail_s: float
    end_reason: str
    n_cpus: int
    n_threads: int
    memory_bytes: int
    vram_bytes: int
    has_gpu: bool
    cpu_model: str
    gpu_model: str
    gpu_count: int
    models: tuple[RecordedModel, ...]
    bytes_downloaded: int = 0
    calls: dict[Cell, RecordedCall] = field(default_factory=dict)
    is_april: bool = False
    calm: frozenset[Cell] = frozenset()
    l3_bytes: int = 0

    @property
    def key(self) -> tuple[str, str, int]:
        return self.vendor, self.server, self.run

    @property
    def usd(self) -> float | None:
        return None if self.usd_per_hour is None else self.wall_s / 3600 * self.usd_per_hour

    @property
    def n_ok(self) -> int:
        return sum(call.status == OK for call in self.calls.values())


def machine_of(run: RecordedRun, sweep: str = "") -> Machine:
    """The server as far as its speed is concerned. sweep: see Machine."""
    return Machine(
        vendor=run.vendor,
        server=run.server,
        cpu_model=run.cpu_model,
        n_cpus=run.n_cpus,
        n_threads=run.n_threads,
        gpu_model=run.gpu_model if run.has_gpu else "",
        gpu_count=run.gpu_count if run.has_gpu else 0,
        memory_bytes=run.memory_bytes,
        usd_per_hour=run.usd_per_hour,
        l3_bytes=run.l3_bytes,
        vram_bytes=run.vram_bytes if run.has_gpu else 0,
        sweep=sweep,
    )
