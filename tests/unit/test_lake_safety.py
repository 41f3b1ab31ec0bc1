"""A lake is only read, and what cannot be read is named and left out."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import polars as pl
import pytest

from tasks.domain.errors import ConfigError, LandingError
from tasks.lake import Lake, land, open_lake, query, rows_from_events
from tests.unit.lake_runs import finished_run, lost_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "lake"
    for run in (finished_run(), lost_run()):
        land(folder, run[0].server_run_id, rows_from_events(*run))
    return folder


def file_of(root: Path, table: str, run_id: str = "run-b") -> Path:
    return root / table / "sweep=s1" / f"{run_id}.parquet"


def n_rows(lake: Lake, table: str) -> int:
    return int(query(lake, f"SELECT count(*) AS n FROM {table}")["n"][0])


def problems(root: Path) -> list[tuple[str, str]]:
    with open_lake(root) as lake:
        found: list[tuple[str, str]] = [(p.kind, p.table) for p in lake.problems]
        assert query(lake, "FROM v_problems").height == len(found)
        return found


class TestFilesThatAreLeftOut:
    def test_cut_short(self, root: Path) -> None:
        path = file_of(root, "cells")
        path.write_bytes(path.read_bytes()[:-20])
        with open_lake(root) as lake:
            (problem,) = lake.problems
            assert (problem.kind, problem.table, problem.path) == ("damaged", "cells", str(path))
            assert n_rows(lake, "cells") == 8 and n_rows(lake, "server_runs") == 2

    @pytest.mark.parametrize(
        "content", [b"", b"PAR1", b"hello, I am a text", os.urandom(5000), b"PAR1" + bytes(50) + b"PAR1"]
    )
    def test_no_parquet_at_all(self, root: Path, content: bytes) -> None:
        file_of(root, "samples").write_bytes(content)
        assert problems(root) == [("damaged", "samples")]

    def test_a_damaged_commit_hides_its_run(self, root: Path) -> None:
        file_of(root, "server_runs").write_bytes(b"PAR1")
        with open_lake(root) as lake:
            assert n_rows(lake, "cells") == 8 and n_rows(lake, "server_runs") == 1
            kinds = {p.kind for p in lake.problems}
        assert kinds == {"damaged", "uncommitted"}

    def test_a_parquet_file_of_something_else(self, root: Path) -> None:
        pl.DataFrame({"a": [1]}).write_parquet(file_of(root, "cells"))
        assert problems(root) == [("foreign", "cells")]
        stray = root / "cells" / "notes.parquet"
        pl.DataFrame({"a": [1]}).write_parquet(stray)
        assert problems(root) == [("foreign", "cells"), ("foreign", "cells")]

    def test_a_column_of_another_type(self, root: Path) -> None:
        path = file_of(root, "cells")
        pl.read_parquet(path, hive_partitioning=False).with_columns(pl.col("n_tokens").cast(pl.String)).write_parquet(
            path
        )
        with open_lake(root) as lake:
            (problem,) = lake.problems
            assert problem.kind == "incompatible" and "n_tokens is String, not Int32" in problem.detail
            assert n_rows(lake, "cells") == 8

    def test_a_column_that_is_never_null_is_missing(self, root: Path) -> None:
        path = file_of(root, "cells")
        pl.read_parquet(path, hive_partitioning=False).drop("outcome").write_parquet(path)
        assert problems(root) == [("incompatible", "cells")]

    def test_an_older_file_reads_as_null_where_it_has_no_column(self, root: Path) -> None:
        path = file_of(root, "cells")
        old = pl.read_parquet(path, hive_partitioning=False).drop("steal_share", "licence", "bench_row_json")
        old = old.with_columns(pl.col("n_tokens").cast(pl.Int16)).select(*reversed(old.columns))
        old.write_parquet(path)
        with open_lake(root) as lake:
            assert lake.problems == []
            assert n_rows(lake, "cells") == 16
            found = query(
                lake, "SELECT DISTINCT licence, typeof(n_tokens) AS t FROM cells WHERE server_run_id = 'run-b'"
            )
            assert found.to_dicts() == [{"licence": None, "t": "INTEGER"}]
            assert n_rows(lake, "v_speed") == 16

    def test_only_older_files(self, root: Path) -> None:
        """A column that no file has is there all the same."""
        for run_id in ("run-a", "run-b"):
            path = file_of(root, "cells", run_id)
            pl.read_parquet(path, hive_partitioning=False).drop("licence").write_parquet(path)
        with open_lake(root) as lake:
            assert query(lake, "SELECT licence FROM v_cells")["licence"].null_count() == 16

    def test_a_newer_file_is_read_without_its_new_column(self, root: Path) -> None:
        path = file_of(root, "cells")
        newer = pl.read_parquet(path, hive_partitioning=False).with_columns(pl.lit(1).alias("from_the_future"))
        newer.write_parquet(path)
        with open_lake(root) as lake:
            assert lake.problems == [] and n_rows(lake, "cells") == 16
            assert "from_the_future" not in query(lake, "FROM cells LIMIT 1").columns

    def test_a_file_that_went_away_is_missed(self, root: Path) -> None:
        file_of(root, "samples").unlink()
        with open_lake(root) as lake:
            (problem,) = lake.problems
            assert (problem.kind, problem.table) == ("missing", "samples") and "4 rows" in problem.detail
            assert n_rows(lake, "samples") == 11

    def test_damage_behind_a_whole_footer_names_the_file(self, root: Path) -> None:
        path = file_of(root, "samples")
        data = bytearray(path.read_bytes())
        data[4:204] = random.Random(1).randbytes(200)
        path.write_bytes(bytes(data))
        with open_lake(root) as lake:
            assert lake.problems == []  # the footer is whole
            with pytest.raises(LandingError, match="cannot be read to the end") as caught:
                query(lake, "SELECT * FROM samples")
            assert str(path) in str(caught.value) and caught.value.next_step
            assert n_rows(lake, "cells") == 16

    def test_leftovers_and_other_things_are_no_problem(self, root: Path) -> None:
        (root / "cells" / "sweep=s1" / ".run-z.123.tmp").write_bytes(b"half")
        (root / "README.txt").write_text("hello")
        (root / "cells" / "sweep=s1" / "notes.csv").write_text("a,b")
        assert problems(root) == []


def test_a_lake_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        open_lake(tmp_path / "f")


@pytest.mark.parametrize("name", ["it's a lake", "a[1]*?", "ä ö"])
def test_any_folder_name_will_do(tmp_path: Path, root: Path, name: str) -> None:
    shutil.copytree(root, tmp_path / name)
    (tmp_path / "a1x").mkdir()  # what a pattern could match instead
    with open_lake(tmp_path / name) as lake:
        assert lake.problems == [] and n_rows(lake, "v_cells") == 16


@pytest.mark.parametrize(
    "sql",
    [
        "COPY cells TO '{root}/out.parquet'",
        "COPY cells TO '{root}/cells/sweep=s1/run-a.parquet'",
        "EXPLAIN ANALYZE COPY cells TO '{root}/out.csv'",
        "explain /* x */ analyze COPY cells TO '{root}/out.csv'",
        "COPY (PIVOT cells ON task USING count(*)) TO '{root}/out.csv'",
        "EXPORT DATABASE '{root}/export'",
        "ATTACH '{root}/other.db'",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW v_cells",
        "INSERT INTO lake_problems VALUES ('a', 'b', 'c', 'd')",
        "DELETE FROM server_runs",
        "UPDATE server_runs SET cost_usd = 0",
        "SET enable_external_access = true",
        "PRAGMA enable_profiling",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT 1; DROP VIEW v_cells",
        "",
    ],
)
def test_query_only_reads(root: Path, sql: str) -> None:
    before = sorted(p for p in root.rglob("*"))
    with open_lake(root) as lake:
        with pytest.raises(ConfigError) as caught:
            query(lake, sql.replace("{root}", str(root)))
        assert caught.value.next_step
        assert n_rows(lake, "v_cells") == 16 and n_rows(lake, "server_runs") == 2
    assert sorted(p for p in root.rglob("*")) == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_parquet('{root}/../secret.parquet')",
        "SELECT * FROM read_parquet('https://example.invalid/x.parquet')",
        "SELECT * FROM outside",
    ],
)
def test_query_reads_nothing_but_the_lake(root: Path, sql: str) -> None:
    outside = pl.DataFrame({"a": [1]})  # DuckDB could take a Python variable for a table
    outside.write_parquet(root.parent / "secret.parquet")
    with open_lake(root) as lake, pytest.raises(ConfigError):
        query(lake, sql.replace("{root}", str(root)))


def test_reading_statements_of_every_kind(root: Path) -> None:
    with open_lake(root) as lake:
        for sql in (
            "FROM v_cells",
            "WITH a AS (SELECT 1 AS x) SELECT * FROM a",
            "DESCRIBE v_cells",
            "SHOW TABLES",
            "SUMMARIZE server_runs",
            "EXPLAIN SELECT * FROM v_cells",
            "EXPLAIN ANALYZE SELECT count(*) FROM v_cells",
            "PIVOT cells ON task IN ('pp', 'tg') USING count(*) GROUP BY server",
            "VALUES (1)",
            "-- a comment\nSELECT 1;",
        ):
            assert query(lake, sql).width > 0, sql
        found = query(
            lake, "SELECT ended_at - started_at AS length, [1, 2] AS l FROM server_runs WHERE vendor = ?", ["local"]
        )
        assert found["length"].to_list() == ["00:01:40", "00:01:40"]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT speed FROM v_cells", "speed"),
        ("SELECT * FROM v_cell", "v_cell"),
        ("SELEC 1", "SELEC"),
        ("SELECT 1 AS a, 2 AS a", "two columns one name"),
        ("SELECT 'x'::INTEGER", "x"),
        ("SELECT * FROM v_cells WHERE server = ?", "parameter"),
        ("PIVOT cells ON task USING count(*)", "IN (a, b)"),
    ],
)
def test_a_wrong_query_says_what_there_is(root: Path, sql: str, says: str) -> None:
    with open_lake(root) as lake, pytest.raises(ConfigError) as caught:
        query(lake, sql)
    assert says in str(caught.value) and caught.value.next_step
    if "column" not in str(caught.value) and "PIVOT" not in sql:
        assert "v_cells" in str(caught.value)
