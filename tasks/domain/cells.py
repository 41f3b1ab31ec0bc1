"""Cells, outcomes and reasons: the closed vocabulary of one server run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

PP = "pp"
TG = "tg"
TASKS = (PP, TG)


class Outcome(str, Enum):
    """How a cell ended; exactly one per cell."""

    MEASURED = "measured"
    GATED = "gated"
    TIMED_OUT = "timed_out"
    INFEASIBLE = "infeasible"
    FAILED = "failed"
    NOT_REACHED = "not_reached"


class Reason(str, Enum):
    """Why a cell ended as it did. Closed: a new reason is a change of the lake's vocabulary."""

    OK = "ok"
    FEWER_REPEATS = "fewer_repeats"  # measured, but stopped before the policy's minimum of repeats
    # gated
    PREDICTED_TOO_SLOW = "predicted_too_slow"
    MEASURED_TOO_SLOW = "measured_too_slow"
    SHORTER_CELL_TOO_SLOW = "shorter_cell_too_slow"
    SMALLER_MODEL_TOO_SLOW = "smaller_model_too_slow"
    DOWNLOAD_TOO_SLOW = "download_too_slow"
    MONEY = "money"
    # timed out
    CELL_TIMEOUT = "cell_timeout"
    LOAD_TIMEOUT = "load_timeout"
    # infeasible
    MEMORY = "memory"
    VRAM = "vram"
    DISK = "disk"
    # failed
    DOWNLOAD_DEAD = "download_dead"
    DOWNLOAD_FAILED = "download_failed"
    CHECKSUM = "checksum"
    NOT_GGUF = "not_gguf"
    BENCH_FAILED = "bench_failed"
    BENCH_KILLED = "bench_killed"
    OUT_OF_MEMORY = "out_of_memory"
    NO_WORKING_BUILD = "no_working_build"
    DISK_FULL = "disk_full"
    SERVER_FAILED = "server_failed"
    # not reached
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    SERVER_LOST = "server_lost"
    SMALLEST_FAILED = "smallest_failed"


OUTCOME_OF: dict[Reason, Outcome] = {
    Reason.OK: Outcome.MEASURED,
    Reason.FEWER_REPEATS: Outcome.MEASURED,
    Reason.PREDICTED_TOO_SLOW: Outcome.GATED,
    Reason.MEASURED_TOO_SLOW: Outcome.GATED,
    Reason.SHORTER_CELL_TOO_SLOW: Outcome.GATED,
    Reason.SMALLER_MODEL_TOO_SLOW: Outcome.GATED,
    Reason.DOWNLOAD_TOO_SLOW: Outcome.GATED,
    Reason.MONEY: Outcome.GATED,
    Reason.CELL_TIMEOUT: Outcome.TIMED_OUT,
    Reason.LOAD_TIMEOUT: Outcome.TIMED_OUT,
    Reason.MEMORY: Outcome.INFEASIBLE,
    Reason.VRAM: Outcome.INFEASIBLE,
    Reason.DISK: Outcome.INFEASIBLE,
    Reason.DOWNLOAD_DEAD: Outcome.FAILED,
    Reason.DOWNLOAD_FAILED: Outcome.FAILED,
    Reason.CHECKSUM: Outcome.FAILED,
    Reason.NOT_GGUF: Outcome.FAILED,
    Reason.BENCH_FAILED: Outcome.FAILED,
    Reason.BENCH_KILLED: Outcome.FAILED,
    Reason.OUT_OF_MEMORY: Outcome.FAILED,
    Reason.NO_WORKING_BUILD: Outcome.FAILED,
    Reason.DISK_FULL: Outcome.FAILED,
    Reason.SERVER_FAILED: Outcome.FAILED,
    Reason.DEADLINE: Outcome.NOT_REACHED,
    Reason.CANCELLED: Outcome.NOT_REACHED,
    Reason.SERVER_LOST: Outcome.NOT_REACHED,
    Reason.SMALLEST_FAILED: Outcome.NOT_REACHED,
}


@dataclass(frozen=True, order=True)
class Cell:
    """One point of the ladder: a model (by name), a task and a length in tokens."""

    model: str
    task: str
    n_tokens: int

    def __str__(self) -> str:
        return f"{self.model} {self.task}{self.n_tokens}"


@dataclass(frozen=True)
class CellResult:
    """The end of one cell.

    `samples_s` are the seconds of each finished repeat, in order. They are kept whatever the outcome:
    a cell stopped in the middle still has the repeats that it finished.
    """

    cell: Cell
    reason: Reason
    detail: str
    samples_s: tuple[float, ...] = ()

    @property
    def outcome(self) -> Outcome:
        return OUTCOME_OF[self.reason]
