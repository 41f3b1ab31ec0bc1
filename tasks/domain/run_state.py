"""What one server run has come to: open cells, results, models and the record of decisions.

The conductor and its parts change it only through the methods here, so that a cell ends once and every end is
recorded.
"""

from __future__ import annotations

from typing import Any, Sequence

from tasks.domain import actions as act
from tasks.domain.cells import Cell, CellResult, Reason
from tasks.domain.model_state import ModelState, Stage
from tasks.domain.offload_state import Offloads
from tasks.domain.policy import Policy, RunView, Verdict
from tasks.domain.run_plan import RunPlan

DEFAULT_BUILD = "default"
# The run ends this long before its money or deadline does, so that the last action is over in time.
END_GRACE_S = 1.0
FEWEST_REPEATS = 3


class RunState:
    """The run as it stands; `view` is the part of it that policies see."""

    def __init__(self, plan: RunPlan, policy: Policy) -> None:
        self.plan = plan
        self.policy = policy
        self.view = RunView(plan=plan)
        self.models = [ModelState(m) for m in sorted(plan.models, key=lambda m: m.planned_bytes)]
        self.builds = list(plan.builds) or [DEFAULT_BUILD]
        self.proven_builds: set[str] = set()
        self.n_threads = 0
        self.offloads = Offloads(frozenset(plan.gpu_builds))
        self.order = {c: i for i, c in enumerate(self.view.cells)}
        self._by_name = {m.spec.name: m for m in self.models}
        self._open: dict[str, dict[Cell, None]] = {m.spec.name: {} for m in self.models}
        for cell in self.order:
            self._open[cell.model][cell] = None
        self._decisions: list[act.Decision] = []
        money_s = plan.billing.lifetime_for_s(plan.max_usd) - plan.billed_before_s
        self.view.end_reason = Reason.MONEY if money_s < plan.deadline_s else Reason.DEADLINE
        self.view.end_s = min(money_s, plan.deadline_s) - plan.teardown_reserve_s - END_GRACE_S
        for cell, samples in plan.measured:
            if cell in self.order:
                self.resolve(0.0, cell, Reason.OK, "measured by an interrupted run of this sweep", tuple(samples))

    def model(self, name: str) -> ModelState:
        return self._by_name[name]

    def pending(self, model: str) -> list[Cell]:
        """Cells of a model without a result, in ladder order."""
        return list(self._open[model])

    def has_pending(self, model: str) -> bool:
        return bool(self._open[model])

    def resolve(self, t_s: float, cell: Cell, reason: Reason, detail: str, samples: Sequence[float] = ()) -> None:
        """End a cell; a cell that has ended keeps its first end."""
        if cell in self.view.results:
            return
        if reason is Reason.OK and len(samples) < min(FEWEST_REPEATS, self.policy.n_repeats):
            reason = Reason.FEWER_REPEATS
        self.view.add_result(CellResult(cell, reason, detail, tuple(samples)))
        del self._open[cell.model][cell]
        self.decide(t_s, "resolve", str(cell), reason.value, {"detail": detail, "n_samples": len(samples)})

    def close(self, t_s: float, model: ModelState, reason: Reason, detail: str) -> None:
        """End a model and every open cell of it for one reason."""
        model.stage = Stage.CLOSED
        for cell in self.pending(model.spec.name):
            self.resolve(t_s, cell, reason, detail)

    def close_judged(self, model: ModelState, verdict: Verdict) -> None:
        """End a model that is not worth its download; each cell gets the reason that holds for itself."""
        for cell in self.pending(model.spec.name):
            own = self.policy.judge_cell(self.view, cell)
            chosen = verdict if own.go else own
            self.resolve(self.view.now_s, cell, chosen.reason, detail_of(chosen))
        model.stage = Stage.CLOSED

    def cascade(self, t_s: float, cell: Cell, process_s: float) -> None:
        """End what the policy no longer wants now that `cell` has ended."""
        for other, reason in self.policy.after_cell(self.view, cell, process_s):
            self.resolve(t_s, other, reason, f"because of {cell}")

    def longest(self, model: str, *, shortest: bool = False) -> int:
        """Tokens of the model's longest cell, or of its shortest."""
        lengths = [cell.n_tokens for cell in self.order if cell.model == model]
        return min(lengths) if shortest else max(lengths)

    def layers_to_offload(self, t_s: float, model: str) -> int | None:
        """For the next process of the model: None where the build in use has no GPU. The first answer is recorded."""
        if not self.offloads.on_gpu(self.builds[0]):
            return None
        search, new = self.offloads.search(model, self.view.headers.get(model), self.longest(model))
        if new:
            reason = "ok" if search.first.whole else "partial"
            self.decide(t_s, "offload", model, reason, search.first.evidence())
        return search.ngl

    def record(self, cell: Cell, verdict: Verdict) -> None:
        action = "run_cell" if verdict.go else "skip_cell"
        self.decide(self.view.now_s, action, str(cell), verdict.reason.value, verdict.evidence)

    def decide(self, t_s: float, action: str, subject: str, reason: str, evidence: dict[str, Any]) -> None:
        self._decisions.append(act.Decision(t_s, action, subject, reason, dict(evidence)))

    def drain_decisions(self) -> list[act.Decision]:
        """Decisions since the last call."""
        out, self._decisions = self._decisions, []
        return out


def detail_of(verdict: Verdict) -> str:
    """The evidence of a verdict for people."""
    return ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in verdict.evidence.items())
