"""Is the speed true? llama-bench by hand and the agent's cells, in turns, on the same CPUs with the same build."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

from tasks.domain.cells import PP, TG, Cell
from tasks.domain.run_plan import ModelSpec
from tasks.domain.stats import median
from tasks.models.serve import ModelServer
from tests.benchmarks.result import Result, Table
from tests.benchmarks.spread import speed_ratios, spread
from tests.benchmarks.workbench import CpuSet, Workbench, fixed_plan, ladder, of_kind

MODEL, LENGTHS = "smollm-135m", ((PP, 128), (PP, 256), (TG, 32), (TG, 64))
QUICK_MODEL, QUICK_LENGTHS = "tiny-15m", ((PP, 64), (TG, 16))
N_REPEATS = 2
LEAST_ROUNDS = 3
TARGET = 0.02


@dataclass
class Samples:
    """Seconds of one cell's repeats, one list for each process."""

    processes: list[list[float]] = field(default_factory=list)

    @property
    def medians_s(self) -> list[float]:
        return [median(samples_s) for samples_s in self.processes]

    @property
    def fastest_s(self) -> float:
        """What neighbours disturbed least; they only ever slow things down."""
        return min(min(samples_s) for samples_s in self.processes)


@dataclass
class Seen:
    """What was measured on one CPU set, round by round."""

    bare: dict[Cell, Samples] = field(default_factory=lambda: defaultdict(Samples))
    agent: dict[Cell, Samples] = field(default_factory=lambda: defaultdict(Samples))
    agent_cpu_share: list[float] = field(default_factory=list)


def run(bench: Workbench) -> Result:
    model = bench.model(QUICK_MODEL if bench.quick else MODEL)
    cells = [Cell(model.name, *length) for length in (QUICK_LENGTHS if bench.quick else LENGTHS)]
    seen = {where: Seen() for where in bench.cpu_sets()}
    with ModelServer(bench.models_dir) as files:
        served = replace(model, urls=(files.url(model.file),))
        began, n_rounds = time.monotonic(), 0
        while n_rounds < LEAST_ROUNDS or (time.monotonic() - began) * (n_rounds + 1) / n_rounds < bench.seconds:
            for where, found in seen.items():
                _one_round(bench, served, cells, where, found, bare_first=n_rounds % 2 == 0)
            n_rounds += 1
    return _result(bench, model, cells, seen, n_rounds)


def _one_round(
    bench: Workbench, model: ModelSpec, cells: list[Cell], where: CpuSet, seen: Seen, *, bare_first: bool
) -> None:
    """One process by hand and one by the agent; who begins changes from round to round."""
    bare = bench.bare(model, cells, N_REPEATS, where) if bare_first else None
    events = bench.agent(fixed_plan([model], ladder(*[(c.task, c.n_tokens) for c in cells]), N_REPEATS), where)
    bare = bare or bench.bare(model, cells, N_REPEATS, where)
    for row in of_kind(events, "BenchRow"):
        cell = Cell(**row["cell"])
        seen.agent[cell].processes.append(row["samples_s"])
        seen.bare[cell].processes.append(bare.samples_s[cell])
    seen.agent_cpu_share.append(_agent_cpu_share(events))


def _agent_cpu_share(events: list[dict[str, Any]]) -> float:
    """Processor time of the agent itself, telemetry included, while llama-bench ran."""
    (started,), (exited,) = of_kind(events, "BenchStarted"), of_kind(events, "BenchExited")
    ticks = [e for e in of_kind(events, "Telemetry") if started["t_s"] <= e["t_s"] <= exited["t_s"]]
    if len(ticks) < 2:
        return 0.0
    return float((ticks[-1]["agent_cpu_s"] - ticks[0]["agent_cpu_s"]) / (ticks[-1]["t_s"] - ticks[0]["t_s"]))


def _result(bench: Workbench, model: ModelSpec, cells: list[Cell], seen: dict[CpuSet, Seen], n_rounds: int) -> Result:
    result = Result("speed", {"build": bench.build, "model": model.name, "rounds": n_rounds, "repeats": N_REPEATS})
    where = next(iter(seen))
    argv = [*where.pin(), *bench.command(bench.models_dir / model.file, cells, N_REPEATS, where.n_threads)]
    result.settings["command"] = " ".join(argv).replace(str(bench.cache_dir), "~/.cache/tokensweep")
    by_task = Table("each task", ["task", "agent to hand", "hand to hand", "agent's own CPU share"], [])
    by_cell = Table(
        "each cell",
        ["cell", "by hand, tok/s", "agent, tok/s", "agent to hand", "hand to hand", "fastest to fastest"],
        [],
    )
    for where, found in seen.items():
        for task in (PP, TG):
            mine = [cell for cell in found.bare if cell.task == task]
            ratios = [r for c in mine for r in speed_ratios(found.agent[c].medians_s, found.bare[c].medians_s)]
            control = [r for c in mine for r in _hand_to_hand(found.bare[c])]
            whole = spread(ratios)
            share = f"{median(found.agent_cpu_share):.2%}"
            by_task.rows.append([f"{where.name}: {task}", whole.ratio(), spread(control).ratio(), share])
            verdict = "within" if abs(whole.median - 1) <= TARGET else "NOT within"
            result.findings.append(f"{where.name}, {task}: {whole.ratio()}, {verdict} {TARGET:.0%}")
        by_cell.rows += [_cell_row(where, cell, found) for cell in found.bare]
        result.raw[where.name] = {
            str(cell): {"by_hand_s": found.bare[cell].processes, "agent_s": found.agent[cell].processes}
            for cell in found.bare
        }
    result.tables = [by_task, by_cell]
    return result


def _hand_to_hand(bare: Samples) -> list[float]:
    """How much two processes by hand differ that ran as far apart as a pair: what this machine can tell at all."""
    return speed_ratios(bare.medians_s[1:], bare.medians_s[:-1])


def _cell_row(where: CpuSet, cell: Cell, seen: Seen) -> list[str]:
    bare, agent = seen.bare[cell], seen.agent[cell]
    return [
        f"{where.name}: {cell.task}{cell.n_tokens}",
        f"{cell.n_tokens / median(bare.medians_s):.1f}",
        f"{cell.n_tokens / median(agent.medians_s):.1f}",
        spread(speed_ratios(agent.medians_s, bare.medians_s)).ratio(),
        spread(_hand_to_hand(bare)).ratio(),
        f"{bare.fastest_s / agent.fastest_s:.3f}",
    ]
