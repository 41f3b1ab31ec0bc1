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
    from tasks.replay.score import RunScore
    from tasks.replay.twin_check import TwinCheck

Traces = Annotated[Path, typer.Option(help="Folder with runs.parquet, downloads.parquet and benches.parquet.")]
Options = Annotated[list[str] | None, typer.Option("--set", help="A threshold of the policy, NAME=VALUE; repeatable.")]
Guard = Annotated[Literal["off", "pause", "auto"], typer.Option(help="How downloads make way for timed repeats.")]


FRONTIER = (
    ("point_usd=2",),
    ("point_usd=20",),
    ("point_usd=12", "hope=1.1", "ci_ratio=0.09"),
    ("min_repeats=2", "point_usd=4"),
    ("min_repeats=2", "point_usd=12"),
)
"""Changes of the default policy that the charts show beside it."""


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
    taught: Annotated[
        bool, typer.Option("--know-twins", help="Tell each server what the replay of its twin has shown.")
    ] = False,
    billing: Annotated[
        Literal["second", "vendor"], typer.Option(help="Bill by the second, or as the vendors do.")
    ] = "second",
    twin_usd: Annotated[
        float | None, typer.Option(help="Also judge a plan that measures twins first, for so many USD.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Parquet file with one row per cell.")] = None,
    page: Annotated[Path | None, typer.Option("--html", help="File for the charts, and for the frontier.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Drive the conductor through recorded runs on a virtual clock: hours, USD, points lost and gained."""
    from tasks.replay.report import report, write_cells
    from tasks.replay.traces import read_traces

    chosen = [(policy, policy_of(policy, options)), *([(against, policy_of(against, None))] if against else [])]
    if page is not None:
        chosen += [(" ".join(changes), policy_of("dynamic", changes)) for changes in FRONTIER]
    for path in filter(None, (out, page)):
        _check_folder(path)
    runs = chosen_runs(read_traces(traces, latest_only=not april), vendor, april=april)
    reports, twins = [], None
    for number, (name, each) in enumerate(chosen):
        began = time.monotonic()
        setting = setting_of(each, guard, by_vendor=billing == "vendor")
        scores = _replayed(runs, setting, unseen=unseen, taught=taught)
        reports.append((name, report(runs, scores), time.monotonic() - began))
        if number == 0:
            twins = _twin_plan(runs, scores, twin_usd)
            if out is not None:
                write_cells(out, scores)
    if page is not None:
        _write_page(page, [(name, found) for name, found, _ in reports], runs, twins, unseen=unseen)
    if as_json:
        print_json([{"policy": name, "seconds": s, **asdict(found)} for name, found, s in reports])
        return
    for name, found, seconds in reports[: 1 + bool(against)]:
        show(name, found)
        if billing == "vendor":
            recorded, replayed = found.billed_usd
            render.out.print(f"Billed by the vendors' increments: {replayed:,.2f} USD of {recorded:,.2f}.")
        render.out.print(f"{found.total.n_runs} runs in {seconds:.1f} s")
    if twins is not None:
        _show_twins(twins)
    if page is not None:
        render.hint(f"open it in a browser: {page.resolve().as_uri()}")


def _check_folder(path: Path) -> None:
    """A minute of replay must not end in a file that cannot be written."""
    if not path.parent.is_dir():
        raise ConfigError(f"There is no folder {path.parent} for {path.name}.", next_step="Make it, or name another.")


def _twin_plan(runs: list[RecordedRun], scores: list[RunScore], max_usd: float | None) -> TwinCheck | None:
    from tasks.domain.choose import TWIN_INTERVALS
    from tasks.replay.twin_check import check_twins

    return None if max_usd is None else check_twins(runs, scores, max_usd, TWIN_INTERVALS)


def _show_twins(found: TwinCheck) -> None:
    chosen = found.selection
    held = ", ".join(f"{claimed:.0%} held {share:.1%}" for claimed, share in sorted(found.unseen.items()))
    render.out.print(
        f"Twins first, {chosen.usd:,.2f} USD ({found.usd_share:.1%} of the record): {len(chosen.measured)} servers "
        f"measured, {len(chosen.predicted)} predicted, {len(chosen.unreached)} left out.\n"
        f"Error over {found.n_cells_predicted:,} cells that were not run: median {found.error_p50:.1%}, "
        f"p90 {found.error_p90:.0%}; over the {found.n_calm:,} beside which nothing was downloaded: "
        f"median {found.calm_p50:.1%}, p90 {found.calm_p90:.0%}.\n"
        f"Intervals, fitted on the other half of the groups: {held}."
    )


def _write_page(
    path: Path,
    reports: list[tuple[str, Report]],
    runs: list[RecordedRun],
    twins: TwinCheck | None,
    *,
    unseen: bool,
) -> None:
    from flows.replay_page import write_page
    from tasks.replay.fit import reliability

    write_page(path, reports, gates=reliability(runs), twins=twins, unseen=unseen)


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
    """Those of a vendor, by our name or by the record's. Raises ConfigError when none is left."""
    from tasks.lake.sparecores import VENDOR_NAMES

    ours = {run.vendor: VENDOR_NAMES.get(run.vendor, run.vendor) for run in runs}
    left = [run for run in runs if vendor in ("", run.vendor, ours[run.vendor]) and (run.is_april or not april)]
    if not left:
        known = ", ".join(sorted(set(ours.values())))
        raise ConfigError(f"No recorded run of {vendor or 'that sweep'}.", next_step=f"Vendors in the traces: {known}.")
    return left


def setting_of(policy: Policy, guard: str, max_usd: float | None = None, *, by_vendor: bool = False) -> Setting:
    """by_vendor: bill as each vendor does."""
    from tasks.clouds.traits import TRAITS
    from tasks.lake.sparecores import VENDOR_NAMES
    from tasks.replay.headers import headers_of
    from tasks.replay.replaying import Setting

    increments = {vendor: (float(t.billing_minimum_s), float(t.billing_increment_s)) for vendor, t in TRAITS.items()}
    increments |= {theirs: increments[ours] for theirs, ours in VENDOR_NAMES.items()}
    return Setting(policy, headers_of(), guard, max_usd, increments if by_vendor else {})


def _replayed(runs: list[RecordedRun], setting: Setting, *, unseen: bool, taught: bool) -> list[RunScore]:
    from tasks.replay import replaying

    if taught:
        return replaying.replay_taught(runs, setting, unseen=unseen)
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
