"""Landing: the rows of one server run become files of the lake, all or nothing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl

from tasks.domain.errors import LandingError
from tasks.lake.columns import BOOL, F64, I32, I64, TEXT, TIME, Column, Table
from tasks.lake.location import checked_name, run_file
from tasks.lake.objects import RemoteLake, writable_folder
from tasks.lake.schema import SERVER_RUNS, TABLE, TABLES

_TEMPORARY = ".tmp"


@dataclass(frozen=True)
class LandedRun:
    """What one landing wrote. `n_rows` is per table; tables without rows have no file."""

    files: tuple[Path, ...]
    n_rows: dict[str, int]


def land(
    lake_root: str | Path | RemoteLake, server_run_id: str, rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> LandedRun:
    """Write all rows of one server run; they show once its `server_runs` file is there, which comes last.

    A second call with the same rows writes the same bytes. One server run has one lander at a time. Raises
    LandingError, with nothing changed, for rows that do not fit the schema; also when the disk refuses, and then
    landing again is the remedy.
    """
    checked_name("server run id", server_run_id)
    sweep_id = _check_identity(server_run_id, rows)
    n_rows = {t.name: len(rows.get(t.name, ())) for t in TABLES}
    frames = {t.name: _frame(t, rows.get(t.name, ())) for t in TABLES if t is not SERVER_RUNS}
    commit = [{**rows[SERVER_RUNS.name][0], "landed_rows": json.dumps(n_rows, sort_keys=True)}]
    frames[SERVER_RUNS.name] = _frame(SERVER_RUNS, commit)
    with writable_folder(lake_root) as folder:
        paths = {name: run_file(folder, TABLE[name], sweep_id, server_run_id) for name in frames}
        try:
            written, gone = _write_all(frames, paths)
        except (OSError, pl.exceptions.PolarsError) as exc:
            raise LandingError(
                f"The rows of server run {server_run_id} could not be written to {folder}: {exc}.",
                next_step="Make room or give write access, then land it again; nothing of it shows until then.",
            ) from exc
        if isinstance(lake_root, RemoteLake):
            lake_root.remove(gone)
            lake_root.push(written)
    return LandedRun(tuple(written), n_rows)


def _write_all(frames: Mapping[str, pl.DataFrame], paths: Mapping[str, Path]) -> tuple[list[Path], list[Path]]:
    """Files written, in the order of the frames, the commit last; and those removed because they have no rows now."""
    written: list[Path] = []
    gone: list[Path] = []
    for name, frame in frames.items():
        path = paths[name]
        _remove_leftovers(path)
        if frame.height:
            write_parquet(path, frame)
            written.append(path)
        elif path.exists():
            remove_file(path)
            gone.append(path)
    return written, gone


def _check_identity(server_run_id: str, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The one sweep that all rows name. Raises LandingError when they disagree on what they are rows of."""
    unknown = sorted(set(rows) - set(TABLE))
    if unknown:
        raise LandingError(f"The lake has no table {', '.join(unknown)}.", next_step=f"Tables: {', '.join(TABLE)}.")
    runs = rows.get(SERVER_RUNS.name, ())
    if len(runs) != 1:
        raise LandingError(f"Server run {server_run_id} must land exactly one row of server_runs, not {len(runs)}.")
    sweep_id = str(runs[0].get("sweep_id"))
    checked_name("sweep id", sweep_id)
    for name, table_rows in rows.items():
        for row in table_rows:
            if row.get("sweep_id") != sweep_id or row.get("server_run_id") != server_run_id:
                raise LandingError(
                    f"A row of {name} names sweep {row.get('sweep_id')!r} and server run {row.get('server_run_id')!r}, "
                    f"but {sweep_id!r} and {server_run_id!r} are being landed."
                )
    return sweep_id


