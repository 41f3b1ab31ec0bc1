"""What the benchmarks work with: engine, model files, CPU sets, a folder that is empty again afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.bench import bench_argv, bench_environment
from agent.runtime import allowed_builds, read_manifest

from tasks.domain.actions import StartBench
from tasks.domain.cells import PP, TG, Cell
from tasks.domain.run_plan import LadderStep, ModelSpec, RunPlan
from tasks.engine import Engine
from tasks.models.catalogue import load_catalogue, select_models
from tasks.models.synthesize import random_spec, synthesize
from tests.benchmarks import this_machine

FOR_THE_AGENT_ONLY = ("--progress", "-v")
NO_GATE_TOK_PER_S = 0.001
AGENT_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class CpuSet:
    """Where llama-bench may run, and with how many threads."""

    cpus: tuple[int, ...]
    n_threads: int

    @property
    def name(self) -> str:
        n = len(self.cpus)
        return f"{n} CPU{'s' * (n > 1)}, {self.n_threads} thread{'s' * (self.n_threads > 1)}"

    def pin(self) -> list[str]:
        """What to put before a command line."""
        return ["taskset", "-c", ",".join(map(str, self.cpus))]


@dataclass(frozen=True)
class Bare:
    """One llama-bench process started by hand."""

    samples_s: dict[Cell, list[float]]
    wall_s: float


@dataclass(frozen=True)
class Workbench:
    """seconds: what one benchmark may take, about. scratch: a folder of its own that the caller removes.

    quick: only to see that the benchmark works, with the smallest model.
    """

    engine: Engine
    cache_dir: Path
    scratch: Path
    seconds: float
    quick: bool = False

    @property
    def build(self) -> str:
        """The build that the agent would choose here."""
        return allowed_builds(read_manifest(self.engine.runtime_dir))[0]

    @property
    def models_dir(self) -> Path:
        return self.cache_dir / "models"

    def model(self, name: str) -> ModelSpec:
        """A model of the catalogue with random weights; its file is made if it is not there."""
        (entry,) = select_models(load_catalogue(), [name])
        return random_spec(entry, synthesize(entry, self.models_dir), ())

    def cpu_sets(self) -> list[CpuSet]:
        """One CPU, and all of them."""
        cpus = this_machine.cpus()
        sets = [CpuSet((cpus[0],), 1)]
        return sets if len(cpus) == 1 else [*sets, CpuSet(tuple(cpus), len(cpus))]

    def folder(self, name: str) -> Path:
        """A new folder in scratch."""
        path = self.scratch / f"{name}-{time.monotonic_ns()}"
        path.mkdir()
        return path

    def command(self, model: Path, cells: Sequence[Cell], n_repeats: int, n_threads: int) -> list[str]:
        """The agent's llama-bench command without what only the agent needs to follow it."""
        start = StartBench(cells[0].model, self.build, tuple(cells), n_repeats)
        argv = bench_argv(self.engine.runtime_dir, model, start, n_threads)
        return [word for word in argv if word not in FOR_THE_AGENT_ONLY]

    def environment(self) -> dict[str, str]:
        return bench_environment(self.engine.runtime_dir, self.build, {})

    def bare(self, model: ModelSpec, cells: Sequence[Cell], n_repeats: int, where: CpuSet) -> Bare:
        """Run llama-bench as a person would, and wait for it."""
        argv = [*where.pin(), *self.command(self.models_dir / model.file, cells, n_repeats, where.n_threads)]
        began = time.monotonic()
        done = subprocess.run(
            argv,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # as in a login of its own: with autogroups, sessions share the CPUs equally
        )
        wall_s = time.monotonic() - began
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)} ended with rc {done.returncode}: {done.stderr[-500:]}")
        samples = {}
        for line in done.stdout.splitlines():
            row = json.loads(line)
            task, n_tokens = (PP, row["n_prompt"]) if row["n_prompt"] else (TG, row["n_gen"])
            samples[Cell(model.name, task, n_tokens)] = [ns / 1e9 for ns in row["samples_ns"]]
        return Bare(samples, wall_s)

    def agent(self, plan: RunPlan, where: CpuSet, *options: str) -> list[dict[str, Any]]:
        """Run the agent in the foreground on those CPUs; returns its event log. Raises RuntimeError if it fails."""
        folder = self.folder("run")
        plan = replace(plan, n_threads=where.n_threads, builds=(self.build,))
        (folder / "plan.json").write_text(plan.to_json())
        program = [sys.executable, "-I", "-S", str(self.engine.agent)]
        argv = [*where.pin(), *program, "run", "--dir", str(folder), "--runtime", str(self.engine.runtime_dir)]
        for option in options:
            argv += ["--option", option]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=AGENT_TIMEOUT_S)
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        not_measured = [r for r in events[-1].get("results", []) if r["outcome"] != "measured"]
        if done.returncode != 0 or not_measured:
            raise RuntimeError(f"the agent ended with rc {done.returncode}: {done.stderr[-500:]} {not_measured[:2]}")
        return events


def ladder(*lengths: tuple[str, int]) -> tuple[LadderStep, ...]:
    """Steps without a gate: every cell is measured whatever its speed."""
    return tuple(LadderStep(task, n_tokens, NO_GATE_TOK_PER_S) for task, n_tokens in lengths)


def fixed_plan(
    models: Sequence[ModelSpec], steps: tuple[LadderStep, ...], n_repeats: int, guard: str = "off"
) -> RunPlan:
    """A plan in which nothing is skipped, stopped or repeated less often."""
    return RunPlan(
        sweep_id="benchmark",
        server_run_id="benchmark",
        server="this-machine",
        models=tuple(models),
        ladder=steps,
        policy="dynamic",
        policy_options={"n_repeats": n_repeats, "min_repeats": n_repeats},
        price_usd_per_hour=0.01,
        max_usd=10.0,
        deadline_s=3600.0,
        guard=guard,
    )


def of_kind(events: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["kind"] == kind]
