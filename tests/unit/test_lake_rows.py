"""Rows of one server run from its event log."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.domain import events as ev
from tasks.domain.cells import OUTCOME_OF, Cell, Outcome, Reason
from tasks.domain.run_plan import RunPlan
from tasks.lake import RunContext, rows_from_events
from tests.unit.lake_runs import (
    MIB,
    START_UNIX_S,
    EventLog,
    finished_run,
    lost_run,
    make_context,
    make_plan,
)

Run = tuple[RunPlan, list[dict[str, Any]], RunContext]


def at(t_s: float) -> datetime:
    return datetime.fromtimestamp(START_UNIX_S + t_s, UTC)


def by_cell(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{r['model']} {r['task']}{r['n_tokens']}": r for r in rows}


def samples_of(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [r for r in rows if f"{r['model']} {r['task']}{r['n_tokens']}" == name]


class TestFinishedRun:
    rows = rows_from_events(*finished_run())
    cells = by_cell(rows["cells"])

    def test_each_cell_ends_once_with_what_the_agent_said(self) -> None:
        assert {name: (r["outcome"], r["reason"]) for name, r in self.cells.items()} == {
            "small pp16": ("measured", "ok"),
            "small pp128": ("measured", "ok"),
            "small tg16": ("measured", "ok"),
            "small tg128": ("gated", "predicted_too_slow"),
            "large pp16": ("gated", "measured_too_slow"),
            "large pp128": ("gated", "shorter_cell_too_slow"),
            "large tg16": ("gated", "shorter_cell_too_slow"),
            "large tg128": ("gated", "shorter_cell_too_slow"),
        }

    def test_statistics_come_from_the_raw_samples(self) -> None:
        cell = self.cells["small pp128"]
        assert (cell["n_samples"], cell["tok_per_s_median"], cell["tok_per_s_max"]) == (3, 64.0, 64.0)
        assert cell["tok_per_s_mean"] == pytest.approx((64 + 64 + 128 / 2.2) / 3)
        assert cell["tok_per_s_ci95_low"] < cell["tok_per_s_mean"] < cell["tok_per_s_ci95_high"]
        assert cell["first_repeat_ratio"] == pytest.approx(2.0 / 2.1)

    def test_a_stopped_cell_keeps_its_finished_repeats(self) -> None:
        cell = self.cells["large pp16"]
        assert (cell["n_samples"], cell["tok_per_s_median"], cell["n_repeats_planned"]) == (2, 4.0, 5)
        assert [s["source"] for s in samples_of(self.rows["samples"], "large pp16")] == ["mark", "mark"]
        assert cell["observed_at"] == at(39.0)

    def test_a_sample_knows_whether_bytes_moved_beside_it(self) -> None:
        def active(name: str) -> list[bool]:
            return [s["download_active"] for s in samples_of(self.rows["samples"], name)]

        assert active("small pp16") == [True, True, True]
        assert active("small pp128") == [False, False, False]  # paused then
        assert active("small tg16") == [True, True, True]
        assert active("large pp16") == [False, False]
        assert self.cells["small pp128"]["download_active"] is False
        assert self.cells["small pp16"]["download_active"] is True

    def test_a_sample_knows_the_steal_beside_it(self) -> None:
        steal = [s["steal_share"] for s in samples_of(self.rows["samples"], "small pp16")]
        assert steal == [pytest.approx(0.5), pytest.approx(0.0), pytest.approx(0.0)]
        assert self.cells["small pp16"]["steal_share"] == pytest.approx(0.5 / 3)

    def test_a_sample_knows_when_it_began(self) -> None:
        assert [s["started_at"] for s in samples_of(self.rows["samples"], "small pp128")] == [at(13), at(15), at(17)]

    def test_what_llama_bench_said_is_kept(self) -> None:
        cell = self.cells["small tg16"]
        assert cell["engine_commit"] == "0c1e570" and cell["n_threads"] == 2 and cell["backend"] == "CPU"
        assert cell["ngl"] == -1 and cell["build"] == "haswell" and '"brand_new_key": [1, 2]' in cell["bench_row_json"]
        assert cell["flash_attn"] == 1 and cell["n_depth"] == 0 and cell["engine_build_number"] == 7123

    def test_the_model_is_identified(self) -> None:
        small, large = self.cells["small pp16"], self.cells["large pp16"]
        assert (small["model_sha256"], small["arch"], small["quant"]) == ("aa" * 32, "llama", "Q4_K_M")
        assert (small["weights"], small["licence"], small["model_revision"]) == ("random", "apache-2.0", "rev1")
        assert (large["model_sha256"], large["quant"], large["licence"]) == ("bb" * 32, "Q4_K_M", None)

    def test_gate_and_prediction_stand_beside_the_cell(self) -> None:
        cell = self.cells["small tg128"]
        assert (cell["min_tok_per_s"], cell["predicted_low_tok_per_s"], cell["predicted_high_tok_per_s"]) == (5, 2, 3)
        assert cell["n_samples"] == 0 and cell.get("tok_per_s_median") is None

    def test_downloads(self) -> None:
        small, large = self.rows["downloads"]
        assert (small["bytes"], small["bytes_resumed"], small["n_retries"]) == (100 * MIB, 10 * MIB, 1)
        assert small["bytes_per_s"] == pytest.approx(30 * MIB) and small["n_connections"] == 4
        assert (large["seconds"], large["paused_s"]) == (pytest.approx(19.0), pytest.approx(8.0))
        assert large["bytes_per_s"] == pytest.approx(400 * MIB / 11)
        assert (large["outcome"], large["reason"], large["sha256"]) == ("finished", "ok", "bb" * 32)

    def test_no_secret_of_a_url_is_kept(self) -> None:
        assert self.rows["downloads"][0]["url_host"] == "models.example"
        assert self.rows["downloads"][1]["url_host"] is None  # two mirrors, and the log does not tell which
        assert "secret" not in str(self.rows) and "token=abc" not in str(self.rows)

    def test_the_run(self) -> None:
        (run,) = self.rows["server_runs"]
        assert (run["outcome"], run["reason"], run["n_cells"], run["n_measured"]) == ("completed", "complete", 8, 3)
        assert (run["n_gated"], run["n_not_reached"], run["n_resumed"]) == (5, 0, 0)
        assert (run["billed_s"], run["cost_usd"]) == (100.0, Decimal("0.001"))
        assert (run["engine_build"], run["engine_commit"], run["agent_sha256"]) == ("haswell", "0c1e570", "cc" * 32)
        assert run["bytes_downloaded"] == 490 * MIB and run["n_events_missing"] == 0
        assert run["price_usd_per_hour"] == Decimal("0.036") and run["max_usd"] == Decimal("0.5")

    def test_readiness_is_told_with_and_without_the_download(self) -> None:
        (run,) = self.rows["server_runs"]
        assert run["ssh_ready_to_first_bench_s"] == pytest.approx(1.5 + 4.2)
        assert run["ssh_ready_to_first_bench_net_s"] == pytest.approx(1.5 + 4.2 - 3.0)

    def test_phases_cover_the_run(self) -> None:
        seconds = Counter[str]()
        for phase in self.rows["phases"]:
            seconds[phase["name"]] += phase["seconds"]
        assert seconds["create"] == 15 and seconds["probe"] == pytest.approx(0.4)
        assert seconds["download"] == pytest.approx(3 + 19) and seconds["bench"] == pytest.approx(19.4 + 14.9)
        assert seconds["load"] == pytest.approx(1.3 + 0.9) and seconds["warmup"] == pytest.approx(0.5 + 0.9 + 0.5 + 5)
        assert [p["k"] for p in self.rows["phases"]] == list(range(1, len(self.rows["phases"]) + 1))
        assert self.rows["phases"][0]["usd"] == Decimal("0.00015")

    def test_decisions_of_both_makers(self) -> None:
        made = [(d["made_by"], d["k"], d["action"], d["subject"]) for d in self.rows["decisions"]]
        assert made == [
            ("conductor", 1, "skip_cell", "small tg128"),
            ("conductor", 2, "resolve", "small tg128"),
            ("controller", 1, "create", "cx22"),
        ]
        assert '"min_tok_per_s": 5.0' in self.rows["decisions"][0]["evidence"]

    def test_hardware_and_telemetry_become_columns(self) -> None:
        (hardware,) = self.rows["hardware"]
        assert (hardware["cpu_model"], hardware["n_cpus"], hardware["l3_bytes"]) == ("AMD EPYC 7763", 2, 32 * MIB)
        assert hardware["cpu_flags"] == "avx2 fma" and hardware["governor"] is None and hardware["is_virtual"] is True
        assert hardware["machine_vendor"] == "QEMU" and hardware["n_gpus"] == 0 and hardware["vram_total_bytes"] is None
        reading = self.rows["telemetry"][6]
        assert (reading["steal_share"], reading["cpu_busy_share"], reading["observed_at"]) == (0.5, 0.9, at(7))
        assert reading["gpu_busy_share"] is None and reading["other"] == '{"bench_major_faults": 3}'


class TestLostRun:
    rows = rows_from_events(*lost_run())
    cells = by_cell(rows["cells"])

    def test_what_the_log_proves_is_kept_and_the_rest_is_lost(self) -> None:
        assert {name: (r["outcome"], r["reason"]) for name, r in self.cells.items()} == {
            "small pp16": ("measured", "ok"),
            "small pp128": ("not_reached", "server_lost"),
            "small tg16": ("not_reached", "server_lost"),
            "small tg128": ("not_reached", "server_lost"),
            "large pp16": ("not_reached", "server_lost"),
            "large pp128": ("not_reached", "server_lost"),
            "large tg16": ("not_reached", "server_lost"),
            "large tg128": ("infeasible", "memory"),
        }
        assert self.cells["large tg128"]["detail"] == "5.1 GiB of 2"
        (run,) = self.rows["server_runs"]
        assert (run["outcome"], run["reason"], run["n_not_reached"]) == ("interrupted", "server_lost", 6)

    def test_finished_repeats_of_the_cell_in_flight_are_kept(self) -> None:
        samples = samples_of(self.rows["samples"], "small pp128")
        assert [(s["duration_s"], s["source"]) for s in samples] == [(2.0, "mark"), (2.5, "mark")]
        assert [s["download_active"] for s in samples] == [True, True]

    def test_an_open_download_is_interrupted(self) -> None:
        large = self.rows["downloads"][1]
        assert (large["outcome"], large["ended_at"], large["bytes"]) == ("interrupted", None, 300 * MIB)

    def test_the_build_that_did_not_run_here_is_not_named(self) -> None:
        assert self.cells["small pp16"]["build"] == "haswell"

    def test_the_reason_can_be_another(self) -> None:
        plan, lines, _ = lost_run()
        rows = rows_from_events(plan, lines, make_context(lost_reason=Reason.CANCELLED, outcome="cancelled"))
        assert by_cell(rows["cells"])["small tg16"]["reason"] == "cancelled"
        assert rows["server_runs"][0]["outcome"] == "cancelled"


def test_a_create_that_failed_gives_a_row_for_every_cell() -> None:
    plan = make_plan("cx22", "r")
    context = make_context(
        outcome="failed", reason="CapacityError", detail="none left", lost_reason=Reason.SERVER_FAILED, phases=()
    )
    rows = rows_from_events(plan, [], context)
    assert {(c["outcome"], c["reason"]) for c in rows["cells"]} == {("failed", "server_failed")}
    assert len(rows["cells"]) == 8 and rows["samples"] == rows["hardware"] == rows["telemetry"] == []
    (run,) = rows["server_runs"]
    assert (run["outcome"], run["reason"], run["detail"]) == ("failed", "CapacityError", "none left")
    assert run["n_events"] == 0 and run["n_failed"] == 8


def test_carried_over_cells_are_marked_and_keep_their_samples() -> None:
    cell = Cell("small", "pp", 16)
    plan = make_plan("cx22", "r", measured=((cell, (1.0, 2.0)),))
    row = by_cell(rows_from_events(plan, [], make_context())["cells"])["small pp16"]
    assert (row["outcome"], row["resumed"], row["observed_at"], row["n_samples"]) == ("measured", True, None, 2)
    rows = rows_from_events(plan, [], make_context())
    assert [s["source"] for s in rows["samples"]] == ["resumed", "resumed"]
    assert rows["server_runs"][0]["n_resumed"] == 1


def test_an_agent_that_fails_says_so() -> None:
    log = EventLog()
    log.add("AgentStarted", 0.0)
    log.add("AgentError", 1.0, error_kind="OSError", error="no space", traceback="...")
    log.finished(1.0, "agent_error", [])
    rows = rows_from_events(make_plan("cx22", "r"), log.lines, make_context())
    (run,) = rows["server_runs"]
    assert (run["outcome"], run["reason"], run["detail"]) == ("failed", "agent_error", "OSError: no space")
    assert {c["reason"] for c in rows["cells"]} == {"server_lost"}


def test_an_agent_started_again_goes_on_with_the_same_run() -> None:
    """Its t_s may begin anew; what the one before it had running is over."""
    plan, lines, context = lost_run()
    log = EventLog()
    log.lines = list(lines)
    log.lines.append({"seq": len(lines) + 1, "unix_s": START_UNIX_S + 60.0, "kind": "AgentStarted", "t_s": 0.0})
    log.lines.append(
        {"seq": len(lines) + 2, "unix_s": START_UNIX_S + 65.0, "kind": "DownloadStarted", "t_s": 5.0, "model": "large",
         "bytes_total": 400 * MIB, "bytes_resumed": 300 * MIB}
    )  # fmt: skip
    rows = rows_from_events(plan, log.lines, context)
    first, second = (d for d in rows["downloads"] if d["model"] == "large")
    assert (first["ended_at"], first["outcome"]) == (at(11.0), "interrupted")
    assert (second["attempt"], second["started_at"], second["bytes_resumed"]) == (2, at(65.0), 300 * MIB)


def test_a_clock_that_is_set_during_the_run_moves_nothing() -> None:
    plan, lines, context = finished_run()
    jumped = [{**line, "unix_s": line["unix_s"] + (3600 if line["seq"] > 30 else 0)} for line in lines]
    assert rows_from_events(plan, jumped, context) == rows_from_events(plan, lines, context)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.randoms(use_true_random=False), st.booleans())
def test_every_cell_of_the_plan_exactly_once_wherever_the_log_stops(n: int, rng: random.Random, lost: bool) -> None:
    plan, lines, context = lost_run() if lost else finished_run()
    part = lines[:n]
    rows = rows_from_events(plan, part, context)
    assert Counter((c["model"], c["task"], c["n_tokens"]) for c in rows["cells"]) == Counter(
        (c.model, c.task, c.n_tokens) for c in plan.cells()
    )
    for cell in rows["cells"]:
        assert cell["outcome"] == OUTCOME_OF[Reason(cell["reason"])].value
        assert (cell["outcome"] != Outcome.MEASURED.value) or cell["n_samples"] > 0
        assert cell["n_samples"] == len(
            samples_of(rows["samples"], f"{cell['model']} {cell['task']}{cell['n_tokens']}")
        )
    (run,) = rows["server_runs"]
    assert sum(run[f"n_{o.value}"] for o in Outcome) == run["n_cells"] == len(plan.cells())
    # Lines that come in another order, twice, or beside rubbish change nothing but the count of rubbish.
    shuffled: list[Any] = [*part, *part[: n // 2], "rubbish", None, {"kind": "BenchRow"}]
    rng.shuffle(shuffled)
    again = rows_from_events(plan, shuffled, context)
    again["server_runs"][0]["n_events_unreadable"] -= 3
    assert again == rows


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats(allow_nan=False, width=32) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_spoiled_line_never_costs_the_run(data: st.DataObject) -> None:
    """Any value of any line replaced by anything: the rows still land, each cell once."""
    from tasks.lake.schema import TABLE
    from tasks.lake.writer import _frame

    plan, lines, context = finished_run()
    line = dict(data.draw(st.sampled_from([x for x in lines if x["kind"] != "Telemetry"])))
    key = data.draw(st.sampled_from(sorted(set(line) - {"seq"})))
    line[key] = data.draw(JSON)
    spoiled = [line if x["seq"] == line["seq"] else x for x in lines]
    rows = rows_from_events(plan, spoiled, context)
    assert len(rows["cells"]) == len(plan.cells())
    for name, table_rows in rows.items():
        assert _frame(TABLE[name], table_rows).height == len(table_rows)


def test_lost_lines_are_counted() -> None:
    plan, lines, context = finished_run()
    (run,) = rows_from_events(plan, [x for x in lines if x["seq"] not in (1, 5, 9)], context)["server_runs"]
    assert run["n_events_missing"] == 3


def test_a_download_with_a_wrong_checksum_came_in_full() -> None:
    """The agent removes the file and counts from 0 again; the bytes came all the same."""
    log = EventLog()
    log.add("AgentStarted", 0.0)
    log.event(ev.DownloadStarted(1.0, "small", 100))
    log.event(ev.DownloadProgress(2.0, "small", 60, 3))
    log.event(ev.DownloadProgress(3.0, "small", 0, 0))
    log.event(ev.DownloadFailed(4.0, "small", "checksum", "sha256 is aa, expected bb"))
    (row,) = rows_from_events(make_plan("cx22", "run-d"), log.lines, make_context())["downloads"]
    assert (row["bytes"], row["n_connections"], row["reason"]) == (100, 3, "checksum")
    assert row["bytes_per_s"] == pytest.approx(100 / 3)


def test_a_download_too_short_to_count_its_connections_has_no_count() -> None:
    log = EventLog()
    log.add("AgentStarted", 0.0)
    log.event(ev.DownloadStarted(1.0, "small", 100))
    log.event(ev.DownloadProgress(1.2, "small", 100, 0))
    log.event(ev.DownloadFinished(1.3, "small", 100, "aa"))
    (row,) = rows_from_events(make_plan("cx22", "run-d"), log.lines, make_context())["downloads"]
    assert row["n_connections"] is None and row["bytes"] == 100
