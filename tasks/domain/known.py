"""What earlier runs showed of a server type or of its twins, for the gates of the next run.

A speed that was measured is one; a cell that was stopped in its first run says only that it was slower than that. The
gates take both as one more witness beside what the run measures itself (`predict`), and never as a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Iterable, Mapping, Optional

from tasks.domain.cells import Cell, CellResult
from tasks.domain.stats import mean, sd

if TYPE_CHECKING:
    from tasks.domain.actions import Decision  # which needs the run plan, and with it this module


@dataclass(frozen=True)
class KnownCell:
    """tok_per_s: of the fastest repeat, or what it was below of (`at_most`). spread: coefficient of variation, None
    for a single repeat. source: which run of which server, for people."""

    cell: Cell
    tok_per_s: float
    spread: Optional[float] = None
    at_most: bool = False
    source: str = ""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> KnownCell:
        return cls(**{**raw, "cell": Cell(**raw["cell"])})


def known_of(results: Iterable[CellResult], decisions: Iterable[Decision], source: str) -> tuple[KnownCell, ...]:
    """What one run tells the next: its finished repeats, and how long an unfinished one had taken when it was
    stopped."""
    stopped = {d.subject: d.evidence.get("run_s", 0.0) for d in decisions if d.action == "abort_bench"}
    known = []
    for result in results:
        cell, samples = result.cell, result.samples_s
        if samples:
            spread = sd(samples) / mean(samples) if len(samples) > 1 else None
            known.append(KnownCell(cell, cell.n_tokens / min(samples), spread, False, source))
        elif stopped.get(str(cell), 0.0) > 0:
            known.append(KnownCell(cell, cell.n_tokens / stopped[str(cell)], None, True, source))
    return tuple(known)
