"""Replay of many runs, over several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace

from tasks.domain.cells import PP, Cell, CellResult, Reason
from tasks.domain.dynamic import DynamicPolicy
from tasks.domain.gguf import GgufHeader
from tasks.domain.policy import Policy
from tasks.replay.fit import N_FOLDS, fit_prior, fold_of
from tasks.replay.machine import LOAD, OUR_HARNESS, RECORDED_HARNESS, Playback
from tasks.replay.recorded import TIMED_OUT, RecordedRun
from tasks.replay.score import RunScore, score_cells
from tasks.replay.truth import CellTruth, SpeedRatios, truth_of

RUNS_PER_TASK = 40
SIMPLEST_FAILED = "simplest_failed"
ROOM_FOR_WEIGHTS = 1.1
"""A model counts as fitting when memory is this many times its file."""


@dataclass(frozen=True)
class Setting:
    """What is replayed. guard: how downloads make way for timed repeats. max_usd: money cap of each server."""

    policy: Policy
    headers: dict[str, GgufHeader] = field(default_factory=dict)
    guard: str = "off"
    max_usd: float | None = None


def replay_run(run: RecordedRun, ratios: SpeedRatios, setting: Setting) -> RunScore:
    """One run under one setting. `classic` is replayed as its own program ran it, others as ours would."""
    harness = RECORDED_HARNESS if setting.policy.name == "classic" else OUR_HARNESS
    truth = truth_of(run, ratios)
    playback = Playback(run, truth, setting.policy, harness, setting.headers, setting.guard, setting.max_usd)
    results = playback.play()
    stopped_by = _wrongly_stopped_by(run, truth)
    return RunScore(
        vendor=run.vendor,
        server=run.server,
        run=run.run,
        usd_per_hour=run.usd_per_hour,
        recorded_s=run.wall_s,
        replayed_s=playback.now_s + run.tail_s,
        spent=tuple((what, cell, s) for (what, cell), s in playback.spent_s.items()),
        cells=score_cells(run, results),
        wrongly_stopped=stopped_by is not None,
        kept_going=stopped_by is not None and _kept_going(run, stopped_by, playback, results),
    )


def _wrongly_stopped_by(run: RecordedRun, truth: dict[Cell, CellTruth]) -> Cell | None:
    """The first cell of a model that ended the ladder although the model fits and its neighbours foretold a pass."""
    if run.end_reason != SIMPLEST_FAILED:
        return None
    for model in run.models:
        for cell, call in run.calls.items():
            if cell.model == model.name and call.status == TIMED_OUT and truth[cell].hangs:
                fits = run.has_gpu or model.bytes * ROOM_FOR_WEIGHTS < run.memory_bytes
                return cell if fits else None
    return None


def _kept_going(run: RecordedRun, cell: Cell, playback: Playback, results: tuple[CellResult, ...]) -> bool:
    """Whether this policy takes away the cause (files that push each other out of the page cache before their turn)
    or waits longer than the record for the load, and ends no other model for it."""
    if any(result.reason is Reason.SMALLEST_FAILED for result in results):
        return False
    pushed_out = run.bytes_downloaded > run.memory_bytes and playback.most_ahead_bytes <= run.memory_bytes
    waited_s = playback.spent_s.get((LOAD, Cell(cell.model, PP, cell.n_tokens)), 0.0)
    return pushed_out or waited_s > run.calls[cell].timeout_s + 1.0


def replay(
    runs: Sequence[RecordedRun],
    setting: Setting,
    *,
    ratios: SpeedRatios | None = None,
    n_processes: int | None = None,
) -> list[RunScore]:
    """Every run under one setting, in the order given. ratios: see truth.py; of these runs by default."""
    ratios = ratios or SpeedRatios(runs)
    processes = n_processes or len(os.sched_getaffinity(0))
    if processes <= 1 or len(runs) <= RUNS_PER_TASK:
        return [replay_run(run, ratios, setting) for run in runs]
    chunks = [list(runs[i : i + RUNS_PER_TASK]) for i in range(0, len(runs), RUNS_PER_TASK)]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = pool.map(_replay_chunk, [(chunk, ratios, setting) for chunk in chunks])
        return [score for part in parts for score in part]


def _replay_chunk(work: tuple[list[RecordedRun], SpeedRatios, Setting]) -> list[RunScore]:
    runs, ratios, setting = work
    return [replay_run(run, ratios, setting) for run in runs]


def replay_unseen(
    runs: Sequence[RecordedRun], setting: Setting, *, n_folds: int = N_FOLDS, n_processes: int | None = None
) -> list[RunScore]:
    """Every run under a prior that was fitted without its server (and its fold), in the order given."""
    ratios = SpeedRatios(runs)
    scores: dict[tuple[str, str, int], RunScore] = {}
    for fold in range(n_folds):
        mine = [run for run in runs if fold_of(run, n_folds) == fold]
        held = setting
        if isinstance(setting.policy, DynamicPolicy):
            prior = fit_prior([run for run in runs if fold_of(run, n_folds) != fold], f"without fold {fold}")
            held = replace(setting, policy=replace(setting.policy, prior=prior))
        for score in replay(mine, held, ratios=ratios, n_processes=n_processes):
            scores[score.vendor, score.server, score.run] = score
    return [scores[run.key] for run in runs]
