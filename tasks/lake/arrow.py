"""Hands a result from DuckDB to Polars over the Arrow C interface, without pyarrow.

A module of its own, which does not know DuckDB: Polars remembers the class of whatever it is given until the
interpreter ends, and a class that leads to DuckDB's extension would make that complain of leaks on exit.
"""

from __future__ import annotations


class ArrowStream:
    """An Arrow C stream capsule, to be read once."""

    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._capsule
