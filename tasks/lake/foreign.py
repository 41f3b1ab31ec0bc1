"""Values that others made (llama-bench, the kernel, a ledger), brought to the type of their column or to null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any

from tasks.lake.columns import BOOL, F64, I32, TEXT, TIME, USD, Column

_NANO = Decimal("0.000000001")


def as_column(column: Column, value: Any) -> Any:
    """The value as the column's type, or None where it has no meaning there: foreign values never fail a landing."""
    if value is None:
        return None
    if column.dtype == TEXT:
        text = value if isinstance(value, str) else as_json(value)
        return None if column.values and text not in column.values else text
    if column.dtype == BOOL:
        return bool(value) if isinstance(value, (bool, int)) else None
    if column.dtype == TIME:
        return value if isinstance(value, datetime) else as_time(value)
    if column.dtype == USD:
        return as_usd(value)
    return _as_float(value) if column.dtype == F64 else _as_int(value, 2**31 if column.dtype == I32 else 2**63)


def _as_float(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _as_int(value: Any, limit: int) -> int | None:
    number = _as_float(value)
    if number is None:
        return None
    whole = value if isinstance(value, int) else int(number)
    return int(whole) if -limit <= whole < limit else None


def as_time(unix_s: Any) -> datetime | None:
    """Unix seconds as a UTC time, to the microsecond."""
    try:
        return datetime.fromtimestamp(round(float(unix_s), 6), UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def as_usd(amount: Any) -> Decimal | None:
    """Money to nine decimals."""
    try:
        return Decimal(str(amount)).quantize(_NANO, ROUND_HALF_EVEN)
    except (InvalidOperation, ValueError):
        return None


def as_json(value: Any) -> str:
    """JSON with sorted keys, so that equal values are equal text."""
    return json.dumps(value, sort_keys=True, default=str)


def at(record: Any, path: tuple[str, ...]) -> Any:
    """The value at a path of keys in a nested record, or None."""
    for key in path:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record
