"""Compaction shows the same rows before, between and after every step, and whatever two of them do at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.domain.errors import ConfigError, LandingError
from tasks.lake import compact, land, open_lake, query
from tasks.lake.schema import TABLES
from tests.unit.test_lake_questions import Rows, faster, run_rows

ROOT = Path(__file__).resolve().parents[2]
RUNS = ("a", "b", "c", "d")


def aged(root: Path) -> None:
    """As if everything had been landed long ago."""
    for path in root.rglob("*.parquet"):
        os.utime(path, (1_000_000_000, 1_000_000_000))


def fill(root: Path, runs: tuple[str, ...] = RUNS, *, sweep_id: str = "s1") -> Path:
    for name in runs:
        land(root, name, run_rows(name, f"server-{name}", sweep_id=sweep_id))
    aged(root)
    return root


def shown(root: Path) -> dict[str, Any]:
    with open_lake(root, documented=False) as lake:
        assert lake.problems == [], lake.problems
        return {t.name: query(lake, f"FROM {t.name} ORDER BY ALL").to_dicts() for t in TABLES}


def n_files(root: Path) -> int:
    return len(list(root.rglob("*.parquet")))


def test_many_files_become_one_per_table_and_show_the_same(tmp_path: Path) -> None:
    before = shown(fill(tmp_path))
    (done,) = compact(tmp_path, min_files=2)
    assert (done.sweep_id, done.n_runs) == ("s1", 4) and n_files(tmp_path) == len(TABLES)
    assert shown(tmp_path) == before
    assert compact(tmp_path, min_files=2) == [] and n_files(tmp_path) == len(TABLES)


def test_a_sweep_that_goes_on_is_compacted_again(tmp_path: Path) -> None:
    compact(fill(tmp_path), min_files=2)
    fill(tmp_path, ("e", "f"))
    before = shown(tmp_path)
    (done,) = compact(tmp_path, min_files=2)
    assert done.n_runs == 6 and n_files(tmp_path) == len(TABLES) and shown(tmp_path) == before
    assert {p.stem.split("-")[1] for p in tmp_path.rglob("*.parquet")} == {"000002"}


def test_young_and_few_runs_are_left_alone(tmp_path: Path) -> None:
    fill(tmp_path)
    assert compact(tmp_path, min_files=5) == []
    for path in (tmp_path / "server_runs").rglob("*.parquet"):
        os.utime(path)
    assert compact(tmp_path, min_files=2) == [] and n_files(tmp_path) == 4 * len(TABLES)


def test_landing_again_after_a_compaction_replaces_the_run_and_no_other(tmp_path: Path) -> None:
    compact(fill(tmp_path), min_files=2)
    again: Rows = run_rows("b", "server-b", faster(2.0))
    again["samples"] = again["samples"][:1]
    land(tmp_path, "b", again)
    with open_lake(tmp_path, documented=False) as lake:
        assert lake.problems == []
        speeds = dict(query(lake, "SELECT server_run_id, max(tok_per_s_median) FROM cells GROUP BY 1").rows())
        assert speeds == {"a": 64.0, "b": 128.0, "c": 64.0, "d": 64.0}
        assert dict(query(lake, "SELECT server_run_id, count(*) FROM samples GROUP BY 1").rows())["b"] == 1
        assert query(lake, "FROM server_runs").height == 4
    aged(tmp_path)
    before = shown(tmp_path)
    assert compact(tmp_path, min_files=1)[0].n_runs == 4 and shown(tmp_path) == before


KILLED = """
import os, signal, sys
from pathlib import Path
point, n = sys.argv[2], int(sys.argv[3])
count = 0
def counted(function):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
from tasks.lake import compact
if point == "replace":
    Path.replace = counted(Path.replace)
elif point == "unlink":
    Path.unlink = counted(Path.unlink)
