"""The questions that people ask of the lake, on landed rows whose answers are worked out by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tasks.lake import Lake, land, open_lake, query, rows_from_events
from tests.unit.lake_runs import finished_run, lost_run

Rows = dict[str, list[dict[str, Any]]]
Change = Callable[[Rows], None]
A_DAY = timedelta(days=1)


def run_rows(run_id: str, server: str, *changes: Change, sweep_id: str = "s1") -> Rows:
    """A finished run as another server's, changed: small has pp16 at 8, pp128 at 64, tg16 at 16 tokens/s."""
    rows: Rows = copy.deepcopy(rows_from_events(*finished_run()))
    for row in (row for table in rows.values() for row in table):
        row.update(server_run_id=run_id, server=server, sweep_id=sweep_id)
    for change in changes:
        change(rows)
    return rows


def priced(usd_per_hour: str) -> Change:
    def change(rows: Rows) -> None:
        rows["server_runs"][0]["price_usd_per_hour"] = Decimal(usd_per_hour)

    return change


def faster(factor: float) -> Change:
    def change(rows: Rows) -> None:
        for cell in rows["cells"]:
            for name in ("median", "mean", "ci95_low", "ci95_high", "min", "max"):
                if cell.get(f"tok_per_s_{name}") is not None:
                    cell[f"tok_per_s_{name}"] *= factor

    return change


def later(days: float) -> Change:
    def change(rows: Rows) -> None:
        for row in (row for table in rows.values() for row in table):
            for name, value in row.items():
                if hasattr(value, "tzinfo"):
                    row[name] = value + days * A_DAY

    return change


def cells(**values: Any) -> Change:
    return lambda rows: [cell.update(values) for cell in rows["cells"]] and None


def hardware(**values: Any) -> Change:
    return lambda rows: rows["hardware"][0].update(values)


def lake_of(root: Path, *all_rows: Rows) -> Lake:
    for rows in all_rows:
        land(root, rows["server_runs"][0]["server_run_id"], rows)
    return open_lake(root, documented=False)


def dicts(lake: Lake, sql: str) -> list[dict[str, Any]]:
    return query(lake, sql).to_dicts()


def one(lake: Lake, sql: str) -> dict[str, Any]:
    (row,) = dicts(lake, sql)
    return row


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Lake]:
    with open_lake(tmp_path / "none") as lake:
        yield lake


def test_break_even_parity_rent_and_roi_reproduce_the_published_case(empty: Lake) -> None:
    """Nosana, "LLM Benchmarking: Cost Efficient Performance" (2024-09): 6,211 h = 259 d for an A100 of 10,000 USD at
    1.65 USD/h and 250 W; 2,252 h = 94 d for a 4090 of 1,750 USD at half of it and 300 W; two 4090s are at par with the
    A100 at 0.66 USD/h, 2.5 times cheaper; electricity at 0.16 USD/kWh."""
    row = one(
        empty,
        """
        SELECT break_even_h(10000, 1.65, 250, 0.16) AS a100_h, break_even_h(1750, 0.825, 300, 0.16) AS rtx4090_h,
            parity_rent_usd_per_hour(1750, 300, 0.16, a100_h, 2) AS parity, 1.65 / parity AS cheaper,
            ownership_roi(10000, 1.65, 250, 0.16, a100_h) AS roi_then,
            ownership_roi(1750, 0.825, 300, 0.16, 8760) AS roi,
            break_even_h(1000, 0.04, 250, 0.16) AS never
        """,
    )
    assert (round(row["a100_h"]), round(row["a100_h"] / 24)) == (6211, 259)
    assert (round(row["rtx4090_h"]), round(row["rtx4090_h"] / 24)) == (2252, 94)
    assert round(row["parity"], 2) == 0.66 and round(row["cheaper"], 1) == 2.5
    assert row["roi_then"] == pytest.approx(0) and row["roi"] == pytest.approx(8760 / 2252.2523 - 1, abs=1e-4)
    assert row["never"] is None


def test_a_roofline_exposes_an_impossible_claim(empty: Lake) -> None:
    """Llama-3-8B in FP16 reads 15.0 GB per token: 8.03e9 parameters less an embedding of 128,256 x 4,096, 2 bytes each;
    at 3.35 TB/s an H100 ends at 223 tokens/s, so 250 cannot be."""
    weights = (8.030e9 - 128_256 * 4096) * 2
    row = one(empty, f"SELECT roofline_tok_per_s({weights}, 3.35e12) AS ceiling, 250 / ceiling AS share")
    assert round(row["ceiling"]) == 223 and round(row["share"], 2) == 1.12


