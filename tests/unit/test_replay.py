"""Recorded runs played to the conductor: the recorded policy gives the record back, others are judged against it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from tasks.domain.cells import Cell, Reason
from tasks.domain.choose import TWIN_INTERVALS
from tasks.domain.classic import ClassicPolicy
from tasks.domain.dynamic import DynamicPolicy
from tasks.domain.errors import ConfigError
from tasks.domain.known import KnownCell
from tasks.domain.predict import Prior
from tasks.replay.headers import headers_of
from tasks.replay.recorded import FAILED, OK, TIMED_OUT, UNTRIED, RecordedCall, RecordedModel, RecordedRun
from tasks.replay.replaying import Setting, replay, replay_run, replay_taught, replay_unseen
from tasks.replay.report import report, write_cells
from tasks.replay.score import RunScore
from tasks.replay.traces import calm_calls, read_traces
from tasks.replay.truth import SpeedRatios
from tasks.replay.twin_check import check_twins
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


def test_an_hour_that_is_paid_is_used_in_a_replay_too():
    run = record(SLOW)
    by_second, by_hour = (
        replay_run(run, SpeedRatios([run]), Setting(DynamicPolicy(), HEADERS, billing=billing))
        for billing in ({}, {"aws": (3600.0, 3600.0)})
    )
    repeats = [sum(c.n_samples for c in score.cells) for score in (by_second, by_hour)]
    assert repeats[0] < repeats[1] == 5 * sum(c.is_ok for c in by_hour.cells)
    assert (
        by_hour.replayed_s > by_second.replayed_s and by_hour.replayed_billed_s == by_hour.recorded_billed_s == 3600.0
    )
    assert by_second.replayed_billed_s == pytest.approx(by_second.replayed_s, abs=1.0)
    recorded_usd, replayed_usd = report([run], [by_hour]).billed_usd
    assert recorded_usd == replayed_usd == run.usd_per_hour


def test_what_is_known_of_a_run_is_heeded_in_its_replay():
    run = record(SLOW)
    larger = {c for c in run.calls if c.model == "qwen1.5-0.5b"}
    known = tuple(KnownCell(c, 0.001, None, True, "aws/m0") for c in larger if c.n_tokens == 16)
    setting, ratios = Setting(DynamicPolicy(), HEADERS), SpeedRatios([run])
    untaught, taught = replay_run(run, ratios, setting), replay_run(run, ratios, setting, known)
    assert {k.cell for k in untaught.known} >= {c.cell for c in untaught.cells if c.is_ok}
    assert all(k.source == "aws/m1" for k in untaught.known)
    assert {c.cell for c in taught.cells if c.was_ok and not c.is_ok} == {
        c for c in larger if run.calls[c].status == OK
    }
    assert taught.replayed_s < untaught.replayed_s


@pytest.mark.parametrize("unseen", [False, True])
def test_the_first_of_each_twin_group_is_replayed_as_if_nothing_were_known(unseen):
    runs = [replace(record(SLOW), server=f"m{i}", usd_per_hour=1.0 + i) for i in range(3)]
    runs.insert(0, replace(runs[0], server="other", cpu_model="Y"))
    setting = Setting(DynamicPolicy(prior=Prior()) if unseen else DynamicPolicy(), HEADERS)
    scores = replay_taught(runs, setting, unseen=unseen, n_processes=1)
    assert [s.server for s in scores] == ["other", "m0", "m1", "m2"]
    alone = replay_unseen(runs, setting, n_processes=1) if unseen else replay(runs, setting, n_processes=1)
    assert scores[:2] == alone[:2]
    assert all(c.is_ok for s in scores for c in s.cells if c.was_ok)


def test_calls_beside_a_download_are_told_from_calm_ones():
    run = record(FAST)
    first, *rest = sorted((c for c in run.calls), key=lambda c: run.calls[c].started_s)
    began_s, second_s = run.calls[first].started_s, run.calls[rest[0]].started_s
    brief = {"started": began_s - 5.0, "finished": began_s + 0.1}
    assert calm_calls(run.calls, [brief], run.wall_s) == frozenset(rest)
    never_done = {"started": second_s, "finished": None}
    assert calm_calls(run.calls, [never_done], run.wall_s) == {first}
    assert calm_calls(run.calls, [{"started": None, "finished": None}], run.wall_s) == {first, *rest}


def test_the_error_of_twins_is_told_apart_for_calm_cells():
    one, other = replace(record(FAST), server="a"), replace(record(FAST), server="b", usd_per_hour=9.0)
    quiet = Cell("smollm-135m", "pp", 16)
    calls = {c: call if c == quiet else replace(call, samples_s=tuple(2 * s for s in call.samples_s))
             for c, call in other.calls.items()}  # fmt: skip
    runs = [replace(one, calm=frozenset(one.calls)), replace(other, calls=calls, calm=frozenset({quiet}))]
    found = check_twins(runs, replay(runs, Setting(DynamicPolicy(), HEADERS), n_processes=1), 0.3, TWIN_INTERVALS)
    assert [c.machine.server for c in found.selection.measured] == ["a"]
    assert (found.n_calm, found.calm_p50) == (1, 0.0)
    assert found.n_cells_predicted == len(calls) and found.error_p50 == pytest.approx(1.0)


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
