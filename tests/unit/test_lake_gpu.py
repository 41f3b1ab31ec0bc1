"""What GPUs did, why one was not used, and what was measured beside the ladder, from the agent's log to the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import cell_text
from tasks.domain import events as ev
from tasks.domain.actions import Decision
from tasks.domain.cells import Cell
from tasks.domain.run_plan import LadderStep
from tasks.lake import Lake, land, open_lake, query, rows_from_events
from tests.unit.lake_runs import MIB, SMALL, EventLog, make_context, make_plan

PP, TG = Cell("small", "pp", 16), Cell("small", "tg", 16)
GPU = {"index": 0, "name": "Tesla T4", "driver_version": "535.183.01", "compute_capability": "7.5",
       "memory_total_bytes": 15360 * MIB, "memory_free_bytes": 14913 * MIB, "power_limit_w": 70.0}  # fmt: skip
ON_GPU = ({"CPU model": 4.0, "CUDA0 model": 90.0}, 25, 25)
DIVIDED = ({"CPU model": 50.0, "CUDA0 model": 44.0}, 12, 25)
ON_CPU = ({"CPU model": 94.0}, None, None)


class Run:
    """One server run with a GPU: a prompt of 1 s and a generation of 2 s, five times each."""

    def __init__(self, run_id: str, server: str) -> None:
        ladder = (LadderStep("pp", 16, 2.0), LadderStep("tg", 16, 1.0))
        self.plan = replace(make_plan(server, run_id), models=(SMALL,), ladder=ladder, measured=())
        self.log = EventLog()

    def probed(self, gpus: Sequence[dict[str, Any]] = (GPU,), on_bus: int = 1) -> None:
        hardware = {"gpus": list(gpus), "gpus_on_bus": on_bus}
        self.log.event(ev.Probed(0.1, 2**34, 2**33, 2**36, 4, (14913 * MIB,), hardware))

    def decided(self, t_s: float, action: str, reason: str) -> None:
        self.log.decision(Decision(t_s, action, "runtime", reason, {}))

    def smi(self, t_s: float, used_mib: int, power_w: float, bits: int = 0) -> None:
        gpu = {"index": 0, "utilization_pct": 97.0, "memory_used_bytes": used_mib * MIB, "power_w": power_w,
               "sm_clock_mhz": 1590.0, "temperature_c": 60.0, "throttle_reasons": bits}  # fmt: skip
        self.log.add("Telemetry", t_s, gpus=[gpu])

    def measured(self, engine: tuple[dict[str, float], int | None, int | None], used_mib: int, bits: int = 0) -> None:
        """Process at 1 s, pp repeats from 3 to 8 s, tg repeats from 8 to 18 s."""
        log = self.log
        self.smi(0.9, 10, 20.0)
        log.event(ev.BenchStarted(1.0, "small", "cuda+avx2", (PP, TG)))
        log.event(ev.WarmupStarted(2.0, PP))
        log.event(ev.EngineLoaded(2.0, "small", "cuda+avx2", *engine))
        t_s = 3.0
        for cell, seconds in ((PP, 1.0), (TG, 2.0)):
            for k in range(1, 6):
                log.event(ev.RepeatStarted(t_s, cell, k, 5))
                for _ in range(int(seconds)):
                    t_s += 1.0
                    self.smi(t_s, used_mib, 60.0 if cell is PP else 40.0, bits)
            row = {"n_prompt": 16 if cell is PP else 0, "n_gen": 0 if cell is PP else 16, "backends": "CUDA",
                   "n_gpu_layers": 25, "n_threads": 4}  # fmt: skip
            log.event(ev.BenchRow(t_s, cell, (seconds,) * 5, row))
        log.event(ev.BenchExited(t_s, "small", 0, False))

    def variant(
        self, t_s: float, kind: str, label: str, rows: Sequence[dict[str, Any]], outcome: str = "measured", **more: Any
    ) -> None:
        self.log.event(ev.VariantEnded(t_s, kind, label, "small", outcome, t_s - 2.0, "b", more, list(rows), ""))

    def land(self, root: Path, **context: Any) -> None:
        self.log.finished(100.0, "complete", [(PP, "ok", (1.0,) * 5), (TG, "ok", (2.0,) * 5)])
        land(root, self.plan.server_run_id, rows_from_events(self.plan, self.log.lines, make_context(**context)))


def cells_of(lake: Lake) -> dict[str, dict[str, Any]]:
    return {row["task"]: row for row in query(lake, "FROM cells ORDER BY task").to_dicts()}


def flags_of(lake: Lake) -> dict[str, set[str]]:
    return {r["task"]: set(r["flags"].split()) for r in query(lake, "FROM v_trust").to_dicts()}


def bench(n_prompt: int, n_gen: int, tok_per_s: float, **more: Any) -> dict[str, Any]:
    samples = [(n_prompt + n_gen) / tok_per_s * 1e9 * f for f in (0.99, 1.0, 1.01)]
    return {"n_prompt": n_prompt, "n_gen": n_gen, "n_depth": 0, "samples_ns": samples, "instance": 0, **more}


def test_a_gpu_that_was_used_shows_in_every_column(tmp_path: Path) -> None:
    run = Run("a", "t4")
    run.probed()
    run.measured(ON_GPU, used_mib=130)
    run.land(tmp_path)
    with open_lake(tmp_path) as lake:
        cells, flags = cells_of(lake), flags_of(lake)
        (hardware,) = query(lake, "FROM hardware").to_dicts()
    tg = cells["tg"]
    assert (tg["backend_used"], tg["cpu_fallback"]) == ("CUDA", None)
    assert (tg["layers_offloaded"], tg["layers_total"]) == (25, 25)
    assert tg["vram_used_bytes"] == 120 * MIB, "what was in use before the load is not the model's"
    assert tg["gpu_power_w"] == pytest.approx(40.0)
    assert tg["gpu_j_per_token"] == pytest.approx(40.0 * 2.0 / 16)
    assert cells["pp"]["gpu_j_per_token"] == pytest.approx(60.0 * 1.0 / 16)
    assert (tg["gpu_clock_mhz"], tg["gpu_throttled_share"]) == (1590.0, 0.0)
    assert (hardware["n_gpus"], hardware["n_gpus_on_bus"], hardware["gpu_fault"]) == (1, 1, None)
    assert not flags["tg"] & {"cpu_fallback", "gpu_memory_unused"}


def test_a_fall_back_to_the_cpu_goes_with_every_number(tmp_path: Path) -> None:
    run = Run("a", "t4")
    run.probed()
    run.decided(0.2, "fall_back_to_cpu", "fabric_manager")
    run.measured(ON_CPU, used_mib=10)
    run.land(tmp_path)
    with open_lake(tmp_path) as lake:
        cells, flags = cells_of(lake), flags_of(lake)
        (hardware,) = query(lake, "FROM hardware").to_dicts()
        (shown, *_) = query(lake, "SELECT *, tok_per_s AS tok_per_s_median FROM v_speed").to_dicts()
    for cell in cells.values():
        assert (cell["backend_used"], cell["cpu_fallback"]) == ("CPU", "fabric_manager")
    assert all("cpu_fallback" in found for found in flags.values())
    assert hardware["gpu_fault"] == "fabric_manager"
    assert cell_text(shown).endswith("on the CPU (fabric_manager)"), "the closing table says it too"


def test_a_gpu_without_a_driver_is_a_fault_of_the_server(tmp_path: Path) -> None:
    run = Run("a", "t4")
    run.probed(gpus=(), on_bus=1)
    run.measured(ON_CPU, used_mib=10)
    run.land(tmp_path)
    with open_lake(tmp_path) as lake:
        (hardware,) = query(lake, "FROM hardware").to_dicts()
    assert (hardware["n_gpus"], hardware["n_gpus_on_bus"], hardware["gpu_fault"]) == (0, 1, "no_gpu_driver")


def test_a_divided_model_is_told_as_such(tmp_path: Path) -> None:
    run = Run("a", "t4")
    run.probed()
    run.measured(DIVIDED, used_mib=60)
    run.land(tmp_path)
    with open_lake(tmp_path) as lake:
        assert cells_of(lake)["tg"]["backend_used"] == "CUDA+CPU"
        (shown, *_) = query(lake, "SELECT *, tok_per_s AS tok_per_s_median FROM v_speed").to_dicts()
    assert cell_text(shown).endswith("with 12 of 25 layers on the GPU")


def test_a_model_without_a_layer_on_the_gpu_is_told_as_such(tmp_path: Path) -> None:
    run = Run("a", "t4")
    run.probed()
    run.measured(({"CPU model": 94.0}, 0, 25), used_mib=10)
    run.land(tmp_path)
    with open_lake(tmp_path) as lake:
        (shown, *_) = query(lake, "SELECT *, tok_per_s AS tok_per_s_median FROM v_speed").to_dicts()
    assert cell_text(shown).endswith("with 0 of 25 layers on the GPU")


def test_a_server_without_a_gpu_says_nothing_of_layers(tmp_path: Path) -> None:
    run = Run("a", "t4")
    run.probed(gpus=())
    run.measured(({"CPU model": 94.0}, None, 25), used_mib=10)
    run.land(tmp_path)
    with open_lake(tmp_path) as lake:
        (shown, *_) = query(lake, "SELECT *, tok_per_s AS tok_per_s_median FROM v_speed").to_dicts()
    assert "layers" not in cell_text(shown) and "None" not in cell_text(shown)


def test_the_closing_table_has_the_half_width_of_the_view(tmp_path: Path) -> None:
    """Repeats of 1, 1 and 9 s: an interval that would reach below 0 is cut off there, and is no narrower for it."""
    run = Run("a", "t4")
    run.log.finished(100.0, "complete", [(PP, "ok", (1.0, 1.0, 9.0)), (TG, "ok", (2.0,) * 5)])
    land(tmp_path, "a", rows_from_events(run.plan, run.log.lines, make_context()))
    with open_lake(tmp_path) as lake:
        (shown, *_) = query(lake, "SELECT *, tok_per_s AS tok_per_s_median FROM v_speed WHERE task = 'pp'").to_dicts()
    assert shown["tok_per_s_ci95_low"] == 0 and shown["half_width_pct"] == pytest.approx(181.17, abs=0.01)
    assert cell_text(shown) == "16.0 ±181.2 %"


def test_memory_that_does_not_show_the_model_and_heat_are_flagged(tmp_path: Path) -> None:
    run = Run("a", "t4")
    run.probed()
    run.measured(ON_GPU, used_mib=15, bits=0x40)
    run.land(tmp_path)
    with open_lake(tmp_path) as lake:
        assert cells_of(lake)["tg"]["gpu_throttled_share"] == 1.0
        assert {"gpu_memory_unused", "throttled"} <= flags_of(lake)["tg"]


def test_anchors_tell_whether_a_server_kept_its_speed(tmp_path: Path) -> None:
    for run_id, server, end in (("a", "steady", 100.0), ("b", "slower", 80.0)):
        run = Run(run_id, server)
        run.probed()
        run.measured(ON_GPU, used_mib=130)
        for t_s, label, speed in ((20.0, "start", 100.0), (30.0, "middle", 99.0), (40.0, "end", end)):
            run.variant(t_s, "anchor", label, [bench(16, 0, 10 * speed), bench(0, 16, speed)])
        run.land(tmp_path)
    with open_lake(tmp_path) as lake:
        anchors = {(r["server"], r["task"]): r for r in query(lake, "FROM v_anchors").to_dicts()}
        flagged = {r["server"] for r in query(lake, "FROM v_trust WHERE contains(flags, 'anchor_drift')").to_dicts()}
    assert anchors["slower", "tg"]["drift_ratio"] == pytest.approx(0.8)
    assert anchors["slower", "tg"]["start_tok_per_s"] == pytest.approx(100.0)
    assert (anchors["slower", "tg"]["drifted"], anchors["steady", "tg"]["drifted"]) == (True, False)
    assert anchors["steady", "pp"]["n_anchors"] == 3
    assert flagged == {"slower"}


def test_two_gpus_against_one(tmp_path: Path) -> None:
    run = Run("a", "2xt4")
    run.probed()
    run.measured(ON_GPU, used_mib=130)
    for i, speed in enumerate((100.0, 50.0)):
        run.variant(20.0 + i, "gpu", f"CUDA{i}", [bench(0, 16, speed, device_set=f"CUDA{i}")], devices=[f"CUDA{i}"])
    run.variant(30.0, "gpu_set", "2 GPUs", [bench(0, 16, 120.0, device_set="CUDA0/CUDA1")], devices=["CUDA0/CUDA1"])
    both = [bench(0, 16, 75.0, device_set=f"CUDA{i}", instance=i) for i in range(2)]
    run.variant(40.0, "instances", "2 instances", both, devices=["CUDA0", "CUDA1"])
    run.land(tmp_path)
    with open_lake(tmp_path) as lake:
        found = {r["how"]: r for r in query(lake, "FROM v_gpu_scaling").to_dicts()}
    assert found["set"]["n_gpus"] == 2
    assert found["set"]["speedup"] == pytest.approx(1.6)
    assert found["set"]["efficiency"] == pytest.approx(0.8)
    assert found["instances"]["tok_per_s"] == pytest.approx(150.0)
    assert found["instances"]["efficiency"] == pytest.approx(1.0)
    assert found["set"]["slowest_gpu_ratio"] == pytest.approx(50 / 75)


def test_several_sequences_at_once_and_what_failed(tmp_path: Path) -> None:
    run = Run("a", "t4")
    run.probed()
    run.measured(ON_GPU, used_mib=130)
    rows = [
        {"n_kv_max": 1600, "n_gpu_layers": 25, "n_threads": 4, "pp": 128, "tg": 32, "pl": pl, "n_kv": 160 * pl,
         "t_pp": 0.1, "speed_pp": 1280.0, "t_tg": 1.0, "speed_tg": tg, "t": 1.1, "speed": tg, "instance": 0}
        for pl, tg in ((1, 30.0), (5, 120.0), (10, 180.0))
    ]  # fmt: skip
    run.variant(20.0, "batched", "1-5-10", rows)
    run.variant(30.0, "depth", "d4096", [], outcome="timed_out")
    run.variant(40.0, "kv_type", "q8_0", [bench(0, 16, 50.0, type_k="q8_0", type_v="q8_0")])
    run.land(tmp_path)
    with open_lake(tmp_path) as lake:
        found = {r["n_sequences"]: r for r in query(lake, "FROM v_concurrency").to_dicts()}
        variants = query(lake, "SELECT kind, outcome, n_samples, cache_type_k, seconds FROM variants ORDER BY k").rows()
    assert {n: r["speedup"] for n, r in found.items()} == {1: 1.0, 5: 4.0, 10: 6.0}
    assert found[10]["tok_per_s_per_sequence"] == pytest.approx(18.0)
    assert found[1]["usd_per_mtok"] > found[10]["usd_per_mtok"] > 0
    assert variants[3:] == [("depth", "timed_out", 0, None, 2.0), ("kv_type", "measured", 3, "q8_0", 2.0)]


def test_a_long_run_shows_burst_and_baseline(tmp_path: Path) -> None:
    run = Run("a", "t3.micro")
    run.probed()
    run.measured(ON_CPU, used_mib=10)
    for i in range(60):
        speed = 100.0 if i < 20 else 15.0
        run.variant(30.0 + 10 * i, "sustain", f"{10 * i} s", [bench(0, 16, speed)])
    run.land(tmp_path, vendor="aws")
    with open_lake(tmp_path) as lake:
        (found,) = query(lake, "FROM v_sustained").to_dicts()
        flags = flags_of(lake)
    assert (found["burst_kind"], found["burst_baseline_share"], found["fell"]) == ("credits", 0.10, True)
    assert found["burst_tok_per_s"] == pytest.approx(100.0)
    assert found["baseline_ratio"] == pytest.approx(0.15)
    assert found["measured_s"] == pytest.approx(590.0)
    assert "burst" in flags["tg"]
