"""A whole sweep, and the same one again."""

from __future__ import annotations

from typing import Any

from tasks.lake.schema import TABLES
from tests.e2e.product import SERVER, Product

SECOND_SERVER = "cpu1-mem256m-400mbit"


def row_counts(product: Product) -> dict[str, int]:
    (row,) = product.query("SELECT " + ", ".join(f"(SELECT count(*) FROM {t.name}) AS {t.name}" for t in TABLES))
    return row


def test_a_sweep_measures_every_cell_once_and_a_second_one_does_nothing(bare: Product, prefect_url: str) -> None:
    deep = {"depth": [32]}  # one measurement beside the ladder
    preset = bare.preset(servers=[SERVER, SECOND_SERVER], pp=[16, 128], tg=[16], variants=deep)
    plan = bare.run("plan", preset, "--json")
    assert plan.rc == 0 and {s["offer"]["name"] for s in plan.json()["servers"]} == {SERVER, SECOND_SERVER}, str(plan)
    assert bare.remains() == [] and not (bare.home / "lake").exists(), "planning changes nothing"

    done = bare.run("run", "--yes", preset)
    assert done.rc == 0, str(done)
    expected = {
        (s, "tiny-15m", t, n) for s in (SERVER, SECOND_SERVER) for t, n in (("pp", 16), ("pp", 128), ("tg", 16))
    }
    cells = bare.cells()
    assert set(cells) == expected
    assert {outcome for outcome, _ in cells.values()} == {"measured"}
    assert set(bare.samples()) == expected
    counts = row_counts(bare)
    assert all(counts.values()), counts
    for name in (SERVER, "pp128", "tg16", "6 of 6 cells measured", "Beside the ladder", "d32", str(bare.home / "lake")):
        assert name in done.out
    assert "next:" in done.err
    bare.assert_nothing_is_left()
    asked_for_people_and_programs(bare)

    again = bare.run("run", "--yes", preset)
    assert again.rc == 3 and "Nothing to do" in again.out, str(again)
    assert row_counts(bare) == counts

    bare.environment["PREFECT_API_URL"] = prefect_url
    relabelled = bare.run("run", "--yes", preset, "--label", "again", "--server", SECOND_SERVER, "--json")
    assert relabelled.rc == 0, str(relabelled)
    assert relabelled.json()["status"] == "completed" and relabelled.json()["left"] == 0
    runs = bare.query("SELECT sweep_id, server, n_cells, n_measured FROM server_runs ORDER BY started_at")
    assert [(r["server"], r["n_measured"]) for r in runs] == [(SERVER, 3), (SECOND_SERVER, 3), (SECOND_SERVER, 3)]
    assert len({r["sweep_id"] for r in runs}) == 2
    bare.assert_nothing_is_left()


def asked_for_people_and_programs(product: Product) -> None:
    """The reads, each in both forms: data on stdout alone, rc 0."""
    sql = "SELECT count(*) AS n FROM v_cells WHERE outcome = 'measured'"
    answer = product.run("query", sql, "--json")
    assert (answer.rc, answer.json()) == (0, [{"n": 6}]), str(answer)
    assert product.run("query", sql, "--csv").out == "n\n6\n"
    decisions: list[dict[str, Any]] = product.run("explain", SERVER, "--json").json()
    assert {"run_cell", "download"} <= {d["action"] for d in decisions}
    status = product.run("status", "--json").json()
    assert {r["state"] for r in status["runs"]} == {"landed"} and status["open"] == []
    (spent,) = status["spent"].values()
    assert spent["settled_usd"] > 0 and spent["reserved_usd"] == 0
