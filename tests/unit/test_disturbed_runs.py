"""How long the first run of a cell is watched."""

from __future__ import annotations

import pytest

from tasks.domain.cells import Cell, CellResult, Reason
from tasks.domain.dynamic import DynamicPolicy
from tasks.domain.policy import BenchView, DownloadView, RunView
from tasks.domain.predict import Prior
from tests.plans import make_plan

POLICY = DynamicPolicy(prior=Prior())


def goes_on(task: str, price: float, *, all_here: bool = False, run_ratio: float = 1.4) -> bool:
    """Whether the first run may go on when it has taken so many times its share of the budget, although the shorter
    cell was just fast enough."""
    view = RunView(make_plan(price=price))
    shorter, cell = Cell("small", task, 16), Cell("small", task, 128)
    gate_tok_per_s = POLICY.gate_tok_per_s(view, cell)
    view.add_result(CellResult(shorter, Reason.OK, "", (16 / gate_tok_per_s,) * 5))
    if all_here:
        view.finished_downloads += [DownloadView(m.name, m.bytes, m.bytes) for m in view.plan.models]
    bench = BenchView("small", (cell,), 0.0, 5, cell, 0.0, 0.0, 0.0)
    view.now_s = run_ratio * cell.n_tokens / gate_tok_per_s
    return POLICY.judge_running(view, bench).go


def test_a_text_beside_downloads_is_watched_longer_where_that_is_cheap() -> None:
    assert goes_on("tg", 0.2)
    assert not goes_on("tg", 0.2, run_ratio=1.7)


@pytest.mark.parametrize(("price", "all_here"), [(20.0, False), (0.2, True)])
def test_nothing_else_is(price: float, all_here: bool) -> None:
    assert not goes_on("tg", price, all_here=all_here)
    assert goes_on("tg", price, all_here=all_here, run_ratio=1.05)
