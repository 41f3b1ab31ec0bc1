"""Measurements beside the ladder, as the agent runs them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from agent.variant_run import VariantRun, variant_argv

from tasks.domain.actions import StartVariant
from tasks.domain.events import VariantEnded, event_from_dict
from tasks.domain.run_plan import LadderStep
from tasks.domain.variants import Variant
from tasks.lake import land, open_lake, query, rows_from_events
from tests.agent.agent_run import AgentRun, of_kind, outcomes, plan_for
from tests.agent.gpu_output import LIST_T4, NO_DEVICE, USE_T4, install_nvidia_smi, runtime_of_programs, says
from tests.agent.model_server import ModelServer
from tests.agent.runtimes import real_model, real_runtime
from tests.agent.small_gguf import small_gguf
from tests.unit.lake_runs import make_context

LADDER = (LadderStep("pp", 16, 2.0), LadderStep("tg", 8, 1.0))


def ended(lines: list[dict[str, Any]]) -> list[VariantEnded]:
    found = [event_from_dict(line) for line in of_kind(lines, "VariantEnded")]
    return [event for event in found if isinstance(event, VariantEnded)]


def test_the_real_engine_measures_depth_combined_cells_and_cache_types(
    agent_pyz: Path, tmp_path: Path, server: ModelServer
) -> None:
    runtime, _ = real_runtime()
    data = real_model().read_bytes()
    run = AgentRun(agent_pyz, tmp_path / "run", runtime)
    wanted = {"depth": [64], "combined": [[16, 8]], "kv_types": ["bf16", "q8_0"]}
    run.put(plan_for({"tiny": (server.put("/tiny", data), data)}, ladder=LADDER, variants=wanted, n_threads=1))
    lines = run.finish()
    assert set(outcomes(lines).values()) <= {"ok", "fewer_repeats"}
    depth, combined, cache = ended(lines)
    assert [(e.variant, e.label, e.outcome) for e in (depth, combined, cache)] == [
        ("depth", "d64", "measured"), ("combined", "pg16+8", "measured"), ("kv_type", "bf16", "measured"),
    ]  # fmt: skip
    assert [(r["n_prompt"], r["n_gen"], r["n_depth"]) for r in depth.rows] == [(16, 0, 64), (0, 8, 64)]
    assert [(r["n_prompt"], r["n_gen"]) for r in combined.rows] == [(16, 8)]
    assert {(r["type_k"], r["type_v"]) for r in cache.rows} == {("bf16", "bf16")}, (
        "q8_0 has blocks of 32, and heads of 48 are no multiple"
    )
    assert all(len(r["samples_ns"]) == 3 for e in (depth, combined, cache) for r in e.rows)
    assert {p["name"] for p in of_kind(lines, "Phase")} >= {"variant"}
    assert run.processes() == []


def test_the_real_engine_decodes_several_sequences_at_once(
    agent_pyz: Path, tmp_path: Path, server: ModelServer
) -> None:
    runtime, _ = real_runtime()
    data = real_model().read_bytes()
    run = AgentRun(agent_pyz, tmp_path / "run", runtime)
    models, wanted = {"tiny": (server.put("/tiny", data), data)}, {"batched": [1, 3, 100_000]}
    plan = plan_for(models, ladder=LADDER, variants=wanted, n_threads=1)
    run.put(plan)
    lines = run.finish()
    (batched,) = ended(lines)
    assert (batched.variant, batched.label, batched.outcome) == ("batched", "1-3", "measured"), batched.detail
    assert [(r["pl"], r["pp"], r["tg"]) for r in batched.rows] == [(1, 128, 32), (3, 128, 32)]
    for row in batched.rows:
        assert row["n_kv_max"] == 3 * 256, "what was reckoned with when memory was looked at"
        assert row["speed_tg"] == pytest.approx(row["pl"] * 32 / row["t_tg"], rel=0.01)
        assert row["speed"] == pytest.approx(row["pl"] * 160 / row["t"], rel=0.01)
    assert run.processes() == []

    land(tmp_path / "lake", "r", rows_from_events(plan, lines, make_context()))
    with open_lake(tmp_path / "lake") as lake:
        one, three = query(lake, "FROM v_concurrency ORDER BY n_sequences").to_dicts()
    assert (one["n_sequences"], three["n_sequences"]) == (1, 3)
    assert three["tg_tok_per_s"] == batched.rows[1]["speed_tg"]
    assert three["speedup"] == pytest.approx(batched.rows[1]["speed_tg"] / batched.rows[0]["speed_tg"])


def test_anchors_of_the_real_engine_come_at_the_start_the_middle_and_the_end(
    agent_pyz: Path, tmp_path: Path, server: ModelServer
) -> None:
    runtime, _ = real_runtime()
    data = real_model().read_bytes()
    run = AgentRun(agent_pyz, tmp_path / "run", runtime)
    models = {name: (server.put(f"/{name}", data), data) for name in ("a", "b", "c")}
    run.put(plan_for(models, ladder=LADDER, variants={"anchor": True}, n_threads=1))
    lines = run.finish()
    found = ended(lines)
    assert [(e.model, e.label, e.outcome) for e in found] == [
        ("a", label, "measured") for label in ("start", "middle", "end")
    ]
    kinds = [(line["kind"], line.get("model")) for line in lines if line["kind"] in ("BenchStarted", "VariantEnded")]
    assert kinds == [("BenchStarted", "a"), ("VariantEnded", "a"), ("BenchStarted", "b"), ("VariantEnded", "a"),
                     ("BenchStarted", "c"), ("VariantEnded", "a")]  # fmt: skip
    assert list((run.folder / "models").iterdir()) == [], "the anchor's file goes at the end"


ENGINE = """#!/usr/bin/env python3
# Stands in for a CUDA build of llama-bench: every process says on which devices it ran.
import json, os, sys
def value(name, default=""):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default
err = sys.stderr.write
n = int(value("-ngl", "0"))
if n > int(os.environ.get("FITTING_LAYERS", "999")) and "probe" not in value("-m"):
    err("allocating 14336.00 MiB on device 0: cudaMalloc failed: out of memory\\n")
    sys.exit(1)
