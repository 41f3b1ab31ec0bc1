"""Recorded runs played to the conductor: the recorded policy gives the record back, others are judged against it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from tasks.domain.cells import Cell, Reason
from tasks.domain.classic import ClassicPolicy
from tasks.domain.dynamic import DynamicPolicy
from tasks.domain.errors import ConfigError
from tasks.replay.headers import headers_of
from tasks.replay.recorded import FAILED, OK, TIMED_OUT, UNTRIED, RecordedCall, RecordedModel, RecordedRun
from tasks.replay.replaying import Setting, replay, replay_run
from tasks.replay.report import report, write_cells
from tasks.replay.score import RunScore
from tasks.replay.traces import read_traces
from tasks.replay.truth import SpeedRatios
from tests.recorded_runs import FAST, HEAD_S, LOAD_S, SLOW, TAIL_S, record

HEADERS = headers_of()


def played(run: RecordedRun, policy: object) -> RunScore:
    return replay_run(run, SpeedRatios([run]), Setting(policy, HEADERS))  # type: ignore[arg-type]


@pytest.mark.parametrize("speeds", [SLOW, FAST])
def test_the_recorded_policy_gives_the_recorded_time_and_points(speeds):
    run = record(speeds)
    score = played(run, ClassicPolicy())
    assert score.replayed_s == pytest.approx(run.wall_s, abs=0.5)
    assert {c.cell for c in score.cells if c.is_ok} == {c for c, call in run.calls.items() if call.status == OK}
    assert all(c.shift == pytest.approx(0.0) for c in score.cells)


def test_the_default_policy_gives_the_same_points_for_less():
    run = record(SLOW)
    score = played(run, DynamicPolicy())
    assert all(c.is_ok for c in score.cells if c.was_ok)
    assert score.replayed_s < 0.75 * run.wall_s
    assert min(c.n_samples for c in score.cells if c.is_ok) >= 3


def test_seconds_are_told_by_what_was_done():
    run = record(FAST)
    score = played(run, ClassicPolicy())
    spent = {what: sum(s for w, _, s in score.spent if w == what) for what in ("load", "warmup", "repeats", "wait")}
    assert spent["load"] == pytest.approx(LOAD_S * run.n_ok, rel=0.01)
    assert sum(spent.values()) == pytest.approx(run.wall_s - HEAD_S - TAIL_S, abs=0.5)


def test_a_load_that_never_ends_costs_its_limit_and_one_model_only():
    run = record(SLOW)
    first = Cell("qwen1.5-0.5b", "pp", 16)
    calls = {c: RecordedCall(UNTRIED) if c.model == first.model else call for c, call in run.calls.items()}
    calls[first] = RecordedCall(TIMED_OUT, 0.0, 43.1, 43.0)
    hung = replace(run, calls=calls, end_reason="simplest_failed", bytes_downloaded=2**40)
    classic, dynamic = played(hung, ClassicPolicy()), played(hung, DynamicPolicy())
    assert classic.wrongly_stopped and not classic.kept_going
    assert dynamic.wrongly_stopped and dynamic.kept_going
    assert all(c.is_ok for c in dynamic.cells if c.was_ok)


def test_a_call_that_failed_fails_again_and_stops_nothing_else():
    run = record(FAST)
    broken = Cell("smollm-135m", "tg", 128)
    run = replace(run, calls={**run.calls, broken: RecordedCall(FAILED, 0.0, 2.0, 129.0)})
    score = played(run, DynamicPolicy())
    assert broken not in {c.cell for c in score.cells}
    assert sum(c.is_ok for c in score.cells) == run.n_ok


@pytest.mark.parametrize(("rate", "reason"), [(0.0, "download_dead"), (1e5, "download_too_slow")])
def test_a_download_that_never_comes_is_not_waited_for_as_long_as_the_record_did(rate, reason):
    run = record(FAST)
    lost = RecordedModel("gemma-2b", 1_495_091_104, 0.0, None, rate, 0.0)
    waiting = replace(run, models=(*run.models, lost), wall_s=run.wall_s + 900.0)
    assert played(waiting, ClassicPolicy()).replayed_s == pytest.approx(waiting.wall_s, abs=20.0)
    assert played(waiting, DynamicPolicy()).replayed_s < run.wall_s


def test_guarded_downloads_take_their_time_beside_no_repeat():
    quick = record(SLOW)
    slow_link = replace(quick, models=tuple(replace(m, download_s=120.0) for m in quick.models))
    ratios = SpeedRatios([slow_link])
    free, guarded = (
        replay_run(slow_link, ratios, Setting(DynamicPolicy(), HEADERS, guard)).replayed_s for guard in ("off", "pause")
    )
    assert guarded > free + 60.0


def test_money_ends_a_replayed_run_too():
    run = record(SLOW)
    score = replay_run(run, SpeedRatios([run]), Setting(DynamicPolicy(), HEADERS, max_usd=0.05))
    assert score.replayed_s < 180.0 + TAIL_S
    assert Reason.MONEY in {c.reason for c in score.cells}


def test_many_runs_are_reported_by_vendor_model_and_task(tmp_path: Path):
    runs = [
        replace(record(SLOW if i % 2 else FAST), server=f"m{i}", vendor="aws" if i % 3 else "gcp") for i in range(6)
    ]
    scores = replay(runs, Setting(DynamicPolicy(), HEADERS), n_processes=1)
    found = report(runs, scores)
    assert found.total.n_runs == 6 and found.total.lost == 0
    assert found.total.hours.low <= found.total.hours.value <= found.total.hours.high < 1.0
    assert [line.name for line in found.by_vendor] == ["aws", "gcp"]
    assert (
        sum(line.points for line in found.by_model) == sum(line.points for line in found.by_task) == found.total.points
    )
    write_cells(tmp_path / "cells.parquet", scores)
    assert pl.read_parquet(tmp_path / "cells.parquet").height == sum(len(s.cells) for s in scores)


def test_several_processes_give_the_same_scores():
    runs = [replace(record(SLOW), server=f"m{i}") for i in range(42)]
    setting = Setting(DynamicPolicy(), HEADERS)
    assert replay(runs, setting, n_processes=2) == replay(runs, setting, n_processes=1)


def test_trace_tables_that_are_not_there_are_said(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"runs\.parquet"):
        read_traces(tmp_path)
    for name in ("runs", "downloads", "benches"):
        (tmp_path / f"{name}.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_traces(tmp_path)
