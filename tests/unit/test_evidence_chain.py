"""A cell's end leads back to what was measured."""

from __future__ import annotations

from tasks.domain.dynamic import DynamicPolicy
from tasks.domain.evidence_chain import chain
from tests.machine import Driver, Machine
from tests.plans import make_plan, models_of


def decisions_of(speed):
    plan = make_plan()
    trace = Driver(plan, DynamicPolicy(), Machine(speed, headers=models_of(plan))).run()
    return [
        {"subject": d.subject, "action": d.action, "reason": d.reason, "evidence": d.evidence} for d in trace.decisions
    ]


def test_a_skipped_cell_leads_to_the_cell_that_foretold_it_and_to_its_measurement():
    found = chain(decisions_of(lambda c: 6.0 if c.task == "tg" else 9000.0), "small tg512")
    assert found[0][0] == 0 and found[0][1]["subject"] == "small tg512"
    assert any(d["action"] == "skip_cell" for depth, d in found if depth == 0)
    deeper = [d for depth, d in found if depth > 0]
    assert {d["subject"] for d in deeper} & {"small tg16", "small tg128"}
    assert any(d["action"] == "resolve" and d["reason"] == "ok" for d in deeper)


def test_every_subject_is_told_of_once_and_an_unknown_one_has_no_chain():
    decisions = decisions_of(lambda c: 6.0 if c.task == "tg" else 9000.0)
    for subject in {d["subject"] for d in decisions}:
        found = [id(d) for _, d in chain(decisions, subject)]
        assert len(found) == len(set(found))
    assert chain(decisions, "nothing pp1") == []
