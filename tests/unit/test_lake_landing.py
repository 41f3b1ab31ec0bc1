"""Landing: explicit types, all or nothing, the same again."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.domain.errors import ConfigError, LandingError
from tasks.lake import land, open_lake, rows_from_events
from tasks.lake.columns import duckdb_type
from tasks.lake.schema import TABLES
from tests.unit.lake_runs import finished_run, lost_run

ROOT = Path(__file__).resolve().parents[2]
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
def rows() -> Rows:
    return rows_from_events(*finished_run())


def contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def visible(folder: Path) -> dict[str, int]:
    """Rows that the views show, per table."""
    with open_lake(folder) as lake:
        return {t.name: lake.con.execute(f"SELECT count(*) FROM {t.name}").fetchall()[0][0] for t in TABLES}


def test_one_file_per_table_and_run_with_the_schema(tmp_path: Path, rows: Rows) -> None:
    landed = land(tmp_path, "run-a", rows)
    names = {p.relative_to(tmp_path).as_posix() for p in landed.files}
    assert names == {f"{t.name}/sweep=s1/run-a.parquet" for t in TABLES}
    assert landed.files[-1].parts[-3] == "server_runs"  # the commit comes last
    assert landed.n_rows["cells"] == 8 and landed.n_rows["samples"] == 11
    for table in TABLES:
        frame = pl.read_parquet(tmp_path / table.name / "sweep=s1" / "run-a.parquet", hive_partitioning=False)
        assert dict(frame.schema) == table.dtypes
        assert frame.height == landed.n_rows[table.name]


def test_what_was_landed_is_what_is_read(tmp_path: Path, rows: Rows) -> None:
    land(tmp_path, "run-a", rows)
    with open_lake(tmp_path) as lake:
        for table in TABLES:
            order = ", ".join(table.key)
            columns = [c.name for c in table.columns if c.name != "landed_rows"]
            found = lake.con.execute(f"SELECT {', '.join(columns)} FROM {table.name} ORDER BY {order}").fetchall()
            wanted = sorted(rows[table.name], key=lambda r: tuple(r[k] for k in table.key))
            assert found == [tuple(r.get(c) for c in columns) for r in wanted]


def test_landing_again_writes_the_same_bytes(tmp_path: Path, rows: Rows) -> None:
    land(tmp_path, "run-a", rows)
    before = contents(tmp_path)
    land(tmp_path, "run-a", rows_from_events(*finished_run()))
    assert contents(tmp_path) == before


def test_landing_again_with_fewer_rows_leaves_no_stale_file(tmp_path: Path, rows: Rows) -> None:
    land(tmp_path, "run-a", rows)
    land(tmp_path, "run-a", {**rows, "telemetry": []})
    assert visible(tmp_path)["telemetry"] == 0
    with open_lake(tmp_path) as lake:
        assert lake.problems == []


def test_runs_do_not_touch_each_other(tmp_path: Path, rows: Rows) -> None:
    land(tmp_path, "run-a", rows)
    before = contents(tmp_path)
    land(tmp_path, "run-b", rows_from_events(*lost_run()))
    after = contents(tmp_path)
    assert {name: digest for name, digest in after.items() if "run-a" in name} == before
    assert visible(tmp_path)["cells"] == 16


@pytest.mark.parametrize(
    ("table", "column", "value", "says"),
    [
        ("cells", "n_tokens", "16", "whole numbers"),
        ("cells", "n_tokens", True, "whole numbers"),
        ("cells", "n_tokens", 2**31, "out of range"),
        ("cells", "tok_per_s_mean", float("nan"), "finite"),
        ("cells", "tok_per_s_mean", "fast", "numbers"),
        ("cells", "resumed", 1, "true or false"),
        ("cells", "outcome", "done", "measured, gated"),
        ("cells", "reason", "because", "ok, fewer_repeats"),
        ("cells", "detail", 7, "text"),
        ("cells", "observed_at", datetime(2026, 1, 1), "UTC"),
        ("cells", "observed_at", datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1))), "UTC"),
        ("cells", "observed_at", 1_790_000_000.0, "UTC"),
        ("server_runs", "cost_usd", 0.1, "Decimal"),
        ("server_runs", "cost_usd", Decimal("1e-10"), "nine decimals"),
        ("server_runs", "cost_usd", Decimal("1e9"), "out of range"),
        ("server_runs", "cost_usd", Decimal("NaN"), "out of range"),
    ],
)
def test_a_wrong_value_is_named_and_nothing_is_written(
    tmp_path: Path, rows: Rows, table: str, column: str, value: Any, says: str
) -> None:
    rows[table][0][column] = value
    with pytest.raises(LandingError) as caught:
        land(tmp_path, "run-a", rows)
    assert f"{table}.{column}" in str(caught.value) and repr(value) in str(caught.value) and says in str(caught.value)
    assert contents(tmp_path) == {}


def test_other_faults_of_rows(tmp_path: Path, rows: Rows) -> None:
    cases: list[tuple[Rows, str]] = [
        ({**rows, "cells": [{**rows["cells"][0], "speed": 1.0}]}, "cells.speed is no column"),
        ({**rows, "cells": [{**rows["cells"][0], "outcome": None}]}, "cells.outcome may not be null"),
        ({**rows, "cells": [rows["cells"][0]] * 2}, "two rows of server_run_id='run-a', model='small'"),
        ({**rows, "cells": [{**rows["cells"][0], "sweep_id": "s2"}]}, "names sweep 's2'"),
        ({**rows, "cell": []}, "no table cell"),
        ({**rows, "server_runs": []}, "exactly one row of server_runs"),
    ]
    for bad, says in cases:
        with pytest.raises(LandingError, match=says):
            land(tmp_path, "run-a", bad)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "a b", "ä", "x" * 201])
def test_an_id_that_is_no_file_name_is_refused(tmp_path: Path, rows: Rows, name: str) -> None:
    with pytest.raises(ConfigError, match="server run id"):
        land(tmp_path, name, rows)
    assert contents(tmp_path) == {}


def test_half_a_surrogate_pair_does_not_cost_the_run(tmp_path: Path, rows: Rows) -> None:
    rows["cells"][0]["detail"] = "bad \udcff byte"
    land(tmp_path, "run-a", rows)
    assert visible(tmp_path)["cells"] == 8


@pytest.mark.parametrize("root", ["s3://bucket/lake", "gs://b/l", "ftp://user:secret@host/x", "file://elsewhere/x", ""])
def test_unknown_addresses_are_refused_with_a_next_step(rows: Rows, root: str) -> None:
    with pytest.raises(ConfigError) as caught:
        land(root, "run-a", rows)
    assert caught.value.next_step and "secret" not in str(caught.value)
    with pytest.raises(ConfigError):
        open_lake(root)


def test_a_file_url_is_a_folder(tmp_path: Path, rows: Rows) -> None:
    land(f"file://{tmp_path}/my%20lake", "run-a", rows)
    assert visible(tmp_path / "my lake")["cells"] == 8


CRASHING = """
import os, signal, sys
from pathlib import Path
import polars as pl
from tasks.lake import land, rows_from_events
from tests.unit.lake_runs import finished_run, lost_run

