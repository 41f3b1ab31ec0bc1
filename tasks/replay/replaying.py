"""Replay of many runs, over several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace

from tasks.domain.billing import Billing
from tasks.domain.cells import PP, Cell, CellResult, Reason
from tasks.domain.dynamic import DynamicPolicy
from tasks.domain.gguf import GgufHeader
from tasks.domain.known import KnownCell, known_of
from tasks.domain.policy import Policy
from tasks.domain.twins import twin_groups
from tasks.replay.fit import N_FOLDS, fit_prior, fold_of
from tasks.replay.machine import LOAD, OUR_HARNESS, RECORDED_HARNESS, Playback, plan_of
from tasks.replay.recorded import TIMED_OUT, RecordedRun, machine_of
from tasks.replay.score import RunScore, score_cells
from tasks.replay.truth import CellTruth, SpeedRatios, truth_of

Increments = tuple[float, float]
RunKey = tuple[str, str, int]
Known = Mapping[RunKey, tuple[KnownCell, ...]]

BY_THE_SECOND: Increments = (0.0, 1.0)
RUNS_PER_TASK = 40
SIMPLEST_FAILED = "simplest_failed"
ROOM_FOR_WEIGHTS = 1.1
"""A model counts as fitting when memory is this many times its file."""


@dataclass(frozen=True)
class Setting:
    """What is replayed. guard: how downloads make way for timed repeats. max_usd: money cap of each server. billing:
    minimum and increment in seconds by vendor; by the second where it has none."""

    policy: Policy
    headers: dict[str, GgufHeader] = field(default_factory=dict)
    guard: str = "off"
    max_usd: float | None = None
    billing: Mapping[str, Increments] = field(default_factory=dict)


def replay_run(run: RecordedRun, ratios: SpeedRatios, setting: Setting, known: tuple[KnownCell, ...] = ()) -> RunScore:
    """One run under one setting. `classic` is replayed as its own program ran it, others as ours would.

    known: what an earlier run showed of the same cells.
    """
    harness = RECORDED_HARNESS if setting.policy.name == "classic" else OUR_HARNESS
    truth = truth_of(run, ratios)
    billing = setting.billing.get(run.vendor, BY_THE_SECOND)
    plan = plan_of(run, setting.policy.name, setting.guard, setting.max_usd, billing, known)
    playback = Playback(run, truth, setting.policy, harness, setting.headers, plan)
    results = playback.play()
    stopped_by = _wrongly_stopped_by(run, truth)
    replayed_s = playback.now_s + run.tail_s
    return RunScore(
        vendor=run.vendor,
        server=run.server,
        run=run.run,
        usd_per_hour=run.usd_per_hour,
        recorded_s=run.wall_s,
        replayed_s=replayed_s,
        spent=tuple((what, cell, s) for (what, cell), s in playback.spent_s.items()),
        cells=score_cells(run, results),
        wrongly_stopped=stopped_by is not None,
        kept_going=stopped_by is not None and _kept_going(run, stopped_by, playback, results),
        recorded_billed_s=Billing(0.0, *billing).paid_until_s(run.wall_s),
        replayed_billed_s=Billing(0.0, *billing).paid_until_s(replayed_s),
        known=known_of(results, playback.decisions, f"{run.vendor}/{run.server}"),
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
    known: Known | None = None,
) -> list[RunScore]:
    """Every run under one setting, in the order given. ratios: see truth.py; of these runs by default. known: what
    earlier runs showed, by the key of the run that it is told to."""
    ratios = ratios or SpeedRatios(runs)
    known = known or {}
    processes = n_processes or len(os.sched_getaffinity(0))
    if processes <= 1 or len(runs) <= RUNS_PER_TASK:
        return [replay_run(run, ratios, setting, known.get(run.key, ())) for run in runs]
    chunks = [list(runs[i : i + RUNS_PER_TASK]) for i in range(0, len(runs), RUNS_PER_TASK)]
    told = [{run.key: known[run.key] for run in chunk if run.key in known} for chunk in chunks]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        work = [(chunk, ratios, setting, of_chunk) for chunk, of_chunk in zip(chunks, told, strict=True)]
        return [score for part in pool.map(_replay_chunk, work) for score in part]


def _replay_chunk(work: tuple[list[RecordedRun], SpeedRatios, Setting, Known]) -> list[RunScore]:
    runs, ratios, setting, known = work
    return [replay_run(run, ratios, setting, known.get(run.key, ())) for run in runs]


def replay_unseen(
    runs: Sequence[RecordedRun],
    setting: Setting,
    *,
    n_folds: int = N_FOLDS,
    n_processes: int | None = None,
    known: Known | None = None,
    fitted_on: Sequence[RecordedRun] = (),
) -> list[RunScore]:
    """Every run under a prior that was fitted without its server (and its fold), in the order given.

    fitted_on: the runs that priors are fitted on, those replayed by default.
    """
    all_runs = fitted_on or runs
    ratios = SpeedRatios(all_runs)
    scores: dict[RunKey, RunScore] = {}
    for fold in range(n_folds):
        mine = [run for run in runs if fold_of(run, n_folds) == fold]
        held = setting
        if isinstance(setting.policy, DynamicPolicy):
            prior = fit_prior([run for run in all_runs if fold_of(run, n_folds) != fold], f"without fold {fold}")
            held = replace(setting, policy=replace(setting.policy, prior=prior))
        for score in replay(mine, held, ratios=ratios, n_processes=n_processes, known=known):
            scores[score.vendor, score.server, score.run] = score
    return [scores[run.key] for run in runs]


def replay_taught(
    runs: Sequence[RecordedRun], setting: Setting, *, unseen: bool = False, n_processes: int | None = None
) -> list[RunScore]:
    """Every run, the first of each twin group as if nothing were known, the others with what the replay of the first
    has shown. unseen: as `replay_unseen`."""
    by_name = {f"{run.vendor}/{run.server}": run for run in runs}
    groups = [[by_name[m.name] for m in group.machines] for group in twin_groups(machine_of(run) for run in runs)]
    firsts = [group[0] for group in groups]

    def play(chosen: Sequence[RecordedRun], known: Known) -> dict[RunKey, RunScore]:
        if unseen:
            found = replay_unseen(chosen, setting, n_processes=n_processes, known=known, fitted_on=runs)
        else:
            found = replay(chosen, setting, ratios=SpeedRatios(runs), n_processes=n_processes, known=known)
        return {(s.vendor, s.server, s.run): s for s in found}

    scores = play(firsts, {})
    known = {run.key: scores[group[0].key].known for group in groups for run in group[1:]}
    scores |= play([run for run in runs if run.key in known], known)
    return [scores[run.key] for run in runs]
