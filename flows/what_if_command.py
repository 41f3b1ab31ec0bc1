"""`tokensweep what-if`: change a threshold or a budget and see points and USD move, on recorded runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from flows import render
from flows.commands import print_json
from flows.replay_command import Guard, Options, Traces, chosen_runs, policy_of, setting_of
from tasks.domain.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("what-if")(what_if)


def what_if(
    traces: Traces,
    options: Options = None,
    max_usd: Annotated[float | None, typer.Option(help="Money cap of each server run.")] = None,
    policy: Annotated[str, typer.Option(help="Policy to change.")] = "dynamic",
    vendor: Annotated[str, typer.Option(help="Only this vendor.")] = "",
    guard: Guard = "off",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Replay a policy as it is and with the change, and show what moves."""
    from tasks.replay.replaying import replay
    from tasks.replay.report import report
    from tasks.replay.traces import read_traces

    if not options and max_usd is None:
        raise ConfigError("Nothing is changed.", next_step="Give --set NAME=VALUE or --max-usd.")
    settings = (
        setting_of(policy_of(policy, None), guard),
        setting_of(policy_of(policy, options), guard, max_usd),
    )
    runs = chosen_runs(read_traces(traces), vendor)
    before, after = (report(runs, replay(runs, setting)) for setting in settings)
    if as_json:
        print_json({"before": asdict(before), "after": asdict(after)})
        return
    change = ", ".join([*(options or ()), *([f"at most {max_usd} USD a server"] if max_usd is not None else [])])
    table = Table(title=f"{policy} with {change}, on {before.total.n_runs} recorded runs", title_justify="left")
    for column in ("", "as it is", "changed", "difference"):
        table.add_column(column, justify="right" if column else "left")
    kept = [r.total.points - r.total.lost + r.total.gained for r in (before, after)]
    for name, values, form in (
        ("server-hours", [r.total.replayed_h for r in (before, after)], ",.1f"),
        ("USD", [r.total.replayed_usd for r in (before, after)], ",.2f"),
        ("USD as a share of recorded", [r.total.usd.value for r in (before, after)], ".4f"),
        ("points measured", kept, ",d"),
        ("recorded points lost", [r.total.lost for r in (before, after)], ",d"),
        ("means moved, p99", [r.shift_p99 for r in (before, after)], ".2%"),
        ("repeats per point", [r.repeats for r in (before, after)], ".2f"),
    ):
        table.add_row(name, *(format(v, form) for v in values), format(values[1] - values[0], "+" + form))
    render.out.print(table)