def _frame(table: Table, rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """The rows under the table's explicit schema; columns that a row lacks are null."""
    known = {c.name for c in table.columns}
    for row in rows:
        unknown = sorted(set(row) - known)
        if unknown:
            raise LandingError(f"{table.name}.{unknown[0]} is no column of the lake; its value is {row[unknown[0]]!r}.")
    data = {c.name: [_checked(table, c, row.get(c.name)) for row in rows] for c in table.columns}
    _check_key(table, data)
    try:
        return pl.DataFrame(data, schema=table.dtypes, strict=True)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as exc:
        raise LandingError(f"Rows of {table.name} do not fit their schema: {exc}.") from exc


def _check_key(table: Table, data: Mapping[str, list[Any]]) -> None:
    seen: set[tuple[Any, ...]] = set()
    for key in zip(*(data[name] for name in table.key), strict=True):
        if key in seen:
            named = ", ".join(f"{name}={value!r}" for name, value in zip(table.key, key, strict=True))
            raise LandingError(f"{table.name} would hold two rows of {named}.")
        seen.add(key)


def _checked(table: Table, column: Column, value: Any) -> Any:
    """The value itself; raises LandingError naming table, column and value when the column cannot hold it."""
    if value is None:
        if column.required:
            raise LandingError(f"{table.name}.{column.name} may not be null.")
        return None
    fault = _fault(column, value)
    if fault:
        raise LandingError(f"{table.name}.{column.name} cannot hold {value!r} of type {type(value).__name__}: {fault}.")
    if column.dtype == TEXT:
        return _unicode(value)
    return float(value) if column.dtype == F64 else value


def _unicode(text: str) -> str:
    """Parquet holds UTF-8 only; half a surrogate pair, as JSON may carry one, becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _fault(column: Column, value: Any) -> str:
    dtype, is_bool = column.dtype, isinstance(value, bool)
    if dtype == TEXT:
        if not isinstance(value, str):
            return "it takes text"
        return f"it takes {', '.join(column.values)}" if column.values and value not in column.values else ""
    if dtype == BOOL:
        return "" if is_bool else "it takes true or false"
    if dtype in (I32, I64):
        limit = 2**31 if dtype == I32 else 2**63
        if is_bool or not isinstance(value, int):
            return "it takes whole numbers"
        return "" if -limit <= value < limit else "it is out of range"
    if dtype == F64:
        if is_bool or not isinstance(value, (int, float)):
            return "it takes numbers"
        return "" if math.isfinite(value) else "it takes finite numbers"
    if dtype == TIME:
        is_utc = isinstance(value, datetime) and value.utcoffset() == timedelta(0)
        return "" if is_utc else "it takes times in UTC"
    return _money_fault(value)


def _money_fault(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        return "money is a Decimal"
    amount = Decimal(value)
    if not amount.is_finite() or abs(amount) >= Decimal(10) ** 9:
        return "it is out of range"
    return "" if amount == amount.quantize(Decimal("1e-9")) else "it has more than nine decimals"


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Bytes first, on the disk, then the name: a reader sees the whole file or none."""
    with _written_whole(path) as temporary, temporary.open("wb") as file:
        frame.write_parquet(file, compression="zstd", statistics=True)


def write_parquet_from(path: Path, frame: pl.LazyFrame) -> None:
    """The same for rows that need not fit the memory."""
    with _written_whole(path) as temporary:
        frame.sink_parquet(temporary, compression="zstd", statistics=True, row_group_size=122_880)


def remove_file(path: Path) -> None:
    """Remove it so that it stays removed; one that is gone is no error."""
    path.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{_TEMPORARY}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """mkdir -p whose result survives a power cut."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _remove_leftovers(path: Path) -> None:
    """What a landing of the same run left when it was killed."""
    prefix = f".{path.stem}."
    for leftover in path.parent.glob(f"{prefix}*{_TEMPORARY}"):
        if leftover.name[len(prefix) : -len(_TEMPORARY)].isdigit():
            leftover.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