err("load_tensors: offloaded %d/3 layers to GPU\\n" % min(n, 3))
err("load_tensors:        CUDA0 model buffer size =     0.90 MiB\\n")
numbers = lambda name: [int(n) for n in value(name).split(",") if n != "0"]
tests = [(p, 0) for p in numbers("-p")] + [(0, g) for g in numbers("-n")]
for i, (p, g) in enumerate(tests):
    mark = "llama-bench: benchmark %d/%d: " % (i + 1, len(tests))
    kind = "prompt" if p else "generation"
    err(mark + "warmup " + kind + " run\\n")
    for k in range(int(value("-r"))):
        err(mark + kind + " run %d/%s\\n" % (k + 1, value("-r")))
    sys.stderr.flush()
    speed = 1000.0 * (1 + 0.8 * value("-dev").count("/"))
    row = {"backends": "CUDA", "n_prompt": p, "n_gen": g, "n_depth": 0, "n_gpu_layers": n, "devices": value("-dev"),
           "n_threads": 1, "samples_ns": [int((p + g) / speed * 1e9)] * int(value("-r"))}
    sys.stdout.write(json.dumps(row) + "\\n")
    sys.stdout.flush()
"""


@pytest.fixture
def cuda_runtime(tmp_path: Path) -> Path:
    runtime = tmp_path / "runtime"
    (runtime / "bin").mkdir(parents=True)
    program = runtime / "bin" / "llama-bench"
    program.write_text(ENGINE)
    program.chmod(0o755)
    builds = [{"name": "cuda+generic", "backend": "cuda", "cpu_flags": []}, {"name": "generic", "cpu_flags": []}]
    (runtime / "manifest.json").write_text(json.dumps({"builds": builds}))
    return runtime


def test_two_gpus_are_measured_alone_together_and_each_with_an_instance(
    agent_pyz: Path, tmp_path: Path, server: ModelServer, cuda_runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvidia-smi and the engine are stand-ins: there is no GPU here. What is asked of them is the agent's own."""
    gpus = [LIST_T4.format(index=i, free=14913) for i in range(2)]
    use = [
        USE_T4.format(index=i, busy=97, used=512, free=14400, power=65.5, reasons="0x0000000000000004") for i in (0, 1)
    ]
    smi = install_nvidia_smi(tmp_path / "smi", gpus, use)
    monkeypatch.setenv("PATH", f"{smi.parent}:/usr/bin:/bin")
    data = small_gguf(tmp_path / "small.gguf")
    run = AgentRun(agent_pyz, tmp_path / "run", cuda_runtime)
    wanted = {"gpus": True, "instances": True, "threads": True}
    run.put(plan_for({"small": (server.put("/small", data), data)}, ladder=LADDER, variants=wanted))
    lines = run.finish()
    assert set(outcomes(lines).values()) == {"ok"}
    (probed,) = of_kind(lines, "Probed")
    assert probed["vram_free_bytes"] == [14913 << 20] * 2
    (offload,) = [d for d in of_kind(lines, "Decision") if d["action"] == "offload"]
    assert (offload["reason"], offload["evidence"]["ngl"]) == ("ok", 3)
    assert {row["row"]["n_gpu_layers"] for row in of_kind(lines, "BenchRow")} == {3}
    (loaded,) = of_kind(lines, "EngineLoaded")
    assert (loaded["layers_offloaded"], loaded["layers_total"]) == (3, 3)
    found = {event.label: event for event in ended(lines)}
    assert list(found) == ["CUDA0", "CUDA1", "2 GPUs", "2 instances"]
    assert {r["devices"] for r in found["2 GPUs"].rows} == {"CUDA0/CUDA1"}
    assert {(r["instance"], r["devices"]) for r in found["2 instances"].rows} == {(0, "CUDA0"), (1, "CUDA1")}
    assert not [d for d in of_kind(lines, "Decision") if d["action"] == "fall_back_to_cpu"]


