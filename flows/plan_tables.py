"""A plan for people: the first rows, of a long one what each vendor comes to, and why the rest is not run.

Thousands of rows in a table help nobody and take seconds; `every` lists them all as plain lines, as fast as they are
read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import groupby

import humanize
from rich.table import Table
from rich.text import Text

from flows.render import ROWS_SHOWN, out
from flows.width import NUMBER, fitting, without
from tasks.domain.choose import Choice, Selection
from tasks.domain.sweep_plan import PlannedServer, SweepPlan

NO_MONEY = "no money left under the cap"
_RIGHT = frozenset(
    {"vCPU", "memory", "USD/h", "minutes", "USD", "measure", "predict", "known", "left out", "to run", "not run"}
)
_SPARE = ("models", NUMBER + "memory", NUMBER + "minutes", NUMBER + "vCPU", "vendor")


def plan(sweep_plan: SweepPlan, *, every: bool = False) -> None:
    """`every`: all server types instead of the first."""
    servers = sweep_plan.servers
    shown = servers if every else servers[:ROWS_SHOWN]
    names = ("vendor", "server", "vCPU", "memory", "USD/h", "minutes", "USD", "models", "run")
    _rows(f"Plan of {sweep_plan.sweep_id}", names, map(_planned, shown), as_lines=every)
    if len(servers) > len(shown):
        out.print(f"… and {len(servers) - len(shown):,} more: --all lists them, each with its reason; --json too.\n")
    if len(servers) > ROWS_SHOWN:
        _by_vendor(servers)
        _reasons(why_not(servers))
    total = (f"TOTAL {len(sweep_plan.to_run()):,} of {len(servers):,} server types run", "bold")
    usd = (
        f", {sweep_plan.low_usd:,.2f}–{sweep_plan.high_usd:,.2f} USD "
        f"(worst case, if every gate passes only just); cap {sweep_plan.max_usd:,} USD"
    )
    out.print(Text.assemble(total, usd))


def why_not(servers: Iterable[PlannedServer]) -> Counter[str]:
    """How many are not run, by reason."""
    return Counter(NO_MONEY if s.over_budget else s.why for s in servers if not s.run)


def choice(
    found: Selection, prices: Mapping[str, Decimal], skipped: Sequence[PlannedServer], max_usd: float, *, every: bool
) -> None:
    """What is measured and what predicted for the money. prices: USD/h by name. skipped: what cannot be run."""
    title = f"What {max_usd:,.2f} USD measure"
    order = ("measure", "known", "predict", "leave out")
    choices = sorted(found.choices, key=lambda c: order.index(what(c))) if not every else found.choices
    shown = choices if every else choices[:ROWS_SHOWN]
    rows = [(c.machine.name, what(c), _price(prices[c.machine.name]), _usd(c), _why(c)) for c in shown]
    if every:
        rows += [
            (f"{s.offer.vendor}/{s.offer.name}", "not run", _price(s.offer.usd_per_hour), "", s.why) for s in skipped
        ]
    _rows(title, ("server", "what", "USD/h", "USD", "why"), rows, as_lines=every)
    n_more = len(found.choices) + len(skipped) - len(shown)
    if n_more and not every:
        out.print(f"… and {n_more:,} more: --all lists them, each with its reason; --json too.\n")
    if len(found.choices) > ROWS_SHOWN:
        _choice_by_vendor(found)
    _reasons(why_not(skipped))
    error = f", median error of those ±{found.expected_error:.0%}" if found.predicted else ""
    measured = (f"{len(found.measured):,} measured for about {found.usd:,.2f} USD", "bold")
    rest = (
        f", {len(found.predicted):,} predicted{error}; {len(found.known):,} known already, "
        f"{len(found.unreached):,} left out: no money for them."
    )
    out.print(Text.assemble(measured, rest))


def what(choice: Choice) -> str:
    """One word for what becomes of it."""
    if choice.measure:
        return "measure"
    if choice.from_ == choice.machine:
        return "known"
    return "predict" if choice.from_ else "leave out"


def _why(choice: Choice) -> str:
    if choice.from_ and choice.from_ != choice.machine:
        return f"from {choice.from_.name}"
    if choice.measure and not choice.machine.cpu_model:
        return "its CPU is not known yet, so no twin of it is"
    return choice.why


def _usd(choice: Choice) -> str:
    return f"{choice.usd:.4f}" if choice.measure else ""


def _price(usd_per_hour: Decimal) -> str:
    return f"{usd_per_hour.normalize():f}"


def _planned(s: PlannedServer) -> tuple[str, ...]:
    return (
        s.offer.vendor,
        s.offer.name,
        str(s.offer.vcpus),
        humanize.naturalsize(s.offer.memory_bytes, binary=True),
        _price(s.offer.usd_per_hour),
        f"{s.low_s / 60:.0f}–{s.high_s / 60:.0f}",
        f"{s.low_usd}–{s.high_usd}",
        " ".join(s.models),
        "yes" if s.run else f"no: {s.why}",
    )


def _rows(title: str, names: Sequence[str], rows: Iterable[Sequence[str]], *, as_lines: bool) -> None:
    """A table; or, for thousands of rows, lines whose columns are only padded."""
    if not as_lines:
        labels = [NUMBER + name if name in _RIGHT else name for name in names]
        shown = [dict(zip(labels, map(_coloured, row), strict=True)) for row in rows]
        if shown:
            table, left_out = fitting(title, shown, out, text=("models", "run", "why"), spare=_SPARE)
            out.print(table)
            out.print(without(left_out), style="dim", end="\n" if left_out else "")
        return
    lines = [names, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    for line in lines:
        cells = [
            cell.rjust(width) if name in _RIGHT else cell.ljust(width)
            for cell, width, name in zip(line, widths, names, strict=True)
        ]
        out.file.write("  ".join(cells).rstrip() + "\n")
    out.file.write("\n")


def _coloured(cell: str) -> str | Text:
    if cell in ("yes", "measure"):
        return Text(cell, "green")
    return Text(cell, "yellow") if cell.startswith("no: ") or cell == "leave out" else cell


def _table(title: str, names: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in names:
        table.add_column(name, justify="right" if name in _RIGHT else "left", overflow="fold")
    return table


def _by_vendor(servers: Sequence[PlannedServer]) -> None:
    """Of a long plan, what people want to know first: how many of each vendor run, and for how much."""
    table = _table("By vendor", ("vendor", "to run", "not run", "USD"))
    for vendor, found in groupby(sorted(servers, key=lambda s: s.offer.vendor), key=lambda s: s.offer.vendor):
        ours = list(found)
        run = [s for s in ours if s.run]
        low = sum((s.low_usd for s in run), Decimal(0))
        high = sum((s.high_usd for s in run), Decimal(0))
        table.add_row(vendor, f"{len(run):,}", f"{len(ours) - len(run):,}", f"{low:,.2f}–{high:,.2f}" if run else "")
    out.print(table)


def _choice_by_vendor(found: Selection) -> None:
    table = _table("By vendor", ("vendor", "measure", "USD", "predict", "known", "left out"))
    for vendor in dict.fromkeys(c.machine.vendor for c in found.choices):
        ours = [c for c in found.choices if c.machine.vendor == vendor]
        n = Counter(map(what, ours))
        usd = sum(c.usd for c in ours)
        table.add_row(
            vendor,
            f"{n['measure']:,}",
            f"{usd:,.2f}",
            f"{n['predict']:,}",
            f"{n['known']:,}",
            f"{n['leave out']:,}",
        )
    out.print(table)


def _reasons(reasons: Counter[str]) -> None:
    """Why server types are not run, the commonest reason first."""
    if not reasons:
        return
    table = Table(title="Not run, and why", title_justify="left", title_style="bold")
    table.add_column("servers", justify="right")
    table.add_column("why")
    for why, n in reasons.most_common():
        table.add_row(f"{n:,}", why)
    out.print(table)