def test_blended_cost_of_a_request_is_its_time(empty: Lake) -> None:
    """1,000 prompt tokens at 1,000/s and 200 output tokens at 50/s take 5 s: 0.001 USD for 1,200 at 0.72 USD/h."""
    row = one(
        empty,
        "SELECT usd_per_mtok_blended(0.72, 1000, 50, 1000, 200) AS usd,"
        " usd_per_mtok_blended(0.72, 0, 50, 1000, 200) AS no",
    )
    assert row["usd"] == pytest.approx(0.001 / 1200 * 1e6) and row["no"] is None


def test_token_cost_names_kind_throughput_and_the_lengths_taken(tmp_path: Path) -> None:
    with lake_of(tmp_path, run_rows("a", "cx22", priced("0.036"))) as lake:
        rows = {r["kind"]: r for r in dicts(lake, "FROM token_cost('small', 100, 20)")}
    assert set(rows) == {"prompt", "output", "blended"} and {r["throughput"] for r in rows.values()} == {
        "single sequence"
    }
    assert (rows["prompt"]["tok_per_s"], rows["output"]["tok_per_s"]) == (64.0, 16.0)
    assert (rows["blended"]["pp_n_tokens"], rows["blended"]["tg_n_tokens"]) == (128, 16)
    assert rows["blended"]["tok_per_s"] == pytest.approx(120 / (100 / 64 + 20 / 16))
    assert rows["output"]["usd_per_mtok"] == pytest.approx(0.036 / 16 / 3600 * 1e6)


def test_pareto_marks_the_frontier_and_who_beats_the_others(tmp_path: Path) -> None:
    fleet = (("cheap", "0.01", 1.0), ("dear", "0.05", 0.9), ("fast", "0.06", 3.0), ("same", "0.06", 2.0))
    rows = [run_rows(name, name, priced(usd), faster(f)) for name, usd, f in fleet]
    with lake_of(tmp_path, *rows) as lake:
        found = {r["server"]: r for r in dicts(lake, "FROM pareto('small', 'tg', 16)")}
    assert [name for name, r in found.items() if r["on_frontier"]] == ["cheap", "fast"]
    assert (found["dear"]["beaten_by"], found["same"]["beaten_by"]) == ("local/cheap", "local/fast")
    assert found["fast"]["beaten_by"] is None


def test_the_price_of_a_day_is_the_last_one_read_by_then(tmp_path: Path) -> None:
    first, second = (
        run_rows("a", "cx22", priced("0.036")),
        run_rows("b", "cx22", priced("0.072"), later(30), sweep_id="s2"),
    )
    with lake_of(tmp_path, first, second) as lake:
        prices = dicts(lake, "SELECT price_usd_per_hour FROM v_prices ORDER BY price_read_at")
        read_at = first["server_runs"][0]["price_read_at"]
        then, now, before = ((read_at + d * A_DAY).isoformat() for d in (5, 60, -5))
        ask = (
            "SELECT price_usd_per_hour AS p, price_when_measured_usd_per_hour AS m"
            " FROM best_for_slo_at('small', 'tg', 16, 1, '{}')"
        )
        assert [p["price_usd_per_hour"] for p in prices] == [Decimal("0.036"), Decimal("0.072")]
        assert one(lake, ask.format(then)) == {"p": Decimal("0.036"), "m": Decimal("0.072")}
        assert one(lake, ask.format(now)) == {"p": Decimal("0.072"), "m": Decimal("0.072")}
        assert dicts(lake, ask.format(before)) == []


def test_drift_says_what_changed_beside_the_number(tmp_path: Path) -> None:
    newer = run_rows("b", "cx22", faster(0.5), later(40), cells(engine_commit="new"), sweep_id="s2")
    with lake_of(tmp_path, run_rows("a", "cx22"), newer) as lake:
        rows = dicts(lake, "FROM drift('local/cx22')")
        assert [r["ratio"] for r in rows] == [0.5] * 3 and {r["changed"] for r in rows} == {"engine"}
        assert rows[0]["previous_tok_per_s"] == 2 * rows[0]["tok_per_s"] and rows[0]["within_noise"] is False
        assert {f for r in dicts(lake, "SELECT flags FROM v_trust") for f in r["flags"].split()} >= {"drift"}
        assert dicts(lake, "FROM drift('other')") == []


