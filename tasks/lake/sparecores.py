"""What the importer of Spare Cores' public results knows of their source, and one imported run.

Source: https://github.com/SpareCores/sc-inspector-data, licence CC BY-SA 4.0. Layout: `data/<vendor>/<server>/<task>/`
with `meta.json`, `stdout` and `stderr`; task `llm` is llama-bench, `lscpu` and `nvidia_smi` describe the machine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tasks.domain.cells import Cell, Reason
from tasks.domain.classic import CLASSIC_MIN_TOK_PER_S

SOURCE = "sparecores/sc-inspector-data"
SOURCE_URL = "https://github.com/SpareCores/sc-inspector-data"
DATA_LICENCE = "CC BY-SA 4.0"
SWEEP_ID = "sparecores"
METHODOLOGY_OF_OTHERS = 0
"""Their numbers come from another method than ours: downloads ran beside the repeats, one process for each cell."""


@dataclass(frozen=True)
class PublishedModel:
    """A GGUF of their sweep under the name of our catalogue. mib: as their downloads report it."""

    name: str
    file: str
    mib: float

    @property
    def bytes(self) -> int:
        return round(self.mib * 2**20)


MODELS = (
    PublishedModel("smollm-135m", "SmolLM-135M.Q4_K_M.gguf", 100.57),
    PublishedModel("qwen1.5-0.5b", "qwen1_5-0_5b-chat-q4_k_m.gguf", 388.29),
    PublishedModel("gemma-2b", "gemma-2b.Q4_K_M.gguf", 1425.83),
    PublishedModel("llama-7b", "llama-7b.Q4_K_M.gguf", 3891.95),
    PublishedModel("phi-4", "phi-4-q4.gguf", 8633.72),
    PublishedModel("llama-3.3-70b", "Llama-3.3-70B-Instruct-Q4_K_M.gguf", 40550.61),
)
_CACHE = re.compile(r"([0-9.]+) *([KM]?)i?B?(?: |$)")
_UNIT_BYTES = {"": 1, "K": 2**10, "M": 2**20}
MODEL_OF_FILE = {m.file: m for m in MODELS}
LADDER = tuple((task, n) for task, gates in CLASSIC_MIN_TOK_PER_S.items() for n in gates)


@dataclass
class PublishedCell:
    """How one cell of theirs ended. samples_s: of the repeats; row: llama-bench's own line."""

    reason: Reason
    detail: str = ""
    started_s: float | None = None
    samples_s: tuple[float, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)
    row_text: str = ""


@dataclass(frozen=True)
class PublishedDownload:
    """One finished download; `ended_s` counts from the start of the run where that is known."""

    model: str
    n_bytes: int
    seconds: float
    ended_s: float | None


VENDOR_NAMES = {"hcloud": "hetzner"}
"""Where they name a vendor otherwise than we do."""


@dataclass
class PublishedRun:
    """One run of their task `llm` on one server. hardware: columns of our table of that name."""

    vendor: str
    server: str
    started_at: datetime
    ended_at: datetime | None = None
    exit_code: int | None = None
    error: str = ""
    engine_commit: str = ""
    cells: dict[Cell, PublishedCell] = field(default_factory=dict)
    downloads: list[PublishedDownload] = field(default_factory=list)
    hardware: dict[str, Any] = field(default_factory=dict)
    price_usd_per_hour: Decimal | None = None
    price_source: str = ""
    region: str = ""

    @property
    def ran(self) -> bool:
        return (self.exit_code is not None and self.exit_code >= 0) or bool(self.cells)


@dataclass
class ImportReport:
    """What an import found. unreadable: how often each kind of damage was met; none of it stops the import."""

    n_servers: int = 0
    n_runs: int = 0
    n_measured: int = 0
    n_cells: int = 0
    n_samples: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)

    def add(self, other: ImportReport) -> None:
        self.n_servers += other.n_servers
        self.n_runs += other.n_runs
        self.n_measured += other.n_measured
        self.n_cells += other.n_cells
        self.n_samples += other.n_samples
        self.unreadable.update(other.unreadable)


def every_cell() -> Iterator[Cell]:
    """Every cell of their ladder, smallest model first."""
    for model in MODELS:
        for task, n_tokens in LADDER:
            yield Cell(model.name, task, n_tokens)


def cpu_that_ran(cpu_info: Any, listed: Any) -> str | None:
    """The CPU by llama-bench's own word. Their listing of the hardware is of another boot of the server type, for
    which the vendor may have lent another CPU; of Arm llama-bench says "CPU" and no more."""
    seen = cpu_info if isinstance(cpu_info, str) and cpu_info not in ("", "CPU") else None
    return seen or (listed if isinstance(listed, str) and listed else None)


def cache_bytes(text: Any) -> int | None:
    """lscpu's "37486592 (1 instance)" or "32 MiB"; None for what is neither."""
    found = _CACHE.match(text) if isinstance(text, str) else None
    if found is None:
        return None
    return round(float(found[1]) * _UNIT_BYTES[found[2] or ""])


def utc(text: Any) -> datetime | None:
    """Their timestamps, which are UTC and do not say so. None for what is none."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
