"""A recorded run played twice, through replay and through the agent: the same policy takes the same decisions.

The agent runs its archive with real processes and clocks; its llama-bench is a stand-in that plays the record.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.domain import dynamic
from tasks.domain.cells import Cell
from tasks.domain.gguf import parse_header
from tasks.domain.policies import policy_for
from tasks.domain.run_plan import LadderStep
from tasks.replay.machine import OUR_HARNESS, Playback
from tasks.replay.recorded import OK, TIMED_OUT, RecordedCall, RecordedModel, RecordedRun
from tasks.replay.truth import SpeedRatios, truth_of
from tests.agent.agent_run import AgentRun, of_kind, outcomes, plan_for
from tests.agent.model_server import ModelServer
from tests.agent.runtimes import fake_runtime
from tests.agent.small_gguf import small_gguf

# Gates whose budgets are a few seconds: 9 s for both lengths of pp, 6 s for tg, 61 s for the long tg.
LADDER = (LadderStep("pp", 16, 10.0), LadderStep("pp", 64, 40.0), LadderStep("tg", 8, 8.0), LadderStep("tg", 16, 1.33))
OPTIONS = {"least_saving_s": 0.0, "ci_ratio": 0.3}
LOAD_S = 0.05

SAMPLES_S: dict[str, dict[str, tuple[float, ...]]] = {
    # quick; quiet and worth stopping after three; hopeless; never tried because of the one before
    "small": {"pp16": (0.02,) * 5, "pp64": (0.8,) * 5, "tg8": (30.0,) * 5, "tg16": (60.0,) * 5},
    # within its gate; foretold to miss its own by far; as hopeless as the smaller model's
    "large": {"pp16": (0.8,) * 5, "pp64": (20.0,) * 5, "tg8": (30.0,) * 5, "tg16": (60.0,) * 5},
}
"""Seconds of every repeat, as recorded."""


def recorded_run(sizes: dict[str, int]) -> RecordedRun:
    calls: dict[Cell, RecordedCall] = {}
    for model, cells in SAMPLES_S.items():
        for step in LADDER:
            samples_s = cells[f"{step.task}{step.n_tokens}"]
            n_runs = 5 + (step.task == "pp")
            status = OK if sum(samples_s) < 20 else TIMED_OUT
            wall_s = LOAD_S + samples_s[0] * n_runs + 0.05
            call = RecordedCall(status, 0.0, wall_s, wall_s - 0.1, samples_s if status == OK else ())
            calls[Cell(model, step.task, step.n_tokens)] = call
    models = tuple(RecordedModel(name, n_bytes, 0.0, 0.05, 0.0, 0.0) for name, n_bytes in sizes.items())
    return RecordedRun(
        vendor="local", server="local", run=1, wall_s=100.0, usd_per_hour=0.1, head_s=0.0, tail_s=0.0,
        end_reason="completed", n_cpus=2, n_threads=2, memory_bytes=64 * 2**30, vram_bytes=0, has_gpu=False,
        cpu_model="", gpu_model="", gpu_count=0, models=models, calls=calls,
    )  # fmt: skip


def about_cells(decisions: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(action, subject, reason) of every decision about a cell, in order; downloads run beside and are left out."""
    names = {f"{m} {s.task}{s.n_tokens}" for m in SAMPLES_S for s in LADDER}
    return [(d["action"], d["subject"], d["reason"]) for d in decisions if d["subject"] in names]


def test_the_agent_carries_the_policy_byte_for_byte(agent_pyz: Path) -> None:
    """All of the domain, so that nothing that a policy calls can differ either."""
    modules = {path.name: path.read_bytes() for path in Path(dynamic.__file__).parent.glob("*.py")}
    with zipfile.ZipFile(agent_pyz) as archive:
        packed = {name.rpartition("/")[2]: archive.read(name) for name in archive.namelist()
                  if name.startswith("tasks/domain/") and name.endswith(".py")}  # fmt: skip
    assert packed == modules
    assert {"dynamic.py", "predict.py", "prior_data.py", "known.py", "billing.py", "conductor.py"} <= set(packed)


def test_replay_and_agent_decide_alike(agent_pyz: Path, server: ModelServer, tmp_path: Path) -> None:
    data = {
        name: small_gguf(tmp_path / f"{name}.gguf", n_embd=64 * (i + 1), seed=i) for i, name in enumerate(SAMPLES_S)
    }
    models = {name: (server.put(f"/{name}", content), content) for name, content in data.items()}
    plan = plan_for(models, ladder=LADDER, policy_options=OPTIONS)

    run = recorded_run({name: len(content) for name, content in data.items()})
    truth = {c: replace(t, samples_s=SAMPLES_S[c.model][f"{c.task}{c.n_tokens}"], load_s=LOAD_S, hangs=False)
             for c, t in truth_of(run, SpeedRatios([run])).items()}  # fmt: skip
    headers = {name: parse_header(content, len(content)) for name, content in data.items()}
    playback = Playback(run, truth, policy_for("dynamic", OPTIONS), OUR_HARNESS, headers, plan=plan)
    results = playback.play()
    replayed = about_cells([vars(d) for d in playback.decisions])

    agent = AgentRun(agent_pyz, tmp_path / "run", fake_runtime(tmp_path))
    played = {name: {"load_s": LOAD_S, "samples_s": cells} for name, cells in SAMPLES_S.items()}
    agent.environment["FAKE_BENCH"] = json.dumps([{"models": played}])
    agent.put(plan)
    lines = agent.finish()

    assert about_cells(of_kind(lines, "Decision")) == replayed
    assert outcomes(lines) == {(r.cell.model, r.cell.task, r.cell.n_tokens): r.reason.value for r in results}
    assert {reason for _, _, reason in replayed} >= {
        "ok", "measured_too_slow", "predicted_too_slow", "shorter_cell_too_slow", "smaller_model_too_slow",
    }  # fmt: skip
    assert ("enough_repeats", "small pp64", "ok") in replayed
    n_samples = {r.cell: len(r.samples_s) for r in results}
    of_agent = {Cell(**r["cell"]): len(r["samples_s"]) for r in of_kind(lines, "Finished")[0]["results"]}
    assert of_agent == n_samples
    assert n_samples[Cell("small", "pp", 64)] == 3
