"""What vendors sell and at what price, dated: one Parquet file per vendor and reading, beside the lake's runs.

A reading is never changed, so a price of last month can still be looked up; the newest one is what planning takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from tasks.domain.errors import ConfigError, LandingError
from tasks.lake.writer import write_parquet

FOLDER = "server_types"
PRICE = pl.Decimal(18, 9)

SCHEMA: dict[str, pl.DataType] = {
    "vendor": pl.String(),
    "name": pl.String(),
    "place": pl.String(),
    "vcpus": pl.Int32(),
    "memory_bytes": pl.Int64(),
    "disk_bytes": pl.Int64(),
    "arch": pl.String(),
    "gpus": pl.Int32(),
    "gpu_model": pl.String(),
    "gpu_memory_bytes": pl.Int64(),
    "cpu_model": pl.String(),
    "link_bytes_per_s": pl.Float64(),
    "price_per_hour": PRICE,
    "spot_price_per_hour": PRICE,
    "currency": pl.String(),
    "price_source": pl.String(),
    "price_read_at": pl.Datetime("us", "UTC"),
}
"""One row per server type and place. price_per_hour in `currency`; spot null where the vendor has none."""


def write_reading(root: Path, vendor: str, rows: Iterable[Mapping[str, Any]], read_at: datetime) -> Path:
    """Write one reading; a second one of the same second replaces it. Raises LandingError for rows of another shape."""
    try:
        frame = pl.DataFrame(list(rows), schema=SCHEMA, strict=True, orient="row")
    except (pl.exceptions.PolarsError, TypeError, ValueError) as exc:
        raise LandingError(f"The server types of {vendor} do not fit their schema: {exc}.") from exc
    stamp = read_at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    path = root / FOLDER / f"vendor={vendor}" / f"{stamp}.parquet"
    write_parquet(path, frame.sort("name", "place"))
    return path


def readings(root: Path, vendor: str) -> list[Path]:
    """All readings of a vendor, oldest first."""
    return sorted((root / FOLDER / f"vendor={vendor}").glob("[!.]*.parquet"))


def newest_reading(root: Path, vendor: str) -> pl.DataFrame | None:
    """The newest reading, or None when there is none. Raises ConfigError for a file that cannot be read."""
    paths = readings(root, vendor)
    if not paths:
        return None
    try:
        frame = pl.read_parquet(paths[-1], hive_partitioning=False)
    except (OSError, pl.exceptions.PolarsError) as exc:
        raise ConfigError(
            f"The server types of {vendor} in {paths[-1]} cannot be read: {exc}.",
            next_step="Move the file away; the reading before it is taken then.",
        ) from exc
    missing = [name for name in SCHEMA if name not in frame.columns]
    # A reading of an older version lacks columns that came later; they are unknown, not wrong.
    return frame.with_columns([pl.lit(None, dtype=SCHEMA[name]).alias(name) for name in missing]).select(list(SCHEMA))