def test_twins_that_disagree_are_told_from_drift(tmp_path: Path) -> None:
    twin = run_rows("b", "cx22", faster(0.8), later(1), sweep_id="s2")
    with lake_of(tmp_path, run_rows("a", "cx22"), twin) as lake:
        flags = {
            r["task"]: r["flags"].split() for r in dicts(lake, "SELECT task, flags FROM v_trust WHERE n_tokens = 16")
        }
    assert "twin_disagreement" in flags["tg"] and "drift" not in flags["tg"]


def test_trust_carries_every_mark_and_flags_only_what_is_suspicious(tmp_path: Path) -> None:
    good = run_rows("a", "good", cells(weights="real", download_active=False, steal_share=0.001))
    bad = run_rows("b", "bad", cells(weights="real", download_active=True, steal_share=0.2, first_repeat_ratio=1.5))
    for cell in bad["cells"]:
        cell["n_samples"] = min(cell["n_samples"], 2)
    bad["server_runs"][0]["price_read_at"] -= 100 * A_DAY
    with lake_of(tmp_path, good, bad) as lake:
        rows = {r["server"]: r for r in dicts(lake, "FROM v_trust WHERE task = 'tg'")}
        assert rows["good"]["flags"] == "" and rows["good"]["n_flags"] == 0
        assert rows["bad"]["flags"] == "few_repeats slow_first_repeat steal download_active price_old"
        assert rows["bad"]["n_flags"] == 5 and rows["bad"]["price_age_days"] == pytest.approx(100, abs=1)
        assert rows["good"]["half_width_pct"] == 0 and rows["good"]["build"] == "haswell"
        assert query(lake, "FROM v_latest").height == query(lake, "FROM v_trust").height, "flagged, never deleted"


def gpu(n: int = 1, model: str = "NVIDIA L4", vram: int = 24 * 2**30) -> Change:
    return hardware(n_gpus=n, gpu_model=model, vram_total_bytes=vram)


def test_a_gpu_that_ran_on_the_cpu_is_flagged(tmp_path: Path) -> None:
    silent = run_rows("a", "silent", gpu(), cells(backend="CUDA", ngl=0))
    used = run_rows("b", "used", gpu(), cells(backend="CUDA", ngl=99))
    tiny = run_rows("c", "tiny", gpu(vram=50 * 2**20), cells(backend="CPU", ngl=0))
    with lake_of(tmp_path, silent, used, tiny) as lake:
        flagged = {r["server"] for r in dicts(lake, "FROM v_trust WHERE contains(flags, 'cpu_on_gpu_server')")}
    assert flagged == {"silent"}, "the one without room for the model had no choice"


def test_a_gpu_is_not_judged_by_its_older_namesake(tmp_path: Path) -> None:
    """RTX 6000: Quadro of 2018 with 672 GB/s, Ada Generation of 2022 with 960. 9 GB at 90 tokens/s are 84 % of it."""
    large = cells(backend="CUDA", ngl=99, model_bytes=10_000_000_000, n_params=16_000_000_000, arch="llama")
    ada, quadro = "NVIDIA RTX 6000 Ada Generation", "Quadro RTX 6000"
    runs = [run_rows(name, name, gpu(model=name_), large, faster(5.6)) for name, name_ in (("a", ada), ("q", quadro))]
    with lake_of(tmp_path, *runs) as lake:
        flagged = {r["server"] for r in dicts(lake, "FROM v_trust WHERE contains(flags, 'above_roofline')")}
    assert flagged == {"q"}


def test_speeds_above_the_roofline_are_flagged(tmp_path: Path) -> None:
    """An L4 reads 300 GB/s. A file of 10 GB needs 9 GB per token, so 33 tokens/s are the end."""
    large = cells(backend="CUDA", ngl=99, model_bytes=10_000_000_000, n_params=16_000_000_000, arch="llama")
    honest, lying = run_rows("a", "honest", gpu(), large), run_rows("b", "lying", gpu(), large, faster(2.5))
    moe = run_rows("c", "moe", gpu(), large, faster(2.5), cells(arch="qwen2moe"))
    with lake_of(tmp_path, honest, lying, moe) as lake:
        rows = {r["server"]: r for r in dicts(lake, "FROM v_roofline WHERE task = 'tg'")}
        assert rows["honest"]["peak_share"] == pytest.approx(16 * 9e9 / 300.1e9) and rows["honest"]["plausible"]
        assert rows["lying"]["plausible"] is False and rows["moe"]["plausible"] is None
        pp = one(lake, "FROM v_roofline WHERE task = 'pp' AND n_tokens = 128 AND server = 'honest'")
        assert pp["peak_share"] == pytest.approx(2 * 16e9 * 64 / 121e12)
        assert {r["server"] for r in dicts(lake, "FROM v_trust WHERE contains(flags, 'above_roofline')")} == {"lying"}


