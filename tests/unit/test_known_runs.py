"""What an earlier run teaches the next one, over the lake: the hopeless is not tried twice, the possible not lost."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.domain import actions as act
from tasks.domain import events as ev
from tasks.domain.cells import Cell, Outcome, Reason
from tasks.domain.classic import classic_ladder
from tasks.domain.dynamic import DynamicPolicy
from tasks.domain.evidence_chain import chain
from tasks.domain.known import KnownCell, known_of
from tasks.domain.run_plan import RunPlan
from tasks.engine import engine_for
from tasks.lake import RunContext, land, open_lake, rows_from_events
from tasks.lake.earlier import known_cells
from tasks.planning import prepare, run_plan
from tasks.settings import Settings
from tasks.wiring import Services
from tests.machine import Driver, Machine, Trace
from tests.plans import make_plan, models_of
from tests.unit.lake_runs import HARDWARE, START_UNIX_S, EventLog, finished_run, lost_run
from tests.unit.test_lake_questions import cells, hardware, run_rows
from tests.unit.test_sim_planning import preset
from tests.unit.test_sim_server import play

SWAPS = {"small": 3000.0, "middle": 300.0, "large": 0.15}
"""A server on which the large model is far slower than the others foretell."""


class Logged:
    """A conductor whose events are written down as an agent does."""

    def __init__(self, conductor: Any, log: EventLog) -> None:
        self._conductor, self._log = conductor, log

    def on(self, event: ev.Event) -> None:
        if isinstance(event, ev.Probed):
            event = replace(event, hardware=HARDWARE)
        self._log.event(event)
        self._conductor.on(event)

    def drain_decisions(self) -> list[act.Decision]:
        decisions: list[act.Decision] = self._conductor.drain_decisions()
        for decision in decisions:
            self._log.decision(decision)
        return decisions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conductor, name)


def run(plan: RunPlan, machine: Machine, log: EventLog | None = None) -> Trace:
    driver = Driver(plan, DynamicPolicy(), machine)  # type: ignore[arg-type]
    if log is not None:
        driver.conductor = Logged(driver.conductor, log)  # type: ignore[assignment]
    return driver.run()


def run_and_land(root: Path, plan: RunPlan, machine: Machine) -> Trace:
    log = EventLog()
    log.add("AgentStarted", 0.0, agent_sha256="cc" * 32, python="3.11.2", runtime={})
    trace = run(plan, machine, log)
    log.finished(trace.end_s, "complete", [(r.cell, r.reason.value, r.samples_s) for r in trace.results])
    context = RunContext(
        vendor="aws", started_unix_s=START_UNIX_S, ended_unix_s=START_UNIX_S + trace.end_s,
        price_usd_per_hour=Decimal(str(plan.price_usd_per_hour)),
    )  # fmt: skip
    land(root, plan.server_run_id, rows_from_events(plan, log.lines, context))
    return trace


def downloads(trace: Trace) -> list[str]:
    return [a.model for _, a in trace.actions if isinstance(a, act.StartDownload)]


@pytest.mark.parametrize("server", ["server-1", "its-twin"])
def test_what_the_first_run_proved_hopeless_the_second_does_not_download(tmp_path: Path, server: str) -> None:
    plan = make_plan(price=30.0, max_usd=1000.0)
    machine = Machine(lambda c: SWAPS[c.model], headers=models_of(plan))
    first = run_and_land(tmp_path, plan, machine)
    assert downloads(first) == ["small", "middle", "large"]
    assert first.by_cell()[Cell("large", "pp", 16)].reason is Reason.MEASURED_TOO_SLOW
    if server != plan.server:  # a run that measures nothing tells which CPU this server type has
        carried = tuple((c, (0.1, 0.1, 0.1)) for c in plan.cells() if c.model == "small")
        nothing = replace(plan, server=server, server_run_id="run-0", models=plan.models[:1], measured=carried)
        run_and_land(tmp_path, nothing, machine)

    with open_lake(tmp_path) as lake:
        known = known_cells(lake, [("aws", server)])["aws", server]
    of_large = {k.cell: k for k in known}[Cell("large", "pp", 16)]
    assert of_large.at_most and SWAPS["large"] < of_large.tok_per_s < 1.0
    assert ("(twin)" in of_large.source) == (server != plan.server)

    again = replace(plan, server=server, sweep_id="next-sweep", server_run_id="run-2", known=known)
    second = run(RunPlan.from_json(again.to_json()), machine)
    assert downloads(second) == ["small", "middle"]
    assert second.end_s < first.end_s - 60.0
    measured = [{r.cell for r in t.results if r.outcome is Outcome.MEASURED} for t in (first, second)]
    assert measured[0] == measured[1]
    result = second.by_cell()[Cell("large", "pp", 16)]
    assert result.reason is Reason.PREDICTED_TOO_SLOW and "aws/server-1" in result.detail
    told = [vars(d) for d in second.decisions]
    evidence = [d["evidence"] for _, d in chain(told, "large")]
    assert any("aws/server-1" in e.get("known_from", "") and "test-sweep" in e["known_from"] for e in evidence)


def test_the_lake_tells_of_the_server_itself_first_and_then_of_its_twin(tmp_path: Path) -> None:
    for landed in (finished_run(), lost_run()):  # cx22 and cx32, on the same CPU
        land(tmp_path, landed[0].server_run_id, rows_from_events(*landed))
    with open_lake(tmp_path) as lake:
        known = known_cells(lake, [("local", "cx22"), ("local", "cx32"), ("local", "cx99")])
        assert known_cells(lake, [("local", "cx22")], simulated=True) == {}
    own = {str(k.cell): k for k in known["local", "cx22"]}
    other = {str(k.cell): k for k in known["local", "cx32"]}
    assert own["small pp16"].tok_per_s == 8.0 and own["large pp16"].tok_per_s == 4.0
    assert "local/cx22 in s1 on 2026-09" in own["small pp16"].source and "twin" not in own["small pp16"].source
    assert other["small pp16"].tok_per_s == 16.0, "its own run stands before its twin's"
    assert "local/cx22 (twin)" in other["small tg16"].source
    assert ("local", "cx99") not in known, "nothing is known of its CPU"


def test_planning_tells_the_agent_what_the_lake_knows(tmp_path: Path) -> None:
    services = Services(Settings(home=tmp_path / "home", cache=tmp_path / "cache"))
    wanted, engine = preset(), engine_for("simulated", tmp_path)
    prepared = prepare(wanted, services, engine)
    (server,) = prepared.to_run()
    plan = run_plan(prepared, server, "run-1", {})
    assert plan.known == ()
    lines = play(plan=plan)
    context = RunContext(
        vendor="sim", started_unix_s=lines[0]["unix_s"], ended_unix_s=lines[-1]["unix_s"], engine="simulated"
    )
    land(services.settings.lake_root, "run-1", rows_from_events(plan, lines, context))
    again = prepare(wanted, services, engine, label="again")
    known = run_plan(again, again.to_run()[0], "run-2", {}).known
    assert {k.cell for k in known} <= set(plan.cells()) and len(known) >= 2
    assert all("sim/c3a-8 in mine-" in k.source for k in known)


def test_an_upper_end_is_what_the_unfinished_run_had_taken() -> None:
    plan = make_plan(price=30.0, max_usd=1000.0)
    trace = run(plan, Machine(lambda c: SWAPS[c.model], headers=models_of(plan)))
    known = {k.cell: k for k in known_of(trace.results, trace.decisions, "x")}
    stopped = known[Cell("large", "pp", 16)]
    assert stopped.at_most and stopped.spread is None
    (evidence,) = [d.evidence for d in trace.decisions if d.action == "abort_bench" and d.subject == "large pp16"]
    assert stopped.tok_per_s == pytest.approx(16 / evidence["run_s"])
    assert not known[Cell("small", "pp", 16)].at_most


DRAWN = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def machine_of(plan: RunPlan, pp: float, tg: float, fall: float) -> Machine:
    rank = {"small": 1.0, "middle": 8.0, "large": 30.0}

    def speed(cell: Cell) -> float:
        return float((pp if cell.task == "pp" else tg) / rank[cell.model] * (16 / cell.n_tokens) ** fall)

    return Machine(speed, headers=models_of(plan), jitter=lambda c, k: 1.0 + 0.01 * (k % 2))


@DRAWN
@given(st.floats(2.0, 1e5), st.floats(1.0, 1e4), st.floats(0.0, 0.3), st.floats(1.0, 1.3), st.sampled_from([0.05, 1.0]))
def test_a_server_that_was_slower_before_loses_nothing_by_it(
    pp: float, tg: float, fall: float, slower: float, price: float
) -> None:
    """Two runs of a server type lie 4 % apart in the median and 30 % in one of ten."""
    plan = make_plan(ladder=classic_ladder(), deadline_s=1e7, max_usd=1e6, price=price)
    before = run(plan, machine_of(plan, pp / slower, tg / slower, fall))
    untaught = run(plan, machine_of(plan, pp, tg, fall))
    taught = run(
        replace(plan, known=known_of(before.results, before.decisions, "before")), machine_of(plan, pp, tg, fall)
    )
    measured = [{r.cell for r in t.results if r.outcome is Outcome.MEASURED} for t in (untaught, taught)]
    assert measured[0] <= measured[1]


def test_a_plan_carries_what_is_known_and_a_plan_of_before_has_nothing() -> None:
    known = (
        KnownCell(Cell("small", "pp", 16), 12.0, 0.1, False, "a"),
        KnownCell(Cell("small", "tg", 16), 3.0, None, True),
    )
    plan = replace(make_plan(), known=known)
    assert RunPlan.from_json(plan.to_json()) == plan


def gpu_row(**values: Any) -> Any:
    return hardware(n_gpus=1, gpu_model="NVIDIA L4", vram_total_bytes=24 * 2**30, **values)


@pytest.mark.parametrize(
    "changes",
    [
        (gpu_row(), cells(backend="CPU", cpu_fallback="fabric_manager")),
        (gpu_row(), cells(backend="CUDA", ngl=0, source="somebody")),
        (hardware(n_gpus=0, n_gpus_on_bus=1, gpu_fault="no_gpu_driver"), cells(cpu_fallback="no_gpu_driver")),
    ],
    ids=["fell back", "published with no layer on the GPU", "GPU not listed"],
)
def test_what_a_gpu_server_measured_on_its_cpus_foretells_nothing_of_its_gpu(tmp_path: Path, changes: Any) -> None:
    """Else one run with a broken driver would keep the next from trying what the GPU can do. The other server has the
    same CPU and no GPU: it is no twin either."""
    for rows in (run_rows("a", "with-gpu", *changes), run_rows("b", "without")):
        land(tmp_path, rows["server_runs"][0]["server_run_id"], rows)
    with open_lake(tmp_path) as lake:
        known = known_cells(lake, [("local", "with-gpu"), ("local", "without")])
    assert set(known) == {("local", "without")}
    assert not any("with-gpu" in k.source for k in known["local", "without"])


def test_a_model_without_room_on_the_gpu_is_known_by_its_cpu(tmp_path: Path) -> None:
    rows = run_rows("a", "with-gpu", hardware(n_gpus=1, vram_total_bytes=50 * 2**20), cells(backend="CUDA", ngl=0))
    land(tmp_path, "a", rows)
    with open_lake(tmp_path) as lake:
        assert known_cells(lake, [("local", "with-gpu")])
