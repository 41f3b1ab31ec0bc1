"""The lake as a DuckDB database: one view per table, the views and macros of `sql/`, comments on all of them.

The database is in memory and closed to the world once it is set up: it reads files of the lake's folder and no
others, loads no extension, and its configuration is locked. DuckDB cannot forbid writing inside an allowed folder,
so `query` lets through only statements that read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from tasks.domain.errors import ConfigError, LandingError
from tasks.lake.arrow import ArrowStream
from tasks.lake.columns import Table, duckdb_type
from tasks.lake.inventory import Inventory, LakeProblem, take_inventory
from tasks.lake.objects import RemoteLake, local_folder
from tasks.lake.schema import SERVER_RUNS, TABLE, TABLES
from tasks.lake.sql_catalogue import CATALOGUE, SqlObject

_READING = (duckdb.StatementType.SELECT,)
_OF_THE_SQL = (
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ConversionException,
    duckdb.ParserException,
    duckdb.PermissionException,
)
"""Errors that no file can be the cause of."""
_EXPLAIN = re.compile(r"\s*explain(\s+analyze)?\b", re.IGNORECASE)


@dataclass
class Lake:
    """An open lake. It shows the runs that were committed when it was opened; open it again to see newer ones."""

    folder: Path
    con: duckdb.DuckDBPyConnection
    problems: list[LakeProblem]

    def __enter__(self) -> Lake:
        return self

    def __exit__(self, *exc: object) -> None:
        self.con.close()


def connect(lake_root: str | Path | RemoteLake) -> duckdb.DuckDBPyConnection:
    """The connection of `open_lake`, for notebooks and other tools that speak DuckDB."""
    return open_lake(lake_root).con


def open_lake(lake_root: str | Path | RemoteLake, *, documented: bool = True) -> Lake:
    """Open a lake for reading; one that does not exist is empty. Files that cannot be read are in `problems`.

    `documented`: with a comment on every view, macro and column, which takes as long as the rest of opening.
    One in object storage is brought to this machine first. Raises ConfigError for an address that cannot be opened.
    """
    found = take_inventory(local_folder(lake_root))
    con = duckdb.connect(":memory:")
    con.execute("SET TimeZone = 'UTC'")
    con.execute("SET python_enable_replacements = false")
    for table in TABLES:
        _create_table_view(con, table, found, documented)
    _note_missing(con, found)
    con.execute("CREATE TABLE lake_problems (kind VARCHAR, table_name VARCHAR, path VARCHAR, detail VARCHAR)")
    for p in found.problems:
        con.execute("INSERT INTO lake_problems VALUES (?, ?, ?, ?)", [p.kind, p.table, p.path, p.detail])
    for item in CATALOGUE:
        con.execute(item.sql)
        if documented:
            _document(con, item)
    _close_to_the_world(con, found.folder)
    return Lake(found.folder, con, found.problems)


def _create_table_view(con: duckdb.DuckDBPyConnection, table: Table, found: Inventory, documented: bool) -> None:
    """A typed empty row set gives types and columns that no file has; an empty lake is nothing else.

    server_runs is read once and kept: it is small, and most views join it.
    """
    typed = ", ".join(f"NULL::{duckdb_type(c.dtype)} AS {c.name}" for c in table.columns)
    source = f"SELECT {typed} WHERE false"
    have = found.tables[table.name]
    options = f"union_by_name = {'false' if have.alike else 'true'}, hive_partitioning = false"
    whole = [path for path in have.files if path not in have.hidden]
    if whole:
        files = ", ".join(_literal(str(path)) for path in whole)
        source += f" UNION ALL BY NAME FROM read_parquet([{files}], {options})"
    for path in (path for path in have.files if path in have.hidden):
        runs = ", ".join(map(_literal, sorted(have.hidden[path])))
        source += f" UNION ALL BY NAME FROM read_parquet([{_literal(str(path))}], {options})"
        source += f" WHERE server_run_id NOT IN ({runs})"
    names = ", ".join(c.name for c in table.columns)
    kind = "TABLE" if table is SERVER_RUNS else "VIEW"
    # In the order of thousands of files each thread would hold in memory what others are not ready for.
    con.execute("SET preserve_insertion_order = false")
    con.execute(f"CREATE {kind} {table.name} AS SELECT {names} FROM ({source})")  # noqa: S608 - names of the schema
    con.execute("RESET preserve_insertion_order")
    if documented:
        _comment(con, kind, table.name, table.comment, {c.name: _with_unit(c.comment, c.unit) for c in table.columns})


def _note_missing(con: duckdb.DuckDBPyConnection, found: Inventory) -> None:
    """A committed run says how many rows it landed in each table: a file that went away does not go unseen."""
    present = {name: {(p.parent.name, p.stem) for p in have.files} for name, have in found.tables.items()}
    named = {(p.table, Path(p.path).parent.name, Path(p.path).stem) for p in found.problems}
    for sweep_id, run_id, landed in con.execute(
        "SELECT sweep_id, server_run_id, landed_rows FROM server_runs WHERE landed_rows IS NOT NULL ORDER BY ALL"
    ).fetchall():
        for name, n_rows in sorted(json.loads(landed).items()):
            where = (f"sweep={sweep_id}", found.homes.get((f"sweep={sweep_id}", run_id), run_id))
            if n_rows and name in TABLE and where not in present[name] and (name, *where) not in named:
                path = found.folder / name / where[0] / f"{where[1]}.parquet"
                detail = f"server run {run_id} landed {n_rows} rows there"
                found.problems.append(LakeProblem("missing", name, str(path), detail))


def _document(con: duckdb.DuckDBPyConnection, item: SqlObject) -> None:
    columns = {}
    if item.kind == "VIEW":
        for (name,) in con.execute(f"SELECT column_name FROM (DESCRIBE {item.name})").fetchall():  # noqa: S608
            column = item.column(name)
            columns[name] = _with_unit(column.comment, column.unit) if column else ""
    _comment(con, item.kind, item.name, item.comment, columns)


def _comment(con: duckdb.DuckDBPyConnection, kind: str, name: str, comment: str, columns: dict[str, str]) -> None:
    statements = [f"COMMENT ON {kind} {name} IS {_literal(comment)}"]
    statements += [f"COMMENT ON COLUMN {name}.{column} IS {_literal(text)}" for column, text in columns.items()]
    con.execute(";".join(statements))


def _with_unit(comment: str, unit: str) -> str:
    return f"[{unit}] {comment}" if unit else comment


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _close_to_the_world(con: duckdb.DuckDBPyConnection, folder: Path) -> None:
    con.execute("SET autoinstall_known_extensions = false")
    con.execute("SET autoload_known_extensions = false")
    con.execute("SET temp_directory = ''")
    con.execute(f"SET allowed_directories = [{_literal(str(folder))}]")
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")


def query(lake: Lake, sql: str, parameters: Sequence[Any] = ()) -> pl.DataFrame:
    """The rows of one reading statement; `parameters` stand for its question marks.

    Raises ConfigError for SQL that is wrong, writes, or is more than one statement; LandingError, naming the
    files, when the lake has a file whose footer is whole and whose data are not.
    """
    with _explained(lake):
        _check_reads_only(lake, sql)
        relation = lake.con.sql(sql, params=list(parameters)) if parameters else lake.con.sql(sql)
        if relation is None:
            return pl.DataFrame()
        intervals = [c for c, t in zip(relation.columns, relation.types, strict=True) if "INTERVAL" in str(t)]
        if intervals:  # Polars has no such type
            casts = ", ".join(f'CAST("{c}" AS VARCHAR) AS "{c}"' for c in intervals)
            relation = relation.project(f"* REPLACE ({casts})")
        return pl.DataFrame(ArrowStream(relation.__arrow_c_stream__()))


@contextmanager
def _explained(lake: Lake) -> Iterator[None]:
    try:
        yield
    except pl.exceptions.DuplicateError as exc:
        raise ConfigError(f"The query gives two columns one name: {exc}.", next_step="Name them with AS.") from exc
    except (duckdb.Error, pl.exceptions.ComputeError) as exc:  # rows reach Polars as a stream that may break
        damaged = [] if isinstance(exc, _OF_THE_SQL) else _damaged_data(lake)
        if damaged:
            raise LandingError(
                f"The lake has files that cannot be read to the end: {', '.join(map(str, damaged))}.",
                next_step="Move them out of the lake, then land their server runs again.",
            ) from exc
        raise ConfigError(
            f"The query cannot be answered: {_first_lines(str(exc)).rstrip('.')}.",
            next_step="Views: tokensweep query --list; columns: DESCRIBE v_cells.",
        ) from exc


def _check_reads_only(lake: Lake, sql: str) -> None:
    statements = lake.con.extract_statements(sql)
    if len(statements) != 1:
        raise ConfigError(f"One statement at a time, not {len(statements)}.", next_step="Ask them one after the other.")
    kind, text = statements[0].type, sql
    while kind == duckdb.StatementType.EXPLAIN and (match := _EXPLAIN.match(text)):
        text = text[match.end() :]
        inner = lake.con.extract_statements(text)
        kind = inner[0].type if len(inner) == 1 else duckdb.StatementType.INVALID
    if kind == duckdb.StatementType.MULTI:
        raise ConfigError(
            "This PIVOT would have to look at the data twice.", next_step="Name its columns: PIVOT ... ON x IN (a, b)."
        )
    if kind not in _READING:
        raise ConfigError(
            f"The lake is only read, and this is a statement of kind {str(kind).rsplit('.', 1)[-1]}.",
            next_step="Use SELECT, FROM, WITH, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN.",
        )


def _damaged_data(lake: Lake) -> list[Path]:
    """Files whose data cannot be read although their footer can; looked for only when a query fails."""
    return [path for path in _files(lake) if not _reads(path)]


def _files(lake: Lake) -> Iterable[Path]:
    for have in take_inventory(lake.folder).tables.values():
        yield from have.files


def _reads(path: Path) -> bool:
    try:
        pl.read_parquet(path, glob=False, hive_partitioning=False)
    except (pl.exceptions.PolarsError, OSError, ValueError):
        return False
    return True


def _first_lines(text: str) -> str:
    return " ".join(line.strip() for line in text.split("\n\n")[0].splitlines() if line.strip())