point, n, root, run_id = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
calls = 0

def dies_at(original):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == n:
            if point == "write":  # half of the bytes are there
                original(*args, **kwargs)
                args[1].flush()
                os.ftruncate(args[1].fileno(), os.fstat(args[1].fileno()).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    return call

if point == "write":
    pl.DataFrame.write_parquet = dies_at(pl.DataFrame.write_parquet)
elif point == "replace":
    Path.replace = dies_at(Path.replace)
else:
    os.fsync = dies_at(os.fsync)
land(root, run_id, rows_from_events(*(finished_run() if run_id == "run-a" else lost_run())))
"""


def landing_killed(folder: Path, point: str, n: int, run_id: str) -> bool:
    """Land in another process that kills itself at the n-th call of `point`; False when it came to its end."""
    done = subprocess.run(
        [sys.executable, "-c", CRASHING, point, str(n), str(folder), run_id],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def crash_points() -> Iterator[tuple[str, int]]:
    """One file per table; the last is the commit."""
    yield "write", 1
    yield "replace", 2
    yield "fsync", 5
    yield "write", len(TABLES)
    yield "replace", len(TABLES)


@pytest.mark.parametrize(("point", "n"), list(crash_points()))
def test_killed_while_landing_nothing_shows_and_landing_again_repairs(tmp_path: Path, point: str, n: int) -> None:
    land(tmp_path, "run-b", rows_from_events(*lost_run()))
    before, shown = contents(tmp_path), visible(tmp_path)
    assert landing_killed(tmp_path, point, n, "run-a")
    assert visible(tmp_path) == shown
    with open_lake(tmp_path) as lake:
        assert {p.kind for p in lake.problems} <= {"uncommitted"}
        assert all("run-a" in p.path for p in lake.problems)
    land(tmp_path, "run-a", rows_from_events(*finished_run()))
    whole = contents(tmp_path)
    assert {name: digest for name, digest in whole.items() if "run-b" in name} == before
    assert len(whole) == len(before) + len(TABLES)  # no temporary file is left
    assert visible(tmp_path)["cells"] == shown["cells"] + 8
    with open_lake(tmp_path) as lake:
        assert lake.problems == []


def test_a_full_disk_is_told_and_landing_again_repairs(tmp_path: Path, rows: Rows) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(LandingError, match="run-a could not be written") as caught:
            land(tmp_path, "run-a", rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "land it again" in str(caught.value)
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]
    assert visible(tmp_path)["cells"] == 0
    land(tmp_path, "run-a", rows)
    assert visible(tmp_path)["cells"] == 8


def test_every_type_of_the_schema_has_one_in_duckdb() -> None:
    for table in TABLES:
        assert set(table.key) <= table.required
        assert len({c.name for c in table.columns}) == len(table.columns)
        for column in table.columns:
            assert duckdb_type(column.dtype) and column.comment.endswith(".")


def test_times_keep_their_microseconds(tmp_path: Path, rows: Rows) -> None:
    rows["server_runs"][0]["started_at"] = datetime(2026, 2, 3, 4, 5, 6, 789012, UTC)
    land(tmp_path, "run-a", rows)
    with open_lake(tmp_path) as lake:
        assert lake.con.execute("SELECT started_at FROM server_runs").fetchall() == [
            (datetime(2026, 2, 3, 4, 5, 6, 789012, UTC),)
        ]
