"""Simulated servers play what is measured beside the ladder, and the lake takes it."""

from __future__ import annotations

from tasks.lake import RunContext, rows_from_events
from tests.unit.test_sim_server import STARTED_UNIX_S, of_kind, plan_of, play

WANTED = {"anchor": True, "threads": True, "depth": [512], "kv_types": ["q8_0"]}


def test_a_simulated_run_has_anchors_and_variants_and_they_land() -> None:
    plan = plan_of(variants=WANTED)
    lines = play(plan=plan)
    ended = [(line["variant"], line["label"], line["outcome"]) for line in of_kind(lines, "VariantEnded")]
    assert [label for kind, label, _ in ended if kind == "anchor"] == ["start", "middle", "end"]
    assert {kind for kind, _, _ in ended} >= {"anchor", "depth", "kv_type"}
    assert {outcome for _, _, outcome in ended} == {"measured"}
    assert [r["reason"] for r in lines[-1]["results"]] == [r["reason"] for r in play(plan=plan)[-1]["results"]]
    context = RunContext(
        vendor="sim", started_unix_s=STARTED_UNIX_S, ended_unix_s=STARTED_UNIX_S + 900, engine="simulated"
    )
    rows = rows_from_events(plan, lines, context)
    assert rows["server_runs"][0]["n_events_unreadable"] == 0
    assert {row["kind"] for row in rows["variants"]} == {kind for kind, _, _ in ended}
    assert all(row["tok_per_s_median"] > 0 and row["weights"] == "simulated" for row in rows["variants"])


def test_a_simulated_run_without_wishes_has_none() -> None:
    assert not of_kind(play(), "VariantEnded")
