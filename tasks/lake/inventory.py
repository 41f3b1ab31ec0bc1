"""Which files of a lake can be read, judged by their footers; the others are named, never fatal."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from tasks.domain.errors import ConfigError
from tasks.lake.columns import COMMON, F64, I32, I64, Table
from tasks.lake.location import is_compacted
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
    """Readable files of one table. `alike`: every one has exactly the columns of the schema.

    `hidden`: runs in a file that are not to be read there, because another file of their sweep shows them: their own
    after a second landing, or a newer compacted one where the older could not be removed yet.
    """

    files: list[Path] = field(default_factory=list)
    alike: bool = True
    hidden: dict[Path, frozenset[str]] = field(default_factory=dict)


@dataclass
class Inventory:
    """`homes`: by sweep folder and server run, the name of the file that shows it, for sweeps that were compacted."""

    folder: Path
    tables: dict[str, TableFiles]
    problems: list[LakeProblem]
    homes: dict[tuple[str, str], str] = field(default_factory=dict)


def take_inventory(folder: Path) -> Inventory:
    """Look through the folder; a lake that does not exist yet is an empty one. Raises ConfigError for a file."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"The lake {folder} is a file.", next_step="Give the folder that holds server_runs/.")
    found = Inventory(folder, {t.name: TableFiles() for t in TABLES}, [])
    _scan(SERVER_RUNS, None, found)
    committed = {_name(path) for path in found.tables[SERVER_RUNS.name].files}
    runs = _runs_of_compacted_sweeps(found)
    for table in TABLES:
        if table is not SERVER_RUNS:
            _scan(table, committed, found)
        _hide(found.tables[table.name], runs, found.homes)
    return found


def _runs_of_compacted_sweeps(found: Inventory) -> dict[str, frozenset[str]]:
    """Runs in each server_runs file (`sweep=<id>/<stem>`) of a sweep that was compacted; fills `homes`.

    A run's own file stands before a compacted one, a newer compacted one before an older.
    """
    paths = found.tables[SERVER_RUNS.name].files
    sweeps = {path.parent.name for path in paths if is_compacted(path.stem)}
    runs: dict[str, frozenset[str]] = {}
    for path in sorted((p for p in paths if p.parent.name in sweeps), key=lambda p: (not is_compacted(p.stem), p.stem)):
        ids = pl.read_parquet(path, columns=["server_run_id"], glob=False, hive_partitioning=False)["server_run_id"]
        runs[_name(path)] = frozenset(ids)
        found.homes.update({(path.parent.name, run): path.stem for run in ids})  # the later in this order wins
    return runs


def _hide(have: TableFiles, runs: dict[str, frozenset[str]], homes: dict[tuple[str, str], str]) -> None:
    """Note per file the runs that another one shows; a file without any other is left out."""
    kept = []
    for path in have.files:
        here = runs.get(_name(path), frozenset())
        hidden = frozenset(run for run in here if homes[path.parent.name, run] != path.stem)
        if hidden:
            have.hidden[path] = hidden
        if not here or hidden != here:
            kept.append(path)
    have.files = kept


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def _scan(table: Table, committed: set[str] | None, found: Inventory) -> None:
    """Sort the table's files; `committed`: `sweep=<id>/<stem>` of the server_runs files that can be read."""
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
        if committed is not None and (path.parent.name, path.stem) in found.homes and _name(path) not in committed:
            continue  # its run was compacted, and the compaction could not remove it yet
        problem, alike = _judge(table, path)
        if problem is None and committed is not None and _name(path) not in committed:
            problem = LakeProblem("uncommitted", table.name, str(path), "its server run has no row of server_runs")
        if problem is not None:
            found.problems.append(problem)
            continue
        found.tables[table.name].files.append(path)
        found.tables[table.name].alike &= alike


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
