"""What a column and a table of the lake are, and the columns that every table has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import polars as pl

SCHEMA_VERSION = 3
"""2: hardware.memory_read_bytes_per_s, telemetry.gpu_throttle_reasons. 3: what GPUs did, and why one was not used:
cells.backend_used to gpu_j_per_token, hardware.n_gpus_on_bus and gpu_fault; server_runs.burst_*; the table variants."""
METHODOLOGY_VERSION = 2
"""Raised whenever newly measured numbers are no longer comparable with older ones. 2: where a server shows more CPUs
than cores, or has a quota, a short search may find another number of threads faster than one per CPU."""

TEXT = pl.String()
I32 = pl.Int32()
I64 = pl.Int64()
F64 = pl.Float64()
BOOL = pl.Boolean()
TIME = pl.Datetime("us", "UTC")
USD = pl.Decimal(18, 9)
"""Money. Nine decimals hold the cost of a second of the cheapest server."""


@dataclass(frozen=True)
class Column:
    """One column. `required` ones are never null; `values`, where given, are all that it may hold."""

    name: str
    dtype: pl.DataType
    unit: str
    comment: str
    required: bool = False
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table of the lake, one file per server run. `key` identifies a row."""

    name: str
    comment: str
    key: tuple[str, ...]
    own_columns: tuple[Column, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        return COMMON + self.own_columns

    @property
    def required(self) -> frozenset[str]:
        return frozenset(c.name for c in self.columns if c.required)

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {c.name: c for c in self.columns}

    def column(self, name: str) -> Column:
        """Raises KeyError where there is no such column."""
        return self._by_name[name]

    @cached_property
    def dtypes(self) -> dict[str, pl.DataType]:
        return {c.name: c.dtype for c in self.columns}


COMMON = (
    Column("sweep_id", TEXT, "", "The sweep that this row belongs to.", True),
    Column("server_run_id", TEXT, "", "One attempt at one server within a sweep.", True),
    Column("vendor", TEXT, "", "Cloud vendor, `local` for this machine.", True),
    Column("server", TEXT, "", "The vendor's name of the server type.", True),
    Column("schema_version", I32, "", "Version of the lake's schema that wrote the row.", True),
)


def duckdb_type(dtype: pl.DataType) -> str:
    """The DuckDB type that reads a column of this Polars type unchanged."""
    if isinstance(dtype, pl.Decimal):
        return f"DECIMAL({dtype.precision}, {dtype.scale})"
    return _DUCKDB_TYPE[dtype]


_DUCKDB_TYPE: dict[pl.DataType, str] = {
    TEXT: "VARCHAR",
    I32: "INTEGER",
    I64: "BIGINT",
    F64: "DOUBLE",
    BOOL: "BOOLEAN",
    TIME: "TIMESTAMP WITH TIME ZONE",
}
