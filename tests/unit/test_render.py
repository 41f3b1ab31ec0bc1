"""What vendors, logs and the lake say is shown as it is: rich takes brackets for markup, and fails on some."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import polars as pl
import pytest

from flows import render
from flows.closing import _ended_otherwise, _speeds
from flows.plan_tables import _reasons
from tasks.reaper import ReapReport

SAID = "[cuda.models] [/foo] [red]x[/red]"


def test_a_table_shows_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    render.frame(pl.DataFrame({"what": [SAID]}))
    _reasons(Counter({SAID: 2}))
    cell = {"server": "s", "model": "m", "task": "pp", "n_tokens": 16, "outcome": "failed", "reason": "error"}
    _ended_otherwise([{**cell, "detail": SAID}])
    assert capsys.readouterr().out.count(SAID) == 3


def test_reports_and_warnings_show_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    report = ReapReport(dry_run=False, errors=[SAID])
    render.reap_report(report, [])
    render.checks([SimpleNamespace(ok=False, name="aws", detail=SAID, next_step=SAID)])
    render.warn(SAID)
    render.hint(SAID)
    said = capsys.readouterr()
    assert (said.out.count(SAID), said.err.count(SAID)) == (3, 2)


def _cells(n_servers: int) -> list[dict[str, object]]:
    missed = {"task": "tg", "outcome": "gated", "reason": "predicted_too_slow", "detail": ""}
    measured = {"task": "pp", "outcome": "measured", "reason": "ok", "tok_per_s_median": 5.0, "tok_per_s_mean": 5.0}
    measured |= {"tok_per_s_ci95_low": 4.0, "tok_per_s_ci95_high": 6.0}
    return [
        {"server": f"server-{i:04}", "model": "m", "weights": "real", "n_tokens": 16, "half_width_pct": 1.0, **cell}
        for i in range(n_servers)
        for cell in (measured, missed)
    ]


def test_of_a_small_sweep_every_server_and_cell_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    _speeds("s", _cells(render.ROWS_SHOWN))
    _ended_otherwise(_cells(render.ROWS_SHOWN))
    said = capsys.readouterr().out
    assert said.count(f"server-{render.ROWS_SHOWN - 1:04}") == 2 and "more servers" not in said


def test_of_a_large_sweep_the_first_servers_and_counts_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    n = 3000
    _speeds("s", _cells(n))
    _ended_otherwise(_cells(n))
    said = capsys.readouterr().out
    assert "server-0059" in said and "server-0060" not in said and "2,940 more servers" in said
    (counted,) = [line for line in said.splitlines() if "predicted_too_slow" in line]
    assert counted.count("3,000") == 2 and "gated" in counted


def test_of_a_large_answer_the_first_rows_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    n = render.VALUES_SHOWN + 1
    render.frame(pl.DataFrame({"number": range(n)}))
    said = capsys.readouterr()
    assert f"{n - 2}" in said.out and f"{n - 1}" not in said.out
    assert f"{n:,} rows, the first {n - 1:,} shown; --csv and --json give all" in said.err


def test_large_numbers_are_written_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    render.frame(pl.DataFrame({"h": [22718.4], "small": [0.00012345], "bytes_per_s": [1.25e9]}))
    said = capsys.readouterr().out
    assert "22718" in said and "0.0001234" in said and "1250000000" in said and "e+" not in said
