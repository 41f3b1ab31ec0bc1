"""What vendors, logs and the lake say is shown as it is: rich takes brackets for markup, and fails on some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from io import StringIO
from types import SimpleNamespace

import polars as pl
import pytest
from rich.console import Console

from flows import answer_tables, closing, plan_tables, render
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


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (80, 40), (200, 60)])
def test_status_fits_a_terminal_with_what_counts_at_its_top(columns: int, lines: int) -> None:
    """Three thousand servers, several sweeps: `--watch` shows one screen, and cuts off what does not fit."""
    sweeps = [f"weekly-fleet-{n:08x}" for n in range(9)]
    run = {"vendor": "aws", "host": "ip-10-0-0-17.eu-west-1.compute.internal", "pid": 4711, "started_unix_s": 100.0}
    runs = [
        SimpleNamespace(
            **run,
            sweep_id=sweeps[i % 9],
            server=f"m7i-flex.{i}xlarge",
            ended_unix_s=None if i < 90 else 200.0,
            state=SimpleNamespace(value="running" if i < 90 else "landed"),
        )
        for i in range(3000)
    ]
    money = SimpleNamespace(settled_usd=123.4567, reserved_usd=76.5)
    alive = [
        SimpleNamespace(vendor="aws", name=f"tokensweep-{i}", server_type="m7i", state=SimpleNamespace(value="live"))
        for i in range(90)
    ]
    screen = Console(file=StringIO(), width=columns, height=lines, highlight=False, markup=False)
    screen.print(render.status(runs, dict.fromkeys(sweeps, money), alive, lambda _: 300.0, width=columns, height=lines))
    shown = screen.file.getvalue().splitlines()
    assert len(shown) <= lines, "\n".join(shown)
    assert "10 running" in shown[0] and "123.4567 USD spent" in " ".join(shown[:2])
    assert any("90 servers alive" in line for line in shown) and any("more; --json" in line for line in shown)
    assert any("running" in line and "m7i-flex" in line for line in shown)


NARROW = 80
SERVERS = ("local/cpu1-mem2g-400mbit", "azure/Standard_E96as_v4")


def _on(width: int, shown: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a terminal of so many columns shows; no line is longer, and nothing is cut."""
    terminal = Console(width=width, highlight=False, markup=False)
    for module in (render, answer_tables, closing, plan_tables):
        monkeypatch.setattr(module, "out", terminal)
    with terminal.capture() as captured:
        shown()
    said = captured.get()
    assert "…" not in said and max(map(len, said.splitlines())) <= width, said
    return said


def _best() -> None:
    row = {"place": "us-east-1a", "spot": False, "price_usd_per_hour": 0.0308, "tok_per_s": 24.63, "n_samples": 5}
    row |= {"half_width_pct": 16.8, "usd_per_mtok": 0.348, "ratio_to_best": 17.26, "weights": "random"}
    row |= {"observed_at": datetime(2026, 2, 12), "price_read_at": datetime(2026, 2, 11), "on_frontier": True}
    row |= {"runs_on": "96 × AMD EPYC 7452 32-Core Processor", "flags": "wide_interval anchor_drift random_weights"}
    rows = [row | dict(zip(("vendor", "server"), name.split("/"), strict=True)) for name in SERVERS]
    answer_tables.best(rows, "llama-7b tg128", 2, None)


@pytest.mark.parametrize("width", [NARROW, 100, 120, 180])
def test_best_fits_a_terminal_with_names_numbers_and_flags_whole(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _on(width, _best, monkeypatch)
    for whole in (*SERVERS, "0.0308", "24.6", "16.8 %", "0.348", "wide_interval", "random_weights"):
        assert said.count(whole) >= 1, whole
    assert ("No room here for: price read" in " ".join(said.split())) == (width < 180), "what is left out is said"


def test_the_closing_table_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [{**c, "n_tokens": n} for c in _cells(2) for n in (16, 128, 512)]
    for width in (NARROW, 180):
        said = _on(width, lambda: _speeds("s", cells), monkeypatch)
        assert "server-0001" in said and "gated" in said and said.count("±1.0 %") == 6, said


def test_decisions_on_a_narrow_terminal_have_their_evidence_below(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = '{"needed_bytes": 185875200, "optimistic_tok_per_s": 14.391, "detail": ""}'
    row = {"server_run_id": "sweep.server.1", "t_s": 1.5, "action": "run_cell", "subject": "m tg16", "reason": "ok"}
    said = _on(NARROW, lambda: render.decisions("s", [row | {"evidence": evidence}]), monkeypatch)
    assert "run_cell m tg16: ok" in said and "needed_bytes=185875200, optimistic_tok_per_s=14.39 " in said


def test_many_wide_intervals_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    steady = [{"outcome": "measured", "half_width_pct": 2.0}] * 4
    closing._uncertain(steady)
    assert capsys.readouterr().err == ""
    closing._uncertain([*steady, *[{"outcome": "measured", "half_width_pct": 88.0}] * 2])
    assert "2 of 6 cells are uncertain by more than ±10 %" in capsys.readouterr().err
