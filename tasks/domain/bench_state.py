"""What the conductor knows of the llama-bench process that is running."""

from __future__ import annotations

from typing import Any

from tasks.domain.cells import Cell
from tasks.domain.policy import BenchView, Verdict

SHORTEST_SAMPLE_S = 1e-6


class BenchState:
    """Follows one process over its cells. Repeats are timed by the marks that llama-bench writes before each.

    Rows and marks come through two pipes, so the mark of the next cell may be seen before the row of the last.
    """

    def __init__(self, model: str, cells: tuple[Cell, ...], n_repeats: int, now_s: float) -> None:
        self.view = BenchView(model=model, cells=cells, started_s=now_s, n_repeats=n_repeats)
        self.running = False
        self.stop: Verdict | None = None
        self.stop_cell: Cell | None = None
        self.abort_sent = False
        self.not_on_gpu: dict[str, Any] | None = None
        self.missed = ""
        self.n_rows = 0
        self._with_row: set[Cell] = set()
        self._judged: set[Cell] = {cells[0]}

    def started(self, t_s: float) -> None:
        self.running = True
        self.view.started_s = t_s

    def warmup(self, t_s: float, cell: Cell) -> None:
        if self.view.loaded_s is None:
            self.view.loaded_s = t_s - self.view.started_s
        self.view.current = cell
        self.view.warming_since_s = t_s
        self.view.repeat_since_s = None
        self.view.samples_s = ()

    def repeat(self, t_s: float, cell: Cell, k: int) -> None:
        """Repeat `k` begins; the one before it has just ended."""
        if self.view.current != cell:
            self.warmup(t_s, cell)
        if self.view.repeat_since_s is not None and k > 1:
            # Marks of a very short repeat can be read in one go and bear the same time.
            sample_s = max(t_s - self.view.repeat_since_s, SHORTEST_SAMPLE_S)
            self.view.samples_s = (*self.view.samples_s, sample_s)
        self.view.repeat_since_s = t_s

    def stop_as_not_on_gpu(self, missed: str, evidence: dict[str, Any]) -> None:
        """Nothing that this process measures is to count: it works without GPUs that are there, or one of them."""
        self.missed, self.not_on_gpu = missed, evidence

    def row(self, cell: Cell) -> None:
        self.n_rows += 1
        self._with_row.add(cell)
        if self.view.current == cell:
            self.view.current = None
            self.view.warming_since_s = self.view.repeat_since_s = None
            self.view.samples_s = ()

    def close(self, t_s: float) -> None:
        self.running = False

    def interrupted_cell(self) -> Cell | None:
        """The cell in which the process ended: begun (or the first to come after a load) and without a row."""
        return self.view.current

    def samples_s(self) -> tuple[float, ...]:
        """Finished repeats of the interrupted cell, in seconds."""
        return self.view.samples_s

    def first_open_cell(self) -> Cell | None:
        for cell in self.view.cells:
            if cell not in self._with_row:
                return cell
        return None

    def upcoming_cell(self) -> Cell | None:
        """The cell that runs next or has just begun, if it has not been judged since the row before it."""
        cell = self.first_open_cell()
        return None if cell in self._judged else cell

    def accepted(self, cell: Cell) -> None:
        self._judged.add(cell)
