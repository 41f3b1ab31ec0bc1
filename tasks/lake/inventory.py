"""Which files of a lake can be read, judged by their footers; the others are named, never fatal."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from tasks.domain.errors import ConfigError
from tasks.lake.columns import COMMON, F64, I32, I64, Table
from tasks.lake.schema import SERVER_RUNS, TABLES

ProblemKind = Literal["damaged", "foreign", "incompatible", "missing", "uncommitted"]

# A narrower type in a file reads unchanged as the wider type of the schema.
_WIDENS: dict[pl.DataType, tuple[pl.DataType, ...]] = {
    I64: (pl.Int8(), pl.Int16(), I32, pl.UInt8(), pl.UInt16(), pl.UInt32()),
    I32: (pl.Int8(), pl.Int16(), pl.UInt8(), pl.UInt16()),
    F64: (pl.Float32(),),
}


@dataclass(frozen=True)
class LakeProblem:
    """One file that was left out, and why.

    damaged: not readable as Parquet. foreign: no file of this lake. incompatible: a column has another type, or one
    that is never null is missing. missing: a committed run counts rows that have no readable file. uncommitted: the
    run has no `server_runs` file; it is being landed now, or its landing was killed and is to be repeated.
    """

    kind: ProblemKind
    table: str
    path: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind} {self.path}: {self.detail}"


@dataclass
class TableFiles:
    """Readable files of one table. `alike`: every one has exactly the columns of the schema."""

    files: list[Path] = field(default_factory=list)
    alike: bool = True


@dataclass
class Inventory:
    folder: Path
    tables: dict[str, TableFiles]
    problems: list[LakeProblem]


def take_inventory(folder: Path) -> Inventory:
    """Look through the folder; a lake that does not exist yet is an empty one. Raises ConfigError for a file."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"The lake {folder} is a file.", next_step="Give the folder that holds server_runs/.")
    found = Inventory(folder, {t.name: TableFiles() for t in TABLES}, [])
    committed = _scan(SERVER_RUNS, None, found)
    for table in TABLES:
        if table is not SERVER_RUNS:
            _scan(table, committed, found)
    return found


def _scan(table: Table, committed: set[str] | None, found: Inventory) -> set[str]:
    """Sort the table's files; returns `sweep=<id>/<file>` of those that can be read."""
    kept: set[str] = set()
    base = found.folder / table.name
    for path in sorted(base.rglob("*.parquet")) if base.is_dir() else []:
        name = path.relative_to(base).as_posix()
        if path.name.startswith("."):
            continue
        if not name.startswith("sweep=") or name.count("/") != 1:
            found.problems.append(
                LakeProblem("foreign", table.name, str(path), "it is not at sweep=<id>/<run>.parquet")
            )
            continue
        problem, alike = _judge(table, path)
        if problem is None and committed is not None and name not in committed:
            problem = LakeProblem("uncommitted", table.name, str(path), "its server run has no row of server_runs")
        if problem is not None:
            found.problems.append(problem)
            continue
        kept.add(name)
        found.tables[table.name].files.append(path)
        found.tables[table.name].alike &= alike
    return kept


def _judge(table: Table, path: Path) -> tuple[LakeProblem | None, bool]:
    """What is wrong with the file, if anything, and whether its columns are exactly the table's."""
    try:
        schema = dict(pl.scan_parquet(path, glob=False, hive_partitioning=False).collect_schema())
    except (pl.exceptions.PolarsError, OSError, ValueError) as exc:
        text = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        return LakeProblem("damaged", table.name, str(path), f"it cannot be read as Parquet ({text})"), False
    if schema == table.dtypes:
        return None, True
    if not any(c.name in schema for c in COMMON):
        return LakeProblem("foreign", table.name, str(path), f"it has no column of {table.name}"), False
    for column in table.columns:
        have = schema.get(column.name)
        if have is None and column.required:
            return _incompatible(table, path, f"column {column.name} is missing"), False
        if have is not None and have != column.dtype and have not in _WIDENS.get(column.dtype, ()):
            return _incompatible(table, path, f"column {column.name} is {have}, not {column.dtype}"), False
    return None, False


def _incompatible(table: Table, path: Path, detail: str) -> LakeProblem:
    return LakeProblem("incompatible", table.name, str(path), detail)
