"""Tables and progress for people. Results go to stdout; progress, warnings and hints to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import humanize
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.prompt import Confirm
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from flows.width import wanted_width
from tasks.progress import Step, listening

if TYPE_CHECKING:
    import polars as pl

# A pipe or a log file has no width of its own; 80 columns would cut every name.
PIPE_WIDTH = 180
TABLE_COLUMNS = 8  # more of them that do not fit are shown one below the other
ROWS_SHOWN = 60  # of a plan: thousands of rows help nobody on a terminal
EVIDENCE_WIDTH = 150  # of a terminal on which a decision's evidence fits beside it
EVIDENCE_INDENT = 12
VALUES_SHOWN = 20_000  # of a query; they take two seconds, and 100,000 rows of 60 columns took seven minutes


def _console(*, stderr: bool) -> Console:
    """Without markup: what vendors, logs and tables of the lake say may contain brackets."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=False, width=width)


out = _console(stderr=False)
err = _console(stderr=True)


def hint(command: str) -> None:
    """On one line however long: a command that is broken up cannot be copied."""
    err.print(Text.assemble(("next: ", "dim"), command), soft_wrap=True)


def warn(text: str) -> None:
    err.print(Text.assemble(("warning: ", "yellow"), text))


def confirm(question: str) -> bool:
    return Confirm.ask(Text(question, "prompt"), console=err, default=False)


@contextmanager
def progress() -> Iterator[None]:
    """One line per server with what it is doing now; without a terminal, a plain line per step."""
    if not err.is_terminal:
        with listening(_plain_line):
            yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.fields[name]:<24}", markup=False), BarColumn(bar_width=24))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("{task.description}", markup=False), console=err) as bars:
        lines: dict[str, Any] = {}

        def show(step: Step) -> None:
            name = step.server or "sweep"
            if name not in lines:
                lines[name] = bars.add_task(step.what, total=1.0, name=name)
            bars.update(lines[name], description=step.what, completed=step.share)

        with listening(show):
            yield


_started = time.monotonic()


def _plain_line(step: Step) -> None:
    share = "" if step.share is None else f" {100 * step.share:.0f} %"
    sys.stderr.write(f"{time.monotonic() - _started:7.1f} s  {step.server or 'sweep'}{share}: {step.what}\n")


SWEEPS_SHOWN = 6
_AROUND_RUNS = 8  # lines of `status` beside its lists: titles, frames, and what is left out
_LINES_FOR_ONE = 8  # lines of a terminal for each sweep, and for each server that lives, before its list is cut off


