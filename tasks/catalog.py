"""Which server types there are, and for how much: read from the vendors, kept with their date, usable without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tasks.clouds.base import Classified, Cloud, ServerType, Traits
from tasks.domain.errors import ConfigError

DEFAULT_SELECTION = 3


class Catalog(Protocol):
    """The part of a vendor that planning needs. Every `Cloud` has it."""

    @property
    def vendor(self) -> str: ...

    @property
    def traits(self) -> Traits: ...

    def catalog(self) -> Sequence[ServerType]: ...

    def server_type(self, name: str) -> ServerType: ...

    def default_server_types(self) -> Sequence[str]: ...


@runtime_checkable
class Classifies(Protocol):
    """A vendor that is asked over the network, and knows what its errors mean."""

    def classify(self, exc: BaseException) -> Classified: ...


@dataclass(frozen=True)
class OfflineCatalog:
    """A vendor's newest reading in the lake's folder, without the vendor."""

    vendor: str
    traits: Traits
    root: Path

    @cached_property
    def _types(self) -> dict[str, ServerType]:
        from tasks.lake.server_types import newest_reading

        frame = newest_reading(self.root, self.vendor)
        if frame is None:
            raise ConfigError(
                f"{self.vendor}: its server types were never read here.",
                next_step=f"tokensweep catalog refresh {self.vendor}, or tokensweep catalog import-sparecores.",
            )
        by_name: dict[str, list[dict[str, Any]]] = {}
        for row in frame.to_dicts():
            by_name.setdefault(row["name"], []).append(row)
        return {name: _from_rows(rows) for name, rows in by_name.items()}

    def catalog(self) -> Sequence[ServerType]:
        return list(self._types.values())

    def server_type(self, name: str) -> ServerType:
        """Raises ConfigError for a name that the reading does not have."""
        if name not in self._types:
            raise ConfigError(f"{self.vendor} sells no {name!r}, as far as it was read here.")
        return self._types[name]

    def default_server_types(self) -> Sequence[str]:
        """The cheapest few."""
        cheapest = sorted(self._types.values(), key=lambda kind: (kind.price_per_hour, kind.name))
        return [kind.name for kind in cheapest[:DEFAULT_SELECTION]]


def refresh(cloud: Cloud, root: Path) -> tuple[Path, int]:
    """Read the vendor's server types and prices and keep them; returns the file and the number of types."""
    from tasks.lake.server_types import write_reading

    kinds = cloud.catalog()
    path = write_reading(root, cloud.vendor, _rows(kinds), datetime.now(UTC))
    return path, len(kinds)


@dataclass(frozen=True)
class Imported:
    """What an import took over, counted by vendor, and why it left out each of the rest, by "vendor/name" or file."""

    files: tuple[Path, ...]
    n_types: Counter[str]
    skipped: Mapping[str, str]

    @property
    def left_out(self) -> Counter[str]:
        """How many by reason."""
        return Counter(self.skipped.values())


def keep(kinds: Iterable[ServerType], root: Path, read_at: datetime, skipped: Mapping[str, str]) -> Imported:
    """Keep server types that came from elsewhere, by vendor."""
    from tasks.lake.server_types import write_reading

    by_vendor: dict[str, list[ServerType]] = {}
    for kind in kinds:
        by_vendor.setdefault(kind.vendor, []).append(kind)
    files = tuple(write_reading(root, vendor, _rows(sold), read_at) for vendor, sold in sorted(by_vendor.items()))
    return Imported(files, Counter({vendor: len(sold) for vendor, sold in by_vendor.items()}), skipped)


def _rows(kinds: Iterable[ServerType]) -> list[dict[str, Any]]:
    return [
        {
            "vendor": kind.vendor,
            "name": kind.name,
            "place": place,
            "vcpus": kind.vcpus,
            "memory_bytes": kind.memory_bytes,
            "disk_bytes": kind.disk_bytes,
            "arch": kind.arch,
            "gpus": kind.gpus,
            "gpu_model": kind.gpu_model,
            "gpu_memory_bytes": kind.gpu_memory_bytes,
            "cpu_model": kind.cpu_model,
            "link_bytes_per_s": float(kind.link_bytes_per_s),
            "price_per_hour": _nano(kind.prices.get(place, kind.price_per_hour)),
            "spot_price_per_hour": _nano(kind.spot_prices.get(place)),
            "currency": kind.currency,
            "price_source": kind.price_source,
            "price_read_at": datetime.fromtimestamp(kind.price_read_unix_s, UTC),
        }
        for kind in kinds
        for place in kind.places
    ]


def _nano(price: Decimal | None) -> Decimal | None:
    return None if price is None else price.quantize(Decimal("1e-9"))


def _from_rows(rows: list[dict[str, Any]]) -> ServerType:
    rows = sorted(rows, key=lambda row: (row["price_per_hour"], row["place"]))
    first = rows[0]
    shared = ("vendor", "name", "vcpus", "memory_bytes", "disk_bytes", "arch", "currency", "price_source")
    return ServerType(
        **{field: first[field] for field in shared},
        places=tuple(row["place"] for row in rows),
        price_per_hour=first["price_per_hour"],
        prices={row["place"]: row["price_per_hour"] for row in rows},
        spot_prices={r["place"]: r["spot_price_per_hour"] for r in rows if r["spot_price_per_hour"] is not None},
        price_read_unix_s=first["price_read_at"].timestamp(),
        gpus=first["gpus"] or 0,
        gpu_model=first["gpu_model"] or "",
        gpu_memory_bytes=first["gpu_memory_bytes"] or 0,
        cpu_model=first["cpu_model"] or "",
        link_bytes_per_s=first["link_bytes_per_s"] or 0.0,
    )
