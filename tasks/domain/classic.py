"""Policy `classic`: the predecessor's thresholds, kept exactly, as the yardstick for every other policy.

Source: the wrapper around llama-bench in the sc-images repository of Spare Cores (read at 2312458): five
repeats, one process per cell, a time limit per process derived from an expected speed, and a stop of the
whole server when the shortest cell misses it. Loading counts as slowness there; that is part of the record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from tasks.domain.cells import Cell, Outcome, Reason
from tasks.domain.memory import disk_needed_bytes
from tasks.domain.policy import GO, BenchView, DownloadView, RunView, Verdict
from tasks.domain.run_plan import LadderStep, ModelSpec

# Expected tokens/s by length; the same table is the default ladder of every policy.
CLASSIC_MIN_TOK_PER_S: dict[str, dict[int, float]] = {
    "pp": {16: 2.0, 128: 10.0, 512: 25.0, 1024: 50.0, 4096: 250.0, 16384: 1000.0},
    "tg": {16: 1.0, 128: 5.0, 512: 25.0, 1024: 50.0, 4096: 250.0},
}


def classic_ladder(pp: Sequence[int] = (), tg: Sequence[int] = ()) -> tuple[LadderStep, ...]:
    """The ladder with the predecessor's gates; all lengths by default. KeyError for a length without a gate."""
    lengths = {
        "pp": tuple(pp) or tuple(CLASSIC_MIN_TOK_PER_S["pp"]),
        "tg": tuple(tg) or tuple(CLASSIC_MIN_TOK_PER_S["tg"]),
    }
    return tuple(LadderStep(task, n, CLASSIC_MIN_TOK_PER_S[task][n]) for task in ("pp", "tg") for n in lengths[task])


def process_limit_s(model_bytes: int, n_tokens: int, min_tok_per_s: float) -> float:
    """Seconds that one llama-bench process of one cell may take: load at 0.25 GiB/s, then five repeats."""
    gib = model_bytes / 2**30
    return float(round(gib / 0.25 + 1 + 5 * n_tokens / min_tok_per_s))


@dataclass(frozen=True)
class ClassicPolicy:
    name: str = "classic"
    n_repeats: int = 5
    reads_headers: bool = False
    one_cell_per_process: bool = True
    download_wait_s: float = 900.0
    long_cell_tokens: int = 1024
    long_cell_slack: float = 1.1

    def judge_model(self, view: RunView, model: ModelSpec) -> Verdict:
        needed = disk_needed_bytes(model.planned_bytes)
        evidence = {"disk_needed_bytes": needed, "disk_free_bytes": view.disk_free_bytes}
        return Verdict(needed <= view.disk_free_bytes, Reason.DISK, evidence)

    def judge_cell(self, view: RunView, cell: Cell) -> Verdict:
        return GO

    def limit_s(self, view: RunView, cell: Cell) -> float:
        return process_limit_s(view.model(cell.model).planned_bytes, cell.n_tokens, view.step(cell).min_tok_per_s)

    def judge_running(self, view: RunView, bench: BenchView) -> Verdict:
        limit_s = self.limit_s(view, bench.cells[0])
        elapsed_s = view.now_s - bench.started_s
        return Verdict(elapsed_s <= limit_s, Reason.CELL_TIMEOUT, {"elapsed_s": elapsed_s, "limit_s": limit_s})

    def next_check_s(self, view: RunView, bench: BenchView) -> float:
        # One millisecond later than the limit: at the limit itself the process may still run.
        return bench.started_s + self.limit_s(view, bench.cells[0]) + 0.001

    def judge_download(self, view: RunView, download: DownloadView, waiting_s: float) -> Verdict:
        remaining = download.bytes_total - download.bytes_done
        speeds = [d.mean_bytes_per_s for d in view.finished_downloads]
        evidence = {"remaining_bytes": remaining, "waiting_s": waiting_s, "wait_limit_s": self.download_wait_s}
        if waiting_s > self.download_wait_s:
            return Verdict(False, Reason.DOWNLOAD_TOO_SLOW, evidence)
        if waiting_s > 0 and speeds:
            mean = sum(speeds) / len(speeds)
            evidence["mean_bytes_per_s"] = mean
            return Verdict(remaining <= mean * self.download_wait_s, Reason.DOWNLOAD_TOO_SLOW, evidence)
        return Verdict(True, evidence=evidence)

    def next_download_check_s(self, view: RunView, download: DownloadView, waiting_s: float) -> float:
        if waiting_s > self.download_wait_s:
            return view.now_s
        return view.now_s + (1.0 if waiting_s <= 1.0 else self.download_wait_s - waiting_s + 0.001)

    def may_run_ahead(self, view: RunView, waiting_bytes: int, next_bytes: int) -> bool:
        return True

    def pauses_downloads(self, view: RunView, cell: Cell) -> bool:
        return False

    def after_cell(self, view: RunView, cell: Cell, process_s: float) -> Sequence[tuple[Cell, Reason]]:
        """Stop the server at a shortest cell that timed out, the task at a longer one or at a dim outlook.

        A call that failed by itself stops nothing there: its log was not looked at.
        """
        timed_out = view.results[cell].outcome is Outcome.TIMED_OUT
        if not timed_out and cell.n_tokens < self.long_cell_tokens:
            return []
        rest = [c for c in view.cells if c not in view.results]
        longer = [c for c in rest if c.model == cell.model and c.task == cell.task and c.n_tokens > cell.n_tokens]
        if timed_out:
            if not view.shorter(cell):
                return [(c, Reason.SMALLEST_FAILED) for c in rest]
            return [(c, Reason.SHORTER_CELL_TOO_SLOW) for c in longer]
        if longer:
            following = min(longer, key=lambda c: c.n_tokens)
            ratio = view.step(cell).min_tok_per_s / view.step(following).min_tok_per_s
            if process_s > self.limit_s(view, cell) * ratio * self.long_cell_slack:
                return [(c, Reason.PREDICTED_TOO_SLOW) for c in longer]
        return []