def status(
    runs: Sequence[Any],
    spending: Mapping[str, Any],
    alive: Sequence[Any],
    now: Callable[[str], float],
    *,
    width: int = PIPE_WIDTH,
    height: int | None = None,
) -> RenderableType:
    """now: the time by the clock of a vendor. What counts comes first, then the single runs, those under way first; of
    ended ones the newest are shown, as many as fit into the height."""
    if not runs:
        return Text("No sweep has been started yet. next: tokensweep plan")
    ordered = sorted(runs, key=lambda r: (r.ended_unix_s is not None, -r.started_unix_s))
    sweeps = list(dict.fromkeys(r.sweep_id for r in ordered))
    most_sweeps = SWEEPS_SHOWN if height is None else min(SWEEPS_SHOWN, max(height // _LINES_FOR_ONE, 1))
    most_alive = ROWS_SHOWN if height is None else max(height // _LINES_FOR_ONE, 1)
    parts: list[RenderableType] = [
        _sweep_line(sweep_id, runs, spending.get(sweep_id)) for sweep_id in sweeps[:most_sweeps]
    ]
    wrapped = sum(len(str(line)) > width for line in parts)
    if len(sweeps) > most_sweeps:
        parts.append(f"… and {len(sweeps) - most_sweeps} more sweeps; --json has them all.")
    parts.append(f"{len(alive)} servers alive or not yet proven gone")
    parts += [f"  {row.vendor} {row.name} ({row.server_type}): {row.state.value}" for row in alive[:most_alive]]
    rows = ROWS_SHOWN if height is None else max(height - len(parts) - wrapped - _AROUND_RUNS, 1)
    parts.append(_runs_table(ordered[:rows], now, width))
    if len(runs) > rows:
        parts.append(f"… and {len(runs) - rows} more; --json has them all.")
    return Group(*parts)


def _sweep_line(sweep_id: str, runs: Sequence[Any], money: Any) -> Text:
    states = Counter(r.state.value for r in runs if r.sweep_id == sweep_id)
    text = f"{sweep_id}: " + ", ".join(f"{n} {state}" for state, n in states.most_common())
    if money is not None:
        text += f"; {money.settled_usd:.4f} USD spent, {money.reserved_usd:.4f} USD reserved"
    return Text(text, "bold" if states["running"] else "")


def _runs_table(runs: Sequence[Any], now: Callable[[str], float], width: int) -> Table:
    """On a narrow terminal without the columns that say least."""
    table = Table(title="Server runs", title_justify="left")
    n_columns = 6 if width >= 140 else 5 if width >= 100 else 4
    names = ("server", "state", "seconds", "started", "sweep", "controller")[:n_columns]
    for name in names:
        table.add_column(name, no_wrap=True, justify="right" if name == "seconds" else "left")
    for r in runs:
        seconds = (r.ended_unix_s or now(r.vendor)) - r.started_unix_s
        started = humanize.naturaltime(now(r.vendor) - r.started_unix_s)
        cells = (r.server, r.state.value, f"{seconds:.0f}", started, r.sweep_id, f"pid {r.pid} on {r.host}")
        table.add_row(*cells[: len(names)])
    return table


def watch(view: Callable[[int, int | None], RenderableType], every_s: float) -> None:
    """Show it anew every few seconds, until Ctrl-C; one below the other where there is no terminal. view: takes its
    width and height, None for any."""
    if not out.is_terminal:
        while True:
            out.print(view(out.width, None))
            sys.stdout.flush()
            time.sleep(every_s)
    with Live(view(out.width, out.height), console=out, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(every_s)
            live.update(view(out.width, out.height), refresh=True)


def decisions(server: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table where evidence has room in one; else a line for each decision, and its evidence below."""
    table = Table(title=f"Decisions on {server}", title_justify="left")
    table.add_column("s", justify="right", no_wrap=True)
    for name in ("decision", "about", "reason", "evidence"):
        table.add_column(name, overflow="fold")
    lines: list[RenderableType] = []
    run = ""
    for r in rows:
        if r["server_run_id"] != run:
            run = r["server_run_id"]
            table.add_section()
            table.add_row("", Text(run, "bold"), "", "", "")
            lines.append(Text(run, "bold"))
        evidence = _evidence(r["evidence"])
        table.add_row(f"{r['t_s']:.1f}", r["action"], r["subject"], r["reason"], evidence)
        lines.append(Text(f"{r['t_s']:8.1f} s  {r['action']} {r['subject']}: {r['reason']}"))
        if evidence:
            lines.append(Padding(Text(evidence, "dim"), (0, 0, 0, EVIDENCE_INDENT)))
    parts: list[RenderableType] = [table] if out.width >= EVIDENCE_WIDTH else lines
    for part in parts:
        out.print(part)


def _evidence(text: str | None) -> str:
    values = {k: v for k, v in json.loads(text or "{}").items() if v != ""}
    return ", ".join(f"{k}={_digits(v)}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())


def frame(data: pl.DataFrame) -> None:
    """A table, or one line for each value; of a large answer its first rows."""
    shown = data.head(max(VALUES_SHOWN // max(data.width, 1), 1))
    table = Table()
    for name, dtype in data.schema.items():
        table.add_column(name, justify="right" if dtype.is_numeric() else "left", overflow="fold")
    for row in shown.iter_rows():
        table.add_row(*map(_value, row))
    if data.width > TABLE_COLUMNS and wanted_width(table, out) > out.width:
        _records(shown)
    else:
        out.print(table)
    more = f", the first {shown.height:,} shown; --csv and --json give all" if shown.height < data.height else ""
    err.print(f"{data.height:,} row{'s' * (data.height != 1)}{more}", style="dim")


def _records(data: pl.DataFrame) -> None:
    """One line for each value that is known: what has too many columns to stand side by side."""
    width = max(map(len, data.columns))
    for number, row in enumerate(data.iter_rows(named=True), start=1):
        out.print(Rule(f"row {number}", align="left", style="dim"))
        for name, value in row.items():
            if value is not None:
                out.print(Text.assemble((f"{name:{width}} ", "dim"), _value(value)))


def _value(value: object) -> str:
    return "" if value is None else _digits(value) if isinstance(value, float) else str(value)


def _digits(value: float) -> str:
    """Four that count; of large numbers those before the point, for nobody reads 2.272e+04 hours."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def reap_report(report: Any, recovered: Sequence[Any]) -> None:
    for listed in report.listed:
        state = "complete" if listed.complete else f"INCOMPLETE: {'; '.join(listed.problems)}"
        out.print(
            f"listed {listed.whose} in {', '.join(listed.places)}: {listed.n_resources} resources of ours, {state}"
        )
    for row in report.gone:
        out.print(Text.assemble(("gone", "green"), f" {row.vendor} {row.name}"))
    for row in report.waiting:
        state = f" {row.vendor} {row.name}: {row.last_error or row.state.value}"
        out.print(Text.assemble(("not proven gone yet", "yellow"), state))
    for row in report.elsewhere:
        state = f" {row.vendor} {row.name}: it is in the account {row.account}, which these credentials do not see"
        out.print(Text.assemble(("not proven gone yet", "yellow"), state))
    for decision in report.braked:
        why = f" {decision.subject}: {decision.reason}; `tokensweep reap --force` goes on"
        out.print(Text.assemble(("held by the brake", "red"), why))
    for problem in report.errors:
        out.print(Text.assemble(("error", "red"), f" {problem}"))
    for r in recovered:
        how = "its measured cells are in the lake" if r.landed else r.problem
        out.print(f"recovered {r.run.server_run_id}: {how}")
    if not (report.gone or report.waiting or report.elsewhere or report.braked or report.errors or recovered):
        out.print("Nothing to do.")


MOST_IN_USE = 10


def leaks(report: Any) -> None:
    """What is left, for how long and how much; and the proof: what was listed for this, where and when."""
    out.print(f"{report.verdict}.", style="bold green" if report.clean else "bold red")
    if report.items or report.unproven:
        table = Table()
        for name in ("vendor", "place", "kind", "name", "why"):
            table.add_column(name, overflow="fold")
        for name in ("age", "USD/h", "USD so far"):
            table.add_column(name, justify="right", overflow="fold")
        for leak in (*report.items, *report.unproven):
            age = "unknown" if leak.age_s is None else humanize.precisedelta(leak.age_s, format="%0.0f")
            so_far = "" if not leak.usd_so_far else f"{leak.usd_so_far:.4f}"
            table.add_row(leak.vendor, leak.place, leak.kind, leak.name, leak.why, age, leak.price, so_far)
        out.print(table)
    for decision in report.in_use[:MOST_IN_USE]:
        left_s = decision.evidence["left_s"]
        left = (
            "" if left_s is None else f", ends in {humanize.precisedelta(max(left_s, 0), format='%0.0f')} at the latest"
        )
        out.print(f"in use: {decision.subject}{left}")
    if len(report.in_use) > MOST_IN_USE:
        out.print(f"in use: {len(report.in_use) - MOST_IN_USE} more")
    for leak in report.watched:
        out.print(
            f"not answered: the create of {leak.vendor}/{leak.place}/{leak.name} is looked for until its deadline"
        )
    for listed in report.listed:
        places = ", ".join(listed.places)
        shown = f"{listed.n_resources} of ours in {places}"
        out.print(f"listed: {listed.whose} at {listed.when}, {shown}: {listed.state}", highlight=False)
    if not report.clean:
        hint("tokensweep reap")


def checks(found: Sequence[Any]) -> None:
    for check in found:
        mark = {True: ("ok  ", "green"), None: ("?   ", "yellow"), False: ("FAIL", "red")}[check.ok]
        out.print(Text.assemble(mark, f" {check.name}: {check.detail}"))
        if not check.ok and check.next_step:
            out.print(f"     {check.next_step}")