compact(sys.argv[1], min_files=2)
"""


@pytest.mark.parametrize(
    ("point", "n"), [("replace", 1), ("replace", len(TABLES)), ("unlink", 1), ("unlink", 3), ("unlink", 20)]
)
def test_killed_at_any_step_it_shows_the_same_and_is_finished_by_the_next(tmp_path: Path, point: str, n: int) -> None:
    before = shown(fill(tmp_path))
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), point, str(n)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    with open_lake(tmp_path, documented=False) as lake:
        assert {p.kind for p in lake.problems} <= {"uncommitted"}
        assert {t.name: query(lake, f"FROM {t.name} ORDER BY ALL").to_dicts() for t in TABLES} == before
    fill(tmp_path, ("e", "f"))
    compact(tmp_path, min_files=2)
    with open_lake(tmp_path, documented=False) as lake:
        rows = query(lake, "FROM cells ORDER BY ALL").to_dicts()
    assert [r for r in rows if r["server_run_id"] not in "ef"] == before["cells"] and len(rows) == 6 * 8


def test_two_at_once_and_a_landing_between_lose_and_double_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(compact, tmp_path, min_files=2) for _ in range(2)]
        jobs.append(pool.submit(land, tmp_path, "e", run_rows("e", "server-e")))
        for job in jobs:
            with suppress(LandingError):  # the other one had already removed a file: what is shown counts
                job.result()
    with open_lake(tmp_path, documented=False) as lake:
        counts = dict(query(lake, "SELECT server_run_id, count(*) FROM cells GROUP BY 1").rows())
        assert counts == dict.fromkeys("abcde", 8) and query(lake, "FROM server_runs").height == 5


def test_older_files_are_compacted_under_the_new_schema(tmp_path: Path) -> None:
    fill(tmp_path)
    old = tmp_path / "hardware" / "sweep=s1" / "a.parquet"
    frame = pl.read_parquet(old, hive_partitioning=False).drop("memory_read_bytes_per_s", "libc")
    frame.with_columns(schema_version=pl.lit(1, pl.Int32), n_cpus=pl.col("n_cpus").cast(pl.Int16)).write_parquet(old)
    aged(tmp_path)
    before = shown(tmp_path)
    assert {r["server_run_id"]: r["libc"] for r in before["hardware"]}["a"] is None
    compact(tmp_path, min_files=2)
    assert shown(tmp_path) == before and n_files(tmp_path) == len(TABLES)


def test_a_lake_of_version_1_answers_every_question(tmp_path: Path) -> None:
    """Files as the first version wrote them: without the columns that came later."""
    fill(tmp_path)
    later = {"hardware": ["memory_read_bytes_per_s"], "telemetry": ["gpu_throttle_reasons"]}
    for table, columns in later.items():
        for path in (tmp_path / table).rglob("*.parquet"):
            frame = pl.read_parquet(path, hive_partitioning=False).drop(columns)
            frame.with_columns(schema_version=pl.lit(1, pl.Int32)).write_parquet(path)
    with open_lake(tmp_path, documented=False) as lake:
        assert lake.problems == []
        for sql in ("FROM v_trust", "FROM v_roofline", "FROM v_throttling", "FROM hardware"):
            query(lake, sql)
        assert query(lake, "SELECT DISTINCT schema_version FROM hardware").item() == 1


def test_a_damaged_file_stays_where_it_is_and_is_named(tmp_path: Path) -> None:
    fill(tmp_path)
    broken = tmp_path / "samples" / "sweep=s1" / "b.parquet"
    broken.write_bytes(b"PAR1 and then nothing")
    aged(tmp_path)
    compact(tmp_path, min_files=2)
    with open_lake(tmp_path, documented=False) as lake:
        assert {(p.kind, Path(p.path).name) for p in lake.problems} >= {("damaged", "b.parquet")}
        assert query(lake, "FROM cells").height == 4 * 8 and broken.exists()


def test_a_run_may_not_have_the_name_of_a_compacted_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names files of a compaction"):
        land(tmp_path, "compacted-1", run_rows("compacted-1", "x"))
