"""Tables on narrow terminals: names and numbers stay whole, text wraps, and columns that can be spared give way."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

Cell = str | Text
ANY_WIDTH = 100_000
NUMBER = "> "
"""Columns whose name begins so are numbers: right-justified."""


def fitting(
    title: str, rows: Sequence[Mapping[str, Cell]], console: Console, *, text: Collection[str], spare: Sequence[str]
) -> tuple[Table, list[str]]:
    """The table, and the names of the columns that had no room. Columns that say nothing in any row are left out.

    text: columns that may wrap. spare: columns that may go, the first one first.
    """
    present = [name for name in rows[0] if any(row[name] for row in rows)]
    going = [name for name in spare if name in present]
    for narrow, n_gone in [(False, 0), *((True, n) for n in range(len(going) + 1))]:
        left_out = going[:n_gone]
        table = _table(title, [name for name in present if name not in left_out], rows, text, narrow=narrow)
        if least_width(table, console) <= console.width:
            _share_out(table, console)
            break
    return table, [name.removeprefix(NUMBER) for name in left_out]


def _share_out(table: Table, console: Console) -> None:
    """Give columns of text their longest word, and the first of them what is left over: rich would make them alike, and
    break words for it."""
    left = console.width - least_width(table, console)
    for column in (column for column in table.columns if not column.no_wrap):
        least, wanted = _measured(column, console)
        column.width = least + min(left, wanted - least)
        left -= column.width - least


def _measured(column: Column, console: Console) -> tuple[int, int]:
    """Its longest word, and its longest line."""
    options = console.options.update(max_width=ANY_WIDTH)
    cells = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
    return max(cell.minimum for cell in cells), max(cell.maximum for cell in cells)


def without(left_out: Sequence[str]) -> str:
    """What to say of columns that had no room."""
    return f"No room here for: {', '.join(left_out)}; a wider terminal and --json have all." if left_out else ""


def least_width(table: Table, console: Console) -> int:
    """What it takes to cut nothing and to break no word."""
    texts = [_measured(column, console) for column in table.columns if not column.no_wrap]
    return wanted_width(table, console) - sum(wanted - least for least, wanted in texts)


def wanted_width(table: Table, console: Console) -> int:
    """What it takes to wrap nothing."""
    return Measurement.get(console, console.options.update(max_width=ANY_WIDTH), table).maximum


def _table(
    title: str, names: Sequence[str], rows: Sequence[Mapping[str, Cell]], text: Collection[str], *, narrow: bool
) -> Table:
    """narrow: headers one word below the other, columns closer together."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.collapse_padding, table.show_edge = narrow, not narrow
    for name in names:
        header = name.removeprefix(NUMBER)
        table.add_column(
            header.replace(" ", "\n") if narrow else header,
            justify="right" if name.startswith(NUMBER) else "left",
            no_wrap=name not in text,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table
