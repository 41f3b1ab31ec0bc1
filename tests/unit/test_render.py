"""What vendors, logs and the lake say is shown as it is: rich takes brackets for markup, and fails on some."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import polars as pl
import pytest

from flows import render
from flows.closing import _ended_otherwise
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