def test_a_model_that_does_not_fit_the_gpu_is_loaded_with_fewer_layers(
    agent_pyz: Path, tmp_path: Path, server: ModelServer, cuda_runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = install_nvidia_smi(tmp_path / "smi", [LIST_T4.format(index=0, free=14913)])
    monkeypatch.setenv("PATH", f"{smi.parent}:/usr/bin:/bin")
    data = small_gguf(tmp_path / "small.gguf")
    run = AgentRun(agent_pyz, tmp_path / "run", cuda_runtime)
    run.environment["FITTING_LAYERS"] = "1"
    run.put(plan_for({"small": (server.put("/small", data), data)}, ladder=LADDER))
    lines = run.finish()
    assert set(outcomes(lines).values()) == {"ok"}
    assert [e["rc"] for e in of_kind(lines, "BenchExited")] == [1, 0]
    (fewer,) = [d for d in of_kind(lines, "Decision") if d["action"] == "fewer_layers"]
    assert (fewer["evidence"]["ngl_failed"], fewer["evidence"]["ngl"]) == (3, 1)
    assert {row["row"]["n_gpu_layers"] for row in of_kind(lines, "BenchRow")} == {1}
    (loaded,) = of_kind(lines, "EngineLoaded")
    assert (loaded["layers_offloaded"], loaded["layers_total"]) == (1, 3)


@pytest.mark.parametrize(
    ("row", "log", "outcome"),
    [
        ({"backends": "CUDA", "gpu_info": "Tesla T4"}, "", "measured"),
        ({"backends": "CUDA", "gpu_info": ""}, "", "failed"),
        ({"pp": 128}, f"{NO_DEVICE}\n" + "a line of the log\n" * 1000, "failed"),
    ],
)
def test_a_variant_that_a_cuda_build_ran_on_the_cpu_is_none_of_the_gpus(
    tmp_path: Path, row: dict[str, Any], log: str, outcome: str
) -> None:
    """llama-bench goes on without a GPU and ends well; `backends` is what the build has, `gpu_info` what is there."""
    program = says(tmp_path / "program", log, 0)
    program.write_text(program.read_text().replace("exit 0", f"echo '{json.dumps(row)}'"))
    builds = [{"name": "generic"}]
    runtime = runtime_of_programs(tmp_path, builds, {"generic": program})
    run = VariantRun(start(kind="anchor"), runtime, tmp_path / "m.gguf", 1, {}, 0.0)
    while not run.ended:
        run.read()
        time.sleep(0.01)
    event = run.reap(1.0)
    assert (event.outcome, len(event.rows)) == (outcome, int(outcome == "measured"))
    assert event.detail.startswith("gpu_not_used" if outcome == "failed" else "")


def start(**changes: Any) -> StartVariant:
    values = {"kind": "batched", "label": "x", "model": "m", "n_prompt": (128,), "n_gen": (32,), **changes}
    return StartVariant(Variant(**values), "generic", 33, 0)


def test_batched_decoding_is_asked_for_as_its_program_wants_it() -> None:
    argv = variant_argv(Path("/r"), Path("/m.gguf"), start(sequences=(1, 5, 10), n_ctx=1600), "", 4)
    assert argv[0] == "/r/bin/llama-batched-bench"
    pairs = dict(zip(argv[1::2], argv[2::2], strict=True))
    assert pairs == {
        "-m": "/m.gguf", "-t": "4", "-b": "2048", "-ub": "512", "-lm": "none", "-ngl": "33", "-fa": "on", "-c": "1600",
        "-npp": "128", "-ntg": "32", "-npl": "1,5,10", "--output-format": "jsonl",
    }  # fmt: skip


def test_numa_and_devices_reach_the_engine() -> None:
    argv = variant_argv(Path("/r"), Path("/m.gguf"), start(kind="numa", numa="distribute"), "CUDA1", 4)
    assert argv[argv.index("--numa") + 1] == "distribute"
    assert argv[argv.index("-dev") + 1] == "CUDA1"
    assert argv[argv.index("-p") + 1] == "128"
