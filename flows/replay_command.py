"""`tokensweep replay`: what a policy would have cost and measured on recorded runs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from flows import render
from flows.commands import print_json
from tasks.domain.errors import ConfigError

if TYPE_CHECKING:
    from tasks.domain.policy import Policy
    from tasks.replay.recorded import RecordedRun
    from tasks.replay.replaying import Setting
    from tasks.replay.report import Line, Report, Share

Traces = Annotated[Path, typer.Option(help="Folder with runs.parquet, downloads.parquet and benches.parquet.")]
Options = Annotated[list[str] | None, typer.Option("--set", help="A threshold of the policy, NAME=VALUE; repeatable.")]
Guard = Annotated[Literal["off", "pause", "auto"], typer.Option(help="How downloads make way for timed repeats.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(replay)


def replay(
    traces: Traces,
    policy: Annotated[str, typer.Option(help="Policy to replay.")] = "dynamic",
    against: Annotated[str, typer.Option(help="A second policy, beside the first.")] = "",
    options: Options = None,
    guard: Guard = "off",
    vendor: Annotated[str, typer.Option(help="Only this vendor.")] = "",
    april: Annotated[bool, typer.Option("--april-2025", help="Only the sweep of April 2025.")] = False,
    unseen: Annotated[
        bool, typer.Option("--cross-validate", help="Predict each server with coefficients fitted without it.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Parquet file with one row per cell.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Drive the conductor through recorded runs on a virtual clock: hours, USD, points lost and gained."""
    from tasks.replay.report import report, write_cells
    from tasks.replay.traces import read_traces

    chosen = [(policy, policy_of(policy, options)), *([(against, policy_of(against, None))] if against else [])]
    runs = chosen_runs(read_traces(traces, latest_only=not april), vendor, april=april)
    reports = []
    for name, each in chosen:
        began = time.monotonic()
        scores = _replayed(runs, setting_of(each, guard), unseen=unseen)
        reports.append((name, report(runs, scores), time.monotonic() - began))
        if out is not None and name == policy:
            write_cells(out, scores)
    if as_json:
        print_json([{"policy": name, "seconds": s, **asdict(found)} for name, found, s in reports])
        return
    for name, found, seconds in reports:
        show(name, found)
        render.out.print(f"{found.total.n_runs} runs in {seconds:.1f} s")


def policy_of(name: str, options: Sequence[str] | None) -> Policy:
    """The policy with the thresholds of `--set`. Raises ConfigError for one that is no NAME=VALUE."""
    from tasks.domain.policies import policy_for

    values: dict[str, Any] = {}
    for option in options or ():
        key, _, text = option.partition("=")
        try:
            values[key] = json.loads(text)
        except ValueError as exc:
            raise ConfigError(
                f"{option!r} is no threshold.", next_step="Write NAME=VALUE, e.g. --set ci_ratio=0.05."
            ) from exc
    return policy_for(name, values)


def chosen_runs(runs: list[RecordedRun], vendor: str, *, april: bool = False) -> list[RecordedRun]:
    """Raises ConfigError when none is left."""
    left = [run for run in runs if vendor in ("", run.vendor) and (run.is_april or not april)]
    if not left:
        known = ", ".join(sorted({run.vendor for run in runs}))
        raise ConfigError(f"No recorded run of {vendor or 'that sweep'}.", next_step=f"Vendors in the traces: {known}.")
    return left


def setting_of(policy: Policy, guard: str, max_usd: float | None = None) -> Setting:
    from tasks.replay.headers import headers_of
    from tasks.replay.replaying import Setting

    return Setting(policy, headers_of(), guard, max_usd)


def _replayed(runs: list[RecordedRun], setting: Setting, *, unseen: bool) -> Any:
    from tasks.replay import replaying

    return replaying.replay_unseen(runs, setting) if unseen else replaying.replay(runs, setting)


def show(name: str, found: Report) -> None:
    """The tables of one report."""
    table = Table(title=f"Policy {name} against the record", title_justify="left")
    columns = ("", "runs", "hours", "× recorded", "95 %", "USD", "× recorded", "95 %", "points", "lost", "%", "gained")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for section in ((found.total,), found.by_vendor, found.by_model, found.by_task):
        for line in section:
            table.add_row(*_cells(line))
        table.add_section()
    render.out.print(table)
    reasons = ", ".join(f"{reason} {n}" for reason, n in found.lost_by_reason.items()) or "none"
    kept = f"{found.kept_going} of {found.wrong_stops}"
    render.out.print(
        f"Lines of models and tasks count the time of llama-bench alone. Lost: {reasons}.\n"
        f"Means moved by fewer repeats: p50 {found.shift_p50:.2%}, p90 {found.shift_p90:.2%}, "
        f"p99 {found.shift_p99:.2%}; {found.repeats:.2f} repeats per point.\n"
        f"Ladders that the record stopped wrongly and this keeps going: {kept}."
    )


def _cells(line: Line) -> tuple[str, ...]:
    return (
        line.name,
        str(line.n_runs),
        f"{line.replayed_h:,.0f} of {line.recorded_h:,.0f}",
        f"{line.hours.value:.3f}",
        _interval(line.hours),
        f"{line.replayed_usd:,.0f} of {line.recorded_usd:,.0f}",
        f"{line.usd.value:.3f}",
        _interval(line.usd),
        f"{line.points:,}",
        str(line.lost),
        f"{line.lost_share.value:.2%}",
        str(line.gained),
    )


def _interval(share: Share) -> str:
    return f"{share.low:.3f} to {share.high:.3f}"
