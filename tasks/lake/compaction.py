"""Compaction: the files of a sweep's finished runs become one file per table, so that a lake of years stays quick.

Nothing that is shown changes. The compacted `server_runs` file comes last and commits, then the single files go,
their `server_runs` first. A reader counts each run once whatever is there: its own file before a compacted one, a newer
compacted one before an older. So a compaction may be killed at any moment; the next one finishes its work.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from tasks.domain.errors import LandingError
from tasks.lake.columns import Table
from tasks.lake.inventory import Inventory, take_inventory
from tasks.lake.location import compacted_name, generation_of, is_compacted
from tasks.lake.objects import RemoteLake, writable_folder
from tasks.lake.schema import SERVER_RUNS, TABLES
from tasks.lake.writer import remove_file, write_parquet_from

MIN_AGE_S = 600.0
"""Younger runs are left alone: they may be landed again by the recovery of a controller that died."""

# What a question filters by first is together, so that DuckDB skips the other row groups.
_ORDER = {
    "cells": ("model", "task", "n_tokens", "vendor", "server"),
    "samples": ("model", "task", "n_tokens", "vendor", "server", "server_run_id", "k"),
}


@dataclass
class Compaction:
    """What one sweep's compaction did. `removed`: files whose rows are in `written` now."""

    sweep_id: str
    n_runs: int
    written: list[Path] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)


def compact(
    lake_root: str | Path | RemoteLake, *, min_files: int = 8, min_age_s: float = MIN_AGE_S
) -> list[Compaction]:
    """Put together the runs of every sweep that has at least `min_files` files of its own.

    A second call does nothing. Two at once do no harm. Lakes that are open must be opened again afterwards. Raises
    LandingError when the disk or the store refuses; what is shown is then as it was.
    """
    with writable_folder(lake_root) as folder:
        found = take_inventory(folder)
        by_sweep: dict[str, list[Path]] = defaultdict(list)
        faulty = {(Path(p.path).parent.name, Path(p.path).stem) for p in found.problems}
        for path in found.tables[SERVER_RUNS.name].files:
            if (path.parent.name, path.stem) not in faulty:  # a run with a damaged file stays as it is, and named
                by_sweep[path.parent.name].append(path)
        chosen = {sweep: _chosen(markers, min_files, min_age_s) for sweep, markers in sorted(by_sweep.items())}
        return [_explained(found, sweep, files, lake_root) for sweep, files in chosen.items() if files]


def _explained(found: Inventory, sweep: str, chosen: list[Path], lake_root: str | Path | RemoteLake) -> Compaction:
    try:
        return _compact_sweep(found, sweep, chosen, lake_root)
    except (OSError, pl.exceptions.PolarsError) as exc:
        raise LandingError(
            f"Sweep {sweep.removeprefix('sweep=')} of the lake {found.folder} could not be compacted: {exc}.",
            next_step="Make room or move the damaged file away; everything shows as before.",
        ) from exc


def _chosen(markers: Iterable[Path], min_files: int, min_age_s: float) -> list[Path]:
    """The server_runs files to put together; none where it is not worth it."""
    old = [p for p in markers if is_compacted(p.stem) or time.time() - p.stat().st_mtime >= min_age_s]
    single = [p for p in old if not is_compacted(p.stem)]
    return old if len(single) >= min_files or len(old) - len(single) > 1 else []


def _compact_sweep(found: Inventory, sweep: str, chosen: list[Path], lake_root: str | Path | RemoteLake) -> Compaction:
    stems = {path.stem for path in chosen}
    seen = {path: path.stat().st_mtime_ns for path in chosen}
    generation = 1 + max(
        (generation_of(p.stem) for p in (found.folder / SERVER_RUNS.name / sweep).iterdir()), default=0
    )
    stem = compacted_name(generation, uuid.uuid4().hex[:8])
    done = Compaction(sweep.removeprefix("sweep="), len(stems))
    merged: list[Path] = []
    for table in sorted(TABLES, key=lambda t: t is SERVER_RUNS):
        have = found.tables[table.name]
        files = [path for path in have.files if path.parent.name == sweep and path.stem in stems]
        if not files:
            continue
        target = found.folder / table.name / sweep / f"{stem}.parquet"
        write_parquet_from(target, _together(table, files, have.hidden))
        done.written.append(target)
        merged += files
        if table is SERVER_RUNS:
            done.n_runs = pl.scan_parquet(target, hive_partitioning=False).select(pl.len()).collect().item()
    if isinstance(lake_root, RemoteLake):
        lake_root.push(done.written)
    unchanged = {path.stem for path, mtime in seen.items() if path.exists() and path.stat().st_mtime_ns == mtime}
    gone = [p for p in merged if p.stem in unchanged]
    done.removed = sorted(gone, key=lambda p: p.parent.parent.name != SERVER_RUNS.name)  # the commit marker first
    if isinstance(lake_root, RemoteLake):
        lake_root.remove(done.removed)
    for path in done.removed:
        remove_file(path)
    return done


def _together(table: Table, files: Iterable[Path], hidden: dict[Path, frozenset[str]]) -> pl.LazyFrame:
    """All rows under the present schema: an older file's missing columns are null."""
    frames = []
    for path in files:
        frame = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        if path in hidden:
            frame = frame.filter(~pl.col("server_run_id").is_in(sorted(hidden[path])))
        names = set(frame.collect_schema())
        frames.append(
            frame.select(
                [
                    (pl.col(c.name) if c.name in names else pl.lit(None)).cast(c.dtype).alias(c.name)
                    for c in table.columns
                ]
            )
        )
    return pl.concat(frames).sort(*_ORDER.get(table.name, ("vendor", "server", "server_run_id")), maintain_order=True)
