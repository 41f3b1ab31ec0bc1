"""How fast does the conductor decide? It runs beside llama-bench, and replay runs it over thousands of runs."""

from __future__ import annotations

import time

from tasks.domain.classic import CLASSIC_MIN_TOK_PER_S
from tasks.domain.conductor import Conductor
from tasks.domain.policies import policy_for
from tasks.domain.run_plan import LadderStep
from tests.benchmarks.result import Result, Table
from tests.benchmarks.spread import spread
from tests.benchmarks.workbench import Workbench
from tests.machine import Driver, Machine
from tests.plans import make_plan, models_of

POLICIES = ("dynamic", "classic")
LADDER = tuple(
    LadderStep(task, n, least) for task, by_length in CLASSIC_MIN_TOK_PER_S.items() for n, least in by_length.items()
)


def run(bench: Workbench) -> Result:
    result = Result("conductor", {"models": 3, "cells": 3 * len(LADDER)})
    seen: dict[str, list[tuple[int, int, float]]] = {policy: [] for policy in POLICIES}
    began = time.monotonic()
    while time.monotonic() - began < bench.seconds:
        for policy in POLICIES:
            seen[policy].append(_one_run(policy))
    table = Table(
        "one server run on a virtual clock, the machine's own part included",
        ["policy", "decisions", "events", "ms for a run", "decisions/s", "us for an event"],
        [],
    )
    for policy, runs in seen.items():
        n_decisions, n_events, _ = runs[0]
        took = spread([took_s for *_, took_s in runs])
        table.rows.append(
            [
                policy,
                str(n_decisions),
                str(n_events),
                f"{took.median * 1e3:.1f} [{took.low * 1e3:.1f} to {took.high * 1e3:.1f}]",
                f"{n_decisions / took.median:,.0f}",
                f"{took.median / n_events * 1e6:.0f}",
            ]
        )
        result.raw[policy] = {"n_decisions": n_decisions, "n_events": n_events, "took_s": [t for *_, t in runs]}
        result.findings.append(f"{policy}: {n_decisions / took.median:,.0f} decisions/s")
    result.tables.append(table)
    return result


class _Counting(Conductor):
    """Counts the events that it takes in."""

    n_events = 0

    def on(self, event: object) -> None:
        self.n_events += 1
        super().on(event)  # type: ignore[arg-type]


def _one_run(policy: str) -> tuple[int, int, float]:
    """Decisions, events and seconds of one run in which everything is measured."""
    plan = make_plan(policy=policy, ladder=LADDER)
    driver = Driver(plan, policy_for(policy, {}), Machine(speed=lambda cell: 5000.0, headers=models_of(plan)))
    conductor = driver.conductor = _Counting(plan, driver.conductor.policy)
    began = time.perf_counter()
    trace = driver.run()
    return len(trace.decisions), conductor.n_events, time.perf_counter() - began
