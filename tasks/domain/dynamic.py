"""Policy `dynamic`, the default: skip what cannot pass its gate, stop what turns out not to, stop repeating when sure.

A cell's gate is a budget of seconds: what five repeats (and the warm-up of a prompt, which is as long) take at the
ladder's least speed, with the predecessor's allowance for the load. What differs from `classic`, each against a loss
that the traces of the predecessor show: a cell whose optimistic prediction misses its budget is not started; one that
falls out of its budget is stopped in the repeat that shows it and keeps its samples; repeats stop once the interval is
narrow; loading is timed apart from speed; a model that cannot fit is not downloaded; money is a limit like time.
Whether something is worth its seconds is judged by what they add to the bill: within an hour that is paid, nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Sequence

from tasks.domain.cells import PP, Cell, Reason
from tasks.domain.classic import process_limit_s
from tasks.domain.memory import disk_needed_bytes
from tasks.domain.policy import GO, TOO_SLOW, BenchView, DownloadView, RunView, Verdict
from tasks.domain.predict import QUANTILES, Prior, predict
from tasks.domain.prior_data import PRIOR
from tasks.domain.run_plan import ModelSpec
from tasks.domain.sequential import pooled_half_width_ratio
from tasks.domain.stats import median

GATE_REPEATS = 5
"""Repeats that a gate reckons with, whatever number a policy asks for."""

DISTURBED_RATIO = 0.5
"""How much shorter than runs beside a download the later ones may turn out."""

NOW = float("-inf")
REST = Cell("", "", 0)
"""Where the memo keeps how long the rest of the run may take."""

NOTHING_USD = 1e-6
LINK_BYTES_PER_S = 100e6
"""Of a server that has downloaded nothing yet."""


@dataclass(frozen=True)
class DynamicPolicy:
    """Thresholds. `*_ratio` are shares, `*_slack` factors on the time that the gate allows.

    ci_ratio: half-width of the 95 % interval of the mean, relative to it, at which repeats stop, if the repeats that
        this saves cost repeats_usd. It is ci_cheap times as much at least and ci_dear times as much at most for
        repeats that cost less or more, by the fourth root of the price.
    noise_df: how many degrees of freedom the noise of the server's other cells weighs in that interval.
    point_usd: what a measured cell is worth; a cell is skipped when its chance of passing, times this, is below the
        price of its first run. optimism, least_optimism: the quantiles of a prediction's residuals
        (predict.QUANTILES) between which that chance is looked for.
    hopeless_slack: of the first run of a cell of which nothing can be predicted; least_slack: of the first run
        of any; disturbed_slack: of a text's, where it costs disturbed_usd at most and downloads are still to come.
        budget_slack: of the whole cell.
    hope: share of the predicted speed that the runs to come are trusted with, against what the first ones show, until
        patient_samples are there; first_run_ratio: how much shorter than those the later ones may turn out.
    load_floor_bytes_per_s: a load slower than this is given up, unless it is within load_slack times the budget of
        the cell that waits for it.
    least_saving_s: cells that cost little take all their repeats; they are what later predictions rest on.
    download_wait_s: the longest that a server is let stand idle for what is left of a download; one that comes
        beside a benchmark costs nothing and is let come. download_idle_s: for one model in all, whatever is foretold.
    download_judge_s: seconds of active download before its speed is judged (early speed forecasts badly).
    download_optimism: factor on its recent speed until download_sure_s, then less and less.
    """

    name: str = "dynamic"
    n_repeats: int = 5
    min_repeats: int = 3
    reads_headers: bool = True
    one_cell_per_process: bool = False
    ci_ratio: float = 0.105
    ci_cheap: float = 0.7
    ci_dear: float = 1.5
    repeats_usd: float = 0.02
    noise_df: float = 8.0
    least_saving_s: float = 3.0
    point_usd: float = 12.0
    optimism: float = 0.998
    least_optimism: float = 0.95
    hopeless_slack: float = 1.25
    least_slack: float = 1.2
    disturbed_slack: float = 1.6
    disturbed_usd: float = 0.006
    budget_slack: float = 1.02
    patient_samples: int = 3
    first_run_ratio: float = 0.92
    hope: float = 1.0
    load_floor_bytes_per_s: float = 100e6
    load_slack: float = 1.5
    download_wait_s: float = 900.0
    download_idle_s: float = 2700.0
    download_judge_s: float = 90.0
    download_optimism: float = 1.5
    download_sure_s: float = 600.0
    download_check_s: float = 5.0
    memory_ratio: float = 1.1
    run_ahead_memory_ratio: float = 0.9
    prior: Prior = field(default=PRIOR)

    # ---- before ---------------------------------------------------------------------------------------

    def judge_model(self, view: RunView, model: ModelSpec) -> Verdict:
        needed = disk_needed_bytes(model.planned_bytes)
        if needed > view.disk_free_bytes:
            return Verdict(False, Reason.DISK, {"disk_needed_bytes": needed, "disk_free_bytes": view.disk_free_bytes})
        verdict = GO
        cells = [c for c in view.cells if c.model == model.name and c not in view.results]
        download_usd = self._price_usd(view, model.planned_bytes / self._link_bytes_per_s(view)) if cells else 0.0
        too_slow: set[str] = set()
        for cell in sorted(cells, key=lambda c: c.n_tokens):
            if cell.task in too_slow:  # what a shorter cell misses a longer one does
                continue
            # All cells share the price of the download.
            own = self._judge_cell(view, cell, self._optimism(view, cell, download_usd / len(cells)))
            if own.go:
                return GO
            if own.reason in TOO_SLOW:
                too_slow.add(cell.task)
            verdict = own if verdict.go else verdict
        return verdict

    def judge_cell(self, view: RunView, cell: Cell) -> Verdict:
        return self._judge_cell(view, cell, self._optimism(view, cell))

    def _judge_cell(self, view: RunView, cell: Cell, optimism: float) -> Verdict:
        evidence: dict[str, Any] = {}
        for gate in (self._memory_gate, self._inherited_gate, partial(self._speed_gate, optimism=optimism)):
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
        if view.has_gpu:
            return GO
        needed = view.memory_needed_bytes(cell)
        if needed is None:
            return GO
        available = int(view.memory_available_bytes * self.memory_ratio)
        return Verdict(needed <= available, Reason.MEMORY, {"needed_bytes": needed, "available_bytes": available})

    def _inherited_gate(self, view: RunView, cell: Cell) -> Verdict:
        gate = self.gate_tok_per_s(view, cell)
        for shorter in view.shorter(cell):
            if view.too_slow(shorter):
                return Verdict(False, Reason.SHORTER_CELL_TOO_SLOW, {"because_of": str(shorter)})
        for model in view.smaller_models(cell.model):
            same = Cell(model.name, cell.task, cell.n_tokens)
            if view.too_slow(same) and self.gate_tok_per_s(view, same) <= gate:
                return Verdict(False, Reason.SMALLER_MODEL_TOO_SLOW, {"because_of": str(same)})
        return GO

    def _speed_gate(self, view: RunView, cell: Cell, optimism: float) -> Verdict:
        """Skip what even an optimist sees miss its gate, or not finished before money or deadline end the run."""
        gate = self.gate_tok_per_s(view, cell)
        prediction = predict(view, cell, self.prior, optimism)
        if prediction is None:
            return Verdict(True, evidence={"min_tok_per_s": gate, "predicted": "nothing comparable measured yet"})
        evidence = {**prediction.evidence(), "min_tok_per_s": gate}
        if prediction.optimistic_tok_per_s < gate:
            return Verdict(False, Reason.PREDICTED_TOO_SLOW, evidence)
        n_runs = self.min_repeats + (1 if cell.task == PP else 0)  # the warm-up of pp is a whole prompt
        needed_s = cell.n_tokens / prediction.optimistic_tok_per_s * n_runs
        evidence.update(needed_s=needed_s, remaining_s=view.remaining_s, usd_per_hour=view.plan.price_usd_per_hour)
        return Verdict(needed_s <= view.remaining_s, view.end_reason, evidence)

    def _optimism(self, view: RunView, cell: Cell, before_usd: float = 0.0) -> float:
        """The quantile that must miss: a cell is not worth its first run when chance times worth is below the price,
        with its share of what has to be spent before."""
        look_usd = before_usd + self._price_usd(view, self.budget_s(view, cell) / self._n_runs(cell))
        wanted = 1.0 - look_usd / self.point_usd
        listed = (q for q in QUANTILES if max(wanted, self.least_optimism) <= q <= self.optimism)
        return min(listed, default=self.optimism)

    def _price_usd(self, view: RunView, seconds: float) -> float:
        """What so many seconds more are expected to cost, with what the vendor's increments have paid for already."""
        if view.billing.by_the_second:
            return seconds / 3600 * view.plan.price_usd_per_hour
        return view.billing.expected_usd(view.lifetime_s, seconds, self._rest_s(view))

    def _rest_s(self, view: RunView) -> float:
        """The longest that the open cells may take, with the downloads of their models."""
        if REST not in view.memo:
            rest_s = {c.model: 0.0 for c in view.cells}
            for cell in view.cells:
                if cell not in view.results:
                    rest_s[cell.model] += self._likely_s(view, cell)
            here, link = {d.model for d in view.finished_downloads}, self._link_bytes_per_s(view)
            coming = [view.model(m).planned_bytes / link for m, s in rest_s.items() if s > 0 and m not in here]
            view.memo[REST] = sum(rest_s.values()) + sum(coming)
        rest: float = view.memo[REST]
        return rest

    def _link_bytes_per_s(self, view: RunView) -> float:
        largest = max(view.finished_downloads, key=lambda d: d.bytes_total, default=None)
        return (largest.mean_bytes_per_s if largest else 0.0) or LINK_BYTES_PER_S

    def _likely_s(self, view: RunView, cell: Cell) -> float:
        """Seconds for an open cell; 0 for one that will be skipped as far as that is known."""
        if not self._memory_gate(view, cell).go or not self._inherited_gate(view, cell).go:
            return 0.0
        budget_s, prediction = self.budget_s(view, cell), predict(view, cell, self.prior)
        if prediction is None:
            return budget_s
        if prediction.optimistic_tok_per_s < self.gate_tok_per_s(view, cell):
            return 0.0
        return min(budget_s, cell.n_tokens / prediction.tok_per_s * self._n_runs(cell))

    def _n_runs(self, cell: Cell) -> int:
        return GATE_REPEATS + (1 if cell.task == PP else 0)

    def budget_s(self, view: RunView, cell: Cell) -> float:
        """Seconds for the whole cell."""
        return process_limit_s(view.model(cell.model).planned_bytes, cell.n_tokens, view.step(cell).min_tok_per_s)

    def gate_tok_per_s(self, view: RunView, cell: Cell) -> float:
        """The least speed that stays within the budget."""
        return cell.n_tokens * self._n_runs(cell) / self.budget_s(view, cell)

    def load_limit_s(self, view: RunView, bench: BenchView) -> float:
        """Seconds for the load: more than the budget of the cell that waits for it, so that no cell is lost to it."""
        floor_s = view.model(bench.model).planned_bytes / self.load_floor_bytes_per_s
        return max(floor_s, self.budget_s(view, bench.cells[0]) * self.load_slack)

    # ---- during ---------------------------------------------------------------------------------------

    def _best_case_s(self, view: RunView, cell: Cell) -> float:
        """Seconds of one run of the cell as a hopeful forecast has it; 0 where there is none."""
        if cell not in view.memo:
            prediction = predict(view, cell, self.prior)
            view.memo[cell] = 0.0 if prediction is None else cell.n_tokens / prediction.tok_per_s
        expected_s: float = view.memo[cell]
        return expected_s / self.hope

    def _stop_at_s(self, view: RunView, bench: BenchView, cell: Cell) -> float:
        """When the cell falls out of its budget even if every run that is left goes well."""
        budget_s, n_runs = self.budget_s(view, cell), self._n_runs(cell)
        warming = bench.repeat_since_s is None
        began_s = bench.warming_since_s if bench.warming_since_s is not None else bench.repeat_since_s
        current_s = bench.warming_since_s if warming else bench.repeat_since_s
        if began_s is None or current_s is None:
            return float("inf")
        k = len(bench.samples_s)
        n_left = GATE_REPEATS if warming else max(0, GATE_REPEATS - k - 1)
        best_s = self._best_case_s(view, cell)
        if k:
            shown_s = min(bench.samples_s)
            if k < self.patient_samples:  # first runs are often the slowest
                shown_s *= DISTURBED_RATIO if self._disturbed(view, cell) else self.first_run_ratio
                best_s = min(best_s, shown_s) if best_s else shown_s
            else:
                best_s = shown_s
        if not best_s:
            return current_s + budget_s / n_runs * self.hopeless_slack
        projected_s = began_s + budget_s * self.budget_slack - n_left * best_s
        if k:
            return projected_s if current_s + best_s <= projected_s else NOW
        slack = self.disturbed_slack if self._disturbed(view, cell) else self.least_slack
        return max(projected_s, current_s + budget_s / n_runs * slack)

    def _disturbed(self, view: RunView, cell: Cell) -> bool:
        """Whether the next models may be coming beside the cell, which slows a text down most (it is bound by memory),
        and it is cheap to see whether later runs are faster."""
        if cell.task == PP or len(view.finished_downloads) >= len(view.plan.models):
            return False
        return self._price_usd(view, self.budget_s(view, cell) / GATE_REPEATS) <= self.disturbed_usd

    def judge_running(self, view: RunView, bench: BenchView) -> Verdict:
        cell = bench.current
        if cell is None:
            if bench.loaded_s is not None:
                return GO  # between two cells
            elapsed_s, limit_s = view.now_s - bench.started_s, self.load_limit_s(view, bench)
            return Verdict(elapsed_s <= limit_s, Reason.LOAD_TIMEOUT, {"load_s": elapsed_s, "limit_s": limit_s})
        stop_at_s = self._stop_at_s(view, bench, cell)
        if view.now_s > stop_at_s:
            began_s = bench.warming_since_s if bench.warming_since_s is not None else view.now_s
            evidence = {
                "elapsed_s": view.now_s - began_s,
                "run_s": self._current_run_s(view, bench),
                "limit_s": stop_at_s - began_s,
                "budget_s": self.budget_s(view, cell),
                "min_tok_per_s": self.gate_tok_per_s(view, cell),
                "n_samples": len(bench.samples_s),
                "best_case_run_s": self._best_case_s(view, cell),
            }
            return Verdict(False, Reason.MEASURED_TOO_SLOW, evidence)
        return self._judge_repeats(view, bench, cell)

    def _current_run_s(self, view: RunView, bench: BenchView) -> float:
        """Seconds of the run under way; of a generated text the warm-up is a single token and no run."""
        since_s = bench.repeat_since_s
        if since_s is None and bench.current is not None and bench.current.task == PP:
            since_s = bench.warming_since_s
        return 0.0 if since_s is None else view.now_s - since_s

    def _judge_repeats(self, view: RunView, bench: BenchView, cell: Cell) -> Verdict:
        """Stop repeating when the mean is known well enough and stopping saves more than loading again costs."""
        k = len(bench.samples_s)
        if k < self.min_repeats or k >= bench.n_repeats:
            return GO
        saved_s = (bench.n_repeats - k) * median(bench.samples_s)
        last = cell == bench.cells[-1]
        reload_s = 0.2 if last else 0.5 + view.load_s.get(bench.model, 1.0)
        if saved_s <= reload_s + self.least_saving_s:
            return GO
        width = pooled_half_width_ratio(bench.samples_s, view.noise, self.noise_df)
        saved_usd = self._price_usd(view, saved_s)
        limit = self.ci_ratio * min(self.ci_dear, max(self.ci_cheap, (saved_usd / self.repeats_usd) ** 0.25))
        evidence = {
            "ci_half_width_ratio": width,
            "limit_ratio": limit,
            "saved_usd": saved_usd,
            "saved_s": saved_s,
            "reload_s": reload_s,
        }
        paid_already = saved_usd < NOTHING_USD and saved_s < view.paid_s
        return Verdict(paid_already or width > limit, Reason.OK, evidence)

    def next_check_s(self, view: RunView, bench: BenchView) -> float:
        if bench.current is not None:
            return self._stop_at_s(view, bench, bench.current) + 0.001
        if bench.loaded_s is not None:
            return float("inf")
        return bench.started_s + self.load_limit_s(view, bench) + 0.001

    # ---- downloads ------------------------------------------------------------------------------------

    def judge_download(self, view: RunView, download: DownloadView, waiting_s: float) -> Verdict:
        remaining = download.bytes_total - download.bytes_done
        evidence: dict[str, float] = {
            "remaining_bytes": remaining,
            "active_s": download.active_s,
            "waiting_s": waiting_s,
        }
        if download.active_s < self.download_judge_s or remaining <= 0:
            return Verdict(True, evidence=evidence)
        # What may still come of it shrinks as more of it has been seen.
        hope = 1.0 + (self.download_optimism - 1.0) * min(1.0, self.download_sure_s / download.active_s)
        optimistic = download.recent_bytes_per_s * hope
        eta_s = remaining / optimistic if optimistic > 0 else float("inf")
        evidence.update(optimistic_bytes_per_s=optimistic, eta_s=min(eta_s, 1e9))
        if eta_s > view.remaining_s:
            evidence["limit_s"] = view.remaining_s
            reason = Reason.DOWNLOAD_TOO_SLOW if self.download_wait_s <= view.remaining_s else view.end_reason
            return Verdict(False, reason, evidence)
        if waiting_s <= 0:
            return Verdict(True, evidence=evidence)
        limit_s = max(min(self.download_wait_s, self.download_idle_s - waiting_s), view.paid_s)
        evidence["limit_s"] = limit_s
        return Verdict(eta_s <= limit_s, Reason.DOWNLOAD_TOO_SLOW, evidence)

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
