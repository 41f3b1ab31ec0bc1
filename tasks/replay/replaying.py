"""Replay of many runs, over several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from tasks.domain import actions as act
from tasks.domain.cells import Cell, Outcome
from tasks.domain.gguf import GgufHeader
from tasks.domain.policy import Policy
from tasks.replay.machine import OUR_HARNESS, RECORDED_HARNESS, Playback
from tasks.replay.recorded import RecordedRun
from tasks.replay.score import RunScore, score_cells
from tasks.replay.truth import SpeedRatios, truth_of

RUNS_PER_TASK = 40


@dataclass(frozen=True)
class Setting:
    """What is replayed: a policy, and how downloads make way for timed repeats."""

    policy: Policy
    headers: dict[str, GgufHeader] = field(default_factory=dict)
    guard: str = "off"


def replay_run(run: RecordedRun, ratios: SpeedRatios, setting: Setting) -> RunScore:
    """One run under one setting. `classic` is replayed as its own program ran it, others as ours would."""
    harness = RECORDED_HARNESS if setting.policy.name == "classic" else OUR_HARNESS
    playback = Playback(run, truth_of(run, ratios), setting.policy, harness, setting.headers, setting.guard)
    results = playback.play()
    return RunScore(
        vendor=run.vendor,
        server=run.server,
        run=run.run,
        usd_per_hour=run.usd_per_hour,
        recorded_s=run.wall_s,
        replayed_s=playback.now_s + run.tail_s,
        recorded_cell_s={},
        replayed_cell_s={},
        cells=score_cells(run, results),
        n_decisions=0,
        n_events=0,
        wrongly_stopped=False,
        kept_going=False,
    )


def replay(
    runs: Sequence[RecordedRun],
    setting: Setting,
    *,
    ratios: SpeedRatios | None = None,
    n_processes: int | None = None,
) -> list[RunScore]:
    """Every run under one setting, in the order given. ratios: see truth.py; of these runs by default."""
    ratios = ratios or SpeedRatios(runs)
    processes = n_processes or os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count() or 1
    if processes <= 1 or len(runs) <= RUNS_PER_TASK:
        return [replay_run(run, ratios, setting) for run in runs]
    chunks = [list(runs[i : i + RUNS_PER_TASK]) for i in range(0, len(runs), RUNS_PER_TASK)]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = pool.map(_replay_chunk, [(chunk, ratios, setting) for chunk in chunks])
        return [score for part in parts for score in part]


def _replay_chunk(work: tuple[list[RecordedRun], SpeedRatios, Setting]) -> list[RunScore]:
    runs, ratios, setting = work
    return [replay_run(run, ratios, setting) for run in runs]
