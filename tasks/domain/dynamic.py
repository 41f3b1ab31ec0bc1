"""Policy `dynamic`, the default: skip what cannot pass its gate, stop what turns out not to, stop repeating when sure.

What it does differently from `classic`, each against a loss that the traces of the predecessor show:
loading is timed apart from speed; a cell whose optimistic bound misses its gate is not started; a cell that
falls below its gate is stopped after the repeat that shows it and keeps its samples; repeats stop once the
95 % interval is narrow; a model that cannot fit is not downloaded; money is a limit like time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

from tasks.domain.cells import PP, Cell, Reason
from tasks.domain.memory import disk_needed_bytes, fits
from tasks.domain.policy import GO, BenchView, DownloadView, RunView, Verdict
from tasks.domain.predict import predict
from tasks.domain.run_plan import ModelSpec
from tasks.domain.stats import half_width_ratio, median


@dataclass(frozen=True)
class DynamicPolicy:
    """Thresholds. `*_ratio` are shares, `*_slack` factors on the time that the gate's speed would take.

    ci_ratio: half-width of the 95 % interval of the mean, relative to it, at which repeats stop.
    download_wait_s: the longest that a server may stand idle for one model.
    download_judge_s: seconds of active download before its speed is judged (early speed forecasts badly).
    """

    name: str = "dynamic"
    n_repeats: int = 5
    min_repeats: int = 3
    reads_headers: bool = True
    one_cell_per_process: bool = False
    ci_ratio: float = 0.05
    hopeless_slack: float = 1.25
    gate_margin: float = 1.05
    load_floor_bytes_per_s: float = 25e6
    load_grace_s: float = 60.0
    download_wait_s: float = 900.0
    download_judge_s: float = 20.0
    download_optimism: float = 2.0
    download_check_s: float = 5.0
    memory_ratio: float = 0.95
    run_ahead_memory_ratio: float = 0.5

    def judge_model(self, view: RunView, model: ModelSpec) -> Verdict:
        needed = disk_needed_bytes(model.planned_bytes)
        if needed > view.disk_free_bytes:
            return Verdict(False, Reason.DISK, {"disk_needed_bytes": needed, "disk_free_bytes": view.disk_free_bytes})
        verdicts = [
            self.judge_cell(view, c) for c in view.plan.cells() if c.model == model.name and c not in view.results
        ]
        if verdicts and not any(v.go for v in verdicts):
            return verdicts[0]
        return GO

    def judge_cell(self, view: RunView, cell: Cell) -> Verdict:
        evidence: dict[str, Any] = {}
        for gate in (self._memory_gate, self._inherited_gate, self._speed_gate, self._money_gate):
            verdict = gate(view, cell)
            if not verdict.go:
                return verdict
            evidence.update(verdict.evidence)
        return Verdict(True, evidence=evidence)

    def _memory_gate(self, view: RunView, cell: Cell) -> Verdict:
        for model in view.smaller_models(cell.model):
            same = view.results.get(Cell(model.name, cell.task, cell.n_tokens))
            if same is not None and same.reason in (Reason.OUT_OF_MEMORY, Reason.MEMORY):
                return Verdict(False, Reason.MEMORY, {"because_of": str(same.cell)})
        header = view.headers.get(cell.model)
        if header is None or view.has_gpu:
            return GO
        available = int(view.memory_available_bytes * self.memory_ratio)
        fit = fits(header, cell.n_tokens, available)
        evidence = {"needed_bytes": fit.needed_bytes, "available_bytes": fit.available_bytes}
        return Verdict(fit.ok, Reason.MEMORY, evidence)

    def _inherited_gate(self, view: RunView, cell: Cell) -> Verdict:
        for shorter in view.shorter(cell):
            if view.too_slow(shorter):
                return Verdict(False, Reason.SHORTER_CELL_TOO_SLOW, {"because_of": str(shorter)})
        for model in view.smaller_models(cell.model):
            same = Cell(model.name, cell.task, cell.n_tokens)
            if view.too_slow(same):
                return Verdict(False, Reason.SMALLER_MODEL_TOO_SLOW, {"because_of": str(same)})
        return GO

    def _speed_gate(self, view: RunView, cell: Cell) -> Verdict:
        gate = view.step(cell).min_tok_per_s
        prediction = predict(view, cell)
        if prediction is None:
            return Verdict(True, evidence={"min_tok_per_s": gate, "predicted": "nothing comparable measured yet"})
        evidence = {
            "predicted_low_tok_per_s": prediction.low_tok_per_s,
            "predicted_high_tok_per_s": prediction.high_tok_per_s,
            "min_tok_per_s": gate,
            "from": str(prediction.source),
        }
        return Verdict(prediction.high_tok_per_s >= gate, Reason.PREDICTED_TOO_SLOW, evidence)

    def _money_gate(self, view: RunView, cell: Cell) -> Verdict:
        """Do not begin what even an optimist would not see finished before money or deadline end the run."""
        prediction = predict(view, cell)
        if prediction is None:
            return GO
        n_runs = self.min_repeats + (1 if cell.task == PP else 0)  # the warm-up of pp is a whole prompt
        needed_s = cell.n_tokens / prediction.high_tok_per_s * n_runs
        evidence = {"needed_s": needed_s, "remaining_s": view.remaining_s, "usd_per_hour": view.plan.price_usd_per_hour}
        return Verdict(needed_s <= view.remaining_s, view.end_reason, evidence)

    def load_limit_s(self, view: RunView, model: str) -> float:
        return view.model(model).planned_bytes / self.load_floor_bytes_per_s + self.load_grace_s

    def _repeat_limit_s(self, view: RunView, cell: Cell) -> float:
        return cell.n_tokens / view.step(cell).min_tok_per_s * self.hopeless_slack

    def judge_running(self, view: RunView, bench: BenchView) -> Verdict:
        cell = bench.current
        if cell is None:
            if bench.loaded_s is not None:
                return GO  # between two cells
            elapsed_s, limit_s = view.now_s - bench.started_s, self.load_limit_s(view, bench.model)
            return Verdict(elapsed_s <= limit_s, Reason.LOAD_TIMEOUT, {"load_s": elapsed_s, "limit_s": limit_s})
        if bench.samples_s:
            verdict = self._judge_samples(view, bench, cell)
            if not verdict.go:
                return verdict
        since = bench.repeat_since_s if bench.repeat_since_s is not None else bench.warming_since_s
        elapsed_s = view.now_s - (since if since is not None else view.now_s)
        limit_s = self._repeat_limit_s(view, cell)
        evidence = {"elapsed_s": elapsed_s, "limit_s": limit_s, "min_tok_per_s": view.step(cell).min_tok_per_s}
        return Verdict(elapsed_s <= limit_s, Reason.MEASURED_TOO_SLOW, evidence)

    def _judge_samples(self, view: RunView, bench: BenchView, cell: Cell) -> Verdict:
        gate = view.step(cell).min_tok_per_s
        best = cell.n_tokens / min(bench.samples_s)
        if best * self.gate_margin < gate:
            return Verdict(False, Reason.MEASURED_TOO_SLOW, {"best_tok_per_s": best, "min_tok_per_s": gate})
        k = len(bench.samples_s)
        if k < self.min_repeats or k >= bench.n_repeats:
            return GO
        width = half_width_ratio(bench.samples_s)
        saved_s = (bench.n_repeats - k) * median(bench.samples_s)
        # Stopping costs a reload when cells remain, so it must save more than that.
        last = cell == bench.cells[-1]
        reload_s = 0.2 if last else 0.5 + view.load_s.get(bench.model, 1.0)
        evidence = {
            "ci_half_width_ratio": width,
            "limit_ratio": self.ci_ratio,
            "saved_s": saved_s,
            "reload_s": reload_s,
        }
        return Verdict(not (width <= self.ci_ratio and saved_s > reload_s), Reason.OK, evidence)

    def next_check_s(self, view: RunView, bench: BenchView) -> float:
        if bench.current is None:
            if bench.loaded_s is not None:
                return float("inf")
            return bench.started_s + self.load_limit_s(view, bench.model) + 0.001
        since = bench.repeat_since_s if bench.repeat_since_s is not None else bench.warming_since_s
        return (since if since is not None else view.now_s) + self._repeat_limit_s(view, bench.current) + 0.001

    def judge_download(self, view: RunView, download: DownloadView, waiting_s: float) -> Verdict:
        remaining = download.bytes_total - download.bytes_done
        evidence: dict[str, float] = {
            "remaining_bytes": remaining,
            "active_s": download.active_s,
            "waiting_s": waiting_s,
        }
        if download.active_s < self.download_judge_s or remaining <= 0:
            return Verdict(True, evidence=evidence)
        optimistic = max(download.mean_bytes_per_s, download.recent_bytes_per_s) * self.download_optimism
        eta_s = remaining / optimistic if optimistic > 0 else float("inf")
        limit_s = min(self.download_wait_s, view.remaining_s)
        evidence.update(optimistic_bytes_per_s=optimistic, eta_s=min(eta_s, 1e9), limit_s=limit_s)
        reason = Reason.DOWNLOAD_TOO_SLOW if self.download_wait_s <= view.remaining_s else view.end_reason
        return Verdict(eta_s <= limit_s, reason, evidence)

    def next_download_check_s(self, view: RunView, download: DownloadView, waiting_s: float) -> float:
        return view.now_s + self.download_check_s

    def may_run_ahead(self, view: RunView, waiting_bytes: int, next_bytes: int) -> bool:
        """Keep what waits for its turn in the page cache: a model read again from disk looks like a slow server."""
        return (
            waiting_bytes == 0
            or waiting_bytes + next_bytes <= view.memory_available_bytes * self.run_ahead_memory_ratio
        )

    def pauses_downloads(self, view: RunView, cell: Cell) -> bool:
        guard = view.plan.guard
        threads = view.plan.n_threads or view.n_cpus
        return guard == "pause" or (guard == "auto" and threads >= view.n_cpus)

    def after_cell(self, view: RunView, cell: Cell, process_s: float) -> Sequence[tuple[Cell, Reason]]:
        return ()
