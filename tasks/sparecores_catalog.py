"""Server types from a dump of the Spare Cores Navigator database, priced from a table of prices.

The dump (public repository SpareCores/sc-data-dumps, CC BY-SA 4.0) holds one JSON file per server and no prices; so a
price table comes beside it: Parquet or CSV with the columns vendor, server, region, price_usd_hour, and if it has
them price_spot and source.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl

from tasks.catalog import Imported, keep
from tasks.clouds.base import ServerType
from tasks.domain.errors import ConfigError
from tasks.lake.sparecores import VENDOR_NAMES

ARCHS = {"X86_64": "x86_64", "ARM64": "aarch64"}
REQUIRED = ("vendor", "server", "region", "price_usd_hour")
MIB, GB = 2**20, 10**9
GBIT_PER_S = 125e6  # bytes per second

Prices = dict[tuple[str, str], list[dict[str, Any]]]


def import_dump(
    dump: Path, price_table: Path, root: Path, *, vendors: Collection[str], read_at: datetime | None = None
) -> Imported:
    """Keep every priced server of the dump as a reading of its vendor, and say of each other one why not.

    vendors: those that we have modules for. read_at: when the prices were read, by default when the table was
    written. Raises ConfigError for a folder without servers and for a table that cannot be read. A second import with
    the same date replaces the first.
    """
    folder = dump / "data" / "server" if (dump / "data" / "server").is_dir() else dump / "server"
    if not folder.is_dir():
        raise ConfigError(f"{dump} has no folder data/server.", next_step="Give the checkout of sc-data-dumps.")
    prices = _prices(price_table)
    when = read_at or datetime.fromtimestamp(price_table.stat().st_mtime, UTC)
    skipped: dict[str, str] = {}
    return keep(list(_kinds(folder, prices, vendors, when, skipped)), root, when, skipped)


def _prices(path: Path) -> Prices:
    try:
        frame = pl.read_csv(path) if path.suffix == ".csv" else pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as exc:
        raise ConfigError(f"The price table {path} cannot be read: {exc}.") from exc
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        raise ConfigError(f"The price table {path} lacks {', '.join(missing)}.", next_step=f"It has {frame.columns}.")
    found: Prices = {}
    for row in frame.to_dicts():
        found.setdefault((row["vendor"], row["server"]), []).append(row)
    return found


def _kinds(
    folder: Path, prices: Prices, vendors: Collection[str], read_at: datetime, skipped: dict[str, str]
) -> Iterator[ServerType]:
    for path in sorted(folder.rglob("[!_]*.json")):
        try:
            server = json.loads(path.read_text())
            vendor, name = server["vendor_id"], server["api_reference"]
            ours = VENDOR_NAMES.get(vendor, vendor)
            offers = [row for row in prices.get((vendor, name), []) if row["price_usd_hour"]]
            if why := _why_not(server, have_vendor=ours in vendors, priced=bool(offers)):
                skipped[f"{ours}/{name}"] = why
            else:
                yield _kind(ours, name, server, offers, read_at)
        except (OSError, ValueError, KeyError, TypeError, ArithmeticError):
            skipped[str(path.relative_to(folder))] = "unreadable file"


def _why_not(server: dict[str, Any], *, have_vendor: bool, priced: bool) -> str:
    """Why it cannot be planned with, or ""."""
    if not have_vendor:
        return f"vendor {server['vendor_id']}"
    if server.get("status") != "ACTIVE":
        return "no longer sold"
    if server["cpu_architecture"] not in ARCHS:
        return f"architecture {server['cpu_architecture']}"
    return "" if priced else "no price in the table"


def _kind(
    vendor: str, name: str, server: dict[str, Any], offers: list[dict[str, Any]], read_at: datetime
) -> ServerType:
    offers = sorted(offers, key=lambda row: row["price_usd_hour"])
    return ServerType(
        vendor=vendor,
        name=name,
        vcpus=int(server["vcpus"]),
        memory_bytes=int(server["memory_amount"]) * MIB,
        disk_bytes=int(server.get("storage_size") or 0) * GB,
        arch=ARCHS[server["cpu_architecture"]],
        places=tuple(str(row["region"]) for row in offers),
        price_per_hour=_usd(offers[0]["price_usd_hour"]),
        prices={str(row["region"]): _usd(row["price_usd_hour"]) for row in offers},
        spot_prices={str(row["region"]): _usd(row["price_spot"]) for row in offers if row.get("price_spot")},
        currency="USD",
        price_source=str(offers[0].get("source") or "price table"),
        price_read_unix_s=read_at.timestamp(),
        gpus=int(server.get("gpu_count") or 0),
        gpu_model=str(server.get("gpu_model") or ""),
        gpu_memory_bytes=int(server.get("gpu_memory_min") or 0) * MIB,
        cpu_model=" ".join(str(server[k]) for k in ("cpu_manufacturer", "cpu_model") if server.get(k)),
        link_bytes_per_s=float(server.get("network_speed_baseline") or 0.0) * GBIT_PER_S,
    )


def _usd(value: float) -> Decimal:
    return Decimal(str(value))