def test_a_cpu_is_judged_by_its_measured_bandwidth_beyond_the_cache(tmp_path: Path) -> None:
    slow = hardware(memory_read_bytes_per_s=1e9, l3_bytes=32 * 2**20)
    large = cells(model_bytes=2 * 10**9)
    with lake_of(tmp_path, run_rows("a", "large", slow, large), run_rows("b", "cached", slow)) as lake:
        rows = {r["server"]: r for r in dicts(lake, "FROM v_roofline WHERE task = 'tg'")}
    assert rows["large"]["plausible"] is False and rows["cached"]["plausible"] is None


@pytest.mark.parametrize(
    ("name", "gb_per_s"),
    [("Tesla T4", 320.1), ("NVIDIA A100-SXM4-80GB", 2039), ("NVIDIA A100-SXM4-40GB", 1555), ("NVIDIA A10G", 600.2),
     ("NVIDIA H100 80GB HBM3", 3352), ("NVIDIA L40S", 864), ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 1792)],
)  # fmt: skip
def test_a_gpu_finds_its_own_data_sheet(tmp_path: Path, name: str, gb_per_s: float) -> None:
    with lake_of(tmp_path, run_rows("a", "a", gpu(model=name), cells(backend="CUDA", ngl=99))) as lake:
        assert one(lake, "FROM v_roofline WHERE task = 'tg'")["peak"] == pytest.approx(gb_per_s * 1e9)


def test_scaling_efficiency_is_speedup_over_added_units(tmp_path: Path) -> None:
    on_gpu = cells(backend="CUDA", ngl=99)
    runs = [run_rows(f"g{n}", f"g{n}", gpu(n), on_gpu, faster(f)) for n, f in ((1, 1.0), (2, 1.8), (4, 2.4))]
    with lake_of(tmp_path, *runs, run_rows("c", "c", hardware(n_cpus=2))) as lake:
        rows = {r["server"]: r for r in dicts(lake, "FROM v_scaling WHERE task = 'tg'")}
    assert (rows["g1"]["efficiency"], rows["g2"]["efficiency"]) == (1.0, pytest.approx(0.9))
    assert rows["g4"]["efficiency"] == pytest.approx(0.6) and rows["g4"]["base_server"] == "g1"
    assert (rows["c"]["unit"], rows["c"]["base_server"]) == ("cpu", "c")


def test_throttling_counts_busy_seconds_only(tmp_path: Path) -> None:
    rows = run_rows("a", "a")
    for k, reading in enumerate(rows["telemetry"]):
        reading.update(gpu_busy_share=0.9 if k < 20 else 0.0, gpu_throttle_reasons=0x40 if k < 5 or k > 30 else 0x4)
    with lake_of(tmp_path, rows) as lake:
        row = one(lake, "FROM v_throttling")
        assert (row["n_busy"], row["throttled_share"], row["power_capped_share"]) == (20, 0.25, 0.75)
        assert all("throttled" in r["flags"].split() for r in dicts(lake, "SELECT flags FROM v_trust"))


def test_spend_per_sweep_and_vendor(tmp_path: Path) -> None:
    lost = rows_from_events(*lost_run())
    with lake_of(tmp_path, run_rows("a", "cx22"), lost) as lake:
        row = one(lake, "FROM v_spend")
    assert (row["n_servers"], row["n_runs"], row["n_runs_failed"], row["main_failure"]) == (2, 2, 1, "server_lost")
    assert row["n_cells_measured"] == 4 and row["spent_usd"] == Decimal("0.003")
    assert row["usd_per_measured_cell"] == pytest.approx(0.003 / 4) and row["billed_h"] == pytest.approx(200 / 3600)


def test_servers_per_model(tmp_path: Path) -> None:
    with lake_of(tmp_path, run_rows("a", "cx22"), rows_from_events(*lost_run())) as lake:
        rows = {r["model"]: r for r in dicts(lake, "FROM v_models")}
    assert (rows["small"]["n_servers"], rows["small"]["n_servers_measured"], rows["small"]["n_servers_complete"]) == (
        2,
        2,
        0,
    )
    assert (rows["large"]["n_servers_measured"], rows["small"]["fastest_pp_tok_per_s"]) == (0, 64.0)


def test_leaks_and_the_proof_that_there_are_none(tmp_path: Path) -> None:
    left = run_rows("b", "left")
    left["resources"][0].update(gone_at=None, state="deleting", usd=None, deleted_at=left["server_runs"][0]["ended_at"])
    with lake_of(tmp_path, run_rows("a", "clean"), left) as lake:
        leak = one(lake, "FROM v_leaks")
        assert (leak["server"], leak["state"], leak["open_s"]) == ("left", "deleting", 100.0)
        assert leak["usd_so_far"] == pytest.approx(0.036 * 100 / 3600)
        proof = one(lake, "FROM v_teardown")
        assert (proof["n_resources"], proof["n_proven_gone"], proof["n_open"]) == (2, 1, 1)


def test_gates_are_audited_in_seconds_and_dollars(tmp_path: Path) -> None:
    with lake_of(tmp_path, run_rows("a", "cx22")) as lake:
        rows = {(r["model"], r["task"], r["n_tokens"]): r for r in dicts(lake, "FROM v_gates")}
    predicted, unpredicted = rows["small", "tg", 128], rows["large", "pp", 128]
    assert predicted["spared_s"] == pytest.approx((5 * 128 + 1) / 3.0), "a text is warmed up with one token"
    assert predicted["near_miss"] is False and unpredicted["spared_s"] == pytest.approx(6 * 128 / 10)
    assert predicted["spared_usd"] == pytest.approx(0.036 * 641 / 3.0 / 3600)
    assert unpredicted["fastest_tok_per_s"] == unpredicted["min_tok_per_s"] == 10 and unpredicted["near_miss"] is None


def test_what_other_thresholds_would_do(tmp_path: Path) -> None:
    with lake_of(tmp_path, run_rows("a", "cx22")) as lake:
        rows = {(r["task"], r["n_tokens"]): r for r in dicts(lake, "FROM what_if_gate(5) WHERE model = 'small'")}
        assert (rows["pp", 16]["min_tok_per_s"], rows["pp", 16]["n_would_fall"]) == (10.0, 1)
        assert rows["pp", 128]["n_would_fall"] == 0 and rows["tg", 128]["n_would_be_tried"] == 0
        half = one(lake, "FROM what_if_gate(0.5) WHERE model = 'small' AND task = 'tg' AND n_tokens = 128")
    assert (half["n_gated"], half["n_would_be_tried"]) == (1, 1)


def test_fits_goes_by_the_newest_hardware(tmp_path: Path) -> None:
    old, new = run_rows("a", "cx22", hardware(memory_total_bytes=2**20)), run_rows("b", "cx22", later(1), sweep_id="s2")
    with lake_of(tmp_path, old, new) as lake:
        small = one(lake, "FROM fits('small')")
        assert (small["fits_memory"], small["fits_vram"], small["measured"]) == (True, False, True)
        assert one(lake, "FROM fits('large')")["measured"] is False and dicts(lake, "FROM fits('none')") == []


def test_owning_against_renting_at_equal_work(tmp_path: Path) -> None:
    """A machine of 8 tokens/s is worth half a server of 16: half its rent of 1 USD, less 0.04 for electricity."""
    with lake_of(tmp_path, run_rows("a", "cx22", priced("1"))) as lake:
        row = one(lake, "FROM own_or_rent('small', 'tg', 16, 8, 460, 250, 0.16)")
    assert row["equivalent_rent_usd_per_hour"] == 0.5 and row["break_even_h"] == pytest.approx(1000)
    assert row["roi_first_year"] == pytest.approx(7.76)


def test_best_for_slo_shows_spread_repeats_and_flags(tmp_path: Path) -> None:
    with lake_of(tmp_path, run_rows("a", "cx22", cells(steal_share=0.5))) as lake:
        row = one(lake, "FROM best_for_slo('small', 'pp', 128, 10)")
    assert row["n_samples"] == 3 and row["half_width_pct"] == pytest.approx(13.45, abs=0.01)
    assert row["flags"] == "wide_interval steal random_weights"


def test_an_unknown_backend_with_layers_to_offload_is_no_fallback(tmp_path: Path) -> None:
    """Imported results may not name their backend; what was asked of the GPU then counts."""
    asked = run_rows("a", "asked", gpu(model="RTX Pro 6000"), cells(backend=None, ngl=999))
    not_asked = run_rows("b", "not-asked", gpu(), cells(backend=None, ngl=0))
    with lake_of(tmp_path, asked, not_asked) as lake:
        flagged = {r["server"] for r in dicts(lake, "FROM v_trust WHERE contains(flags, 'cpu_on_gpu_server')")}
        assert flagged == {"not-asked"}
        assert one(lake, "FROM v_roofline WHERE task = 'tg' AND server = 'asked'")["peak"] == 1792e9
        assert {r["unit"] for r in dicts(lake, "FROM v_scaling")} == {"gpu"}
