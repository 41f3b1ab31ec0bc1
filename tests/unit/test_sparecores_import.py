"""Published results become foreign runs of the lake; damage is counted and stops nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.domain.errors import ConfigError
from tasks.lake import open_lake, query
from tasks.lake.sparecores import cache_bytes
from tasks.lake.sparecores_land import import_sparecores

SMALL, LARGE = "SmolLM-135M.Q4_K_M.gguf", "Llama-3.3-70B-Instruct-Q4_K_M.gguf"
LOG = f"""\
2025-04-12 05:46:18,162 - INFO - Benchmarking model {SMALL} ...
2025-04-12 05:46:19,880 - DEBUG - Downloaded model {SMALL} (100.57 MB) in 1.71 sec (58.75 MB/s)
2025-04-12 05:46:20,000 - DEBUG - Benchmarking prompt processing with 16 tokens for max 41 sec
2025-04-12 05:46:22,000 - DEBUG - Benchmarking prompt processing with 128 tokens for max 65 sec
2025-04-12 05:47:27,000 - ERROR - Error: Command '['./llama-bench', '-p', '128']' timed out after 65 seconds
llama_model_load: a line of llama-bench itself
2025-04-12 05:47:27,001 - INFO - Skipping prompt processing benchmarks with 128+ tokens due to time constraints.
2025-04-12 05:47:28,000 - DEBUG - Benchmarking text generation with 16 tokens for max 81 sec
2025-04-12 05:47:30,000 - DEBUG - Benchmarking text generation with 1024 tokens for max 104 sec
2025-04-12 05:47:40,000 - ERROR - Skipping text generation benchmarks with 1024+ tokens as it's unlikely to hit the \
expected 250 tokens/sec.
2025-04-12 05:47:41,000 - INFO - Benchmarking model {LARGE} ...
2025-04-12 05:47:41,100 - ERROR - {LARGE} was not downloaded in time
"""


def row(model: str, n_prompt: int, n_gen: int, samples_s: list[float]) -> str:
    return json.dumps(
        {
            "build_commit": "51f311e0", "build_number": 4753, "backends": "CPU", "model_filename": f"/models/{model}",
            "n_threads": 2, "n_gpu_layers": 0, "n_prompt": n_prompt, "n_gen": n_gen, "an_unknown_key": [1],
            "samples_ns": [int(s * 1e9) for s in samples_s],
        }
    )  # fmt: skip


def server(root: Path, vendor: str, name: str, **files: str) -> Path:
    """A server's folder; keys are `task__file`."""
    folder = root / "data" / vendor / name
    for key, text in files.items():
        task, _, file = key.partition("__")
        (folder / task).mkdir(parents=True, exist_ok=True)
        (folder / task / file.replace("_json", ".json")).write_text(text)
    return folder


META = {
    "start": "2025-04-12T05:41:03.226075",
    "end": "2025-04-12T05:53:20.638779",
    "exit_code": 0,
    "version": "51f311e0",
}
LSCPU = {"lscpu": [{"field": "CPU(s):", "data": "2"}, {"field": "Vendor ID:", "data": "GenuineIntel",
         "children": [{"field": "Model name:", "data": "Xeon X"},
                      {"field": "L3 cache:", "data": "37486592 (1 instance)"}]}]}  # fmt: skip
STDOUT = "\n".join(
    [row(SMALL, 16, 0, [0.5, 0.4, 0.5, 0.5, 0.6]), row(SMALL, 0, 16, [1.0] * 5), row(SMALL, 0, 1024, [9.0] * 5)]
)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    server(
        tmp_path, "aws", "c1.medium", llm__meta_json=json.dumps(META), llm__stdout=STDOUT, llm__stderr=LOG,
        lscpu__stdout=json.dumps(LSCPU),
    )  # fmt: skip
    return tmp_path


def ask(lake: Path, sql: str) -> list[dict[str, Any]]:
    with open_lake(lake) as opened:
        assert opened.problems == []
        return query(opened, sql).to_dicts()


def test_every_cell_of_a_run_gets_its_outcome_and_the_source_stays_with_it(whole: Path, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    report = import_sparecores(whole, lake)
    assert (report.n_runs, report.n_cells, report.n_measured, report.n_samples) == (1, 66, 3, 15)
    assert not report.unreadable
    cells = ask(lake, "SELECT model, task, n_tokens, outcome, reason, source, tok_per_s_median, n_threads FROM v_cells")
    by = {(c["model"], c["task"], c["n_tokens"]): c for c in cells}
    assert by["smollm-135m", "pp", 16]["tok_per_s_median"] == pytest.approx(32.0)
    assert by["smollm-135m", "pp", 128]["reason"] == "cell_timeout"
    assert by["smollm-135m", "pp", 512]["reason"] == "shorter_cell_too_slow"
    assert by["smollm-135m", "tg", 1024]["outcome"] == "measured"
    assert by["smollm-135m", "tg", 4096]["reason"] == "predicted_too_slow"
    assert by["llama-3.3-70b", "tg", 16]["reason"] == "download_too_slow"
    assert {c["source"] for c in cells} == {"sparecores/sc-inspector-data"}
    (run,) = ask(lake, "SELECT * FROM v_server_runs")
    assert "CC BY-SA 4.0" in run["detail"] and run["methodology_version"] == 0
    assert run["started_at"] == datetime(2025, 4, 12, 5, 41, 3, 226075, UTC)
    (machine,) = ask(lake, "SELECT cpu_model, n_cpus, cpu_vendor, l3_bytes FROM hardware")
    assert machine == {"cpu_model": "Xeon X", "n_cpus": 2, "cpu_vendor": "GenuineIntel", "l3_bytes": 37486592}
    (download,) = ask(lake, "SELECT seconds, outcome FROM downloads")
    assert download == {"seconds": 1.71, "outcome": "finished"}


def test_the_cpu_is_the_one_that_llama_bench_saw(whole: Path, tmp_path: Path) -> None:
    stdout = whole / "data" / "aws" / "c1.medium" / "llm" / "stdout"
    lines = [json.dumps({**json.loads(line), "cpu_info": "EPYC Y"}) for line in STDOUT.splitlines()]
    stdout.write_text("\n".join(lines))
    import_sparecores(whole, tmp_path / "lake")
    (machine,) = ask(tmp_path / "lake", "SELECT cpu_model, n_cpus, cpu_vendor, l3_bytes FROM hardware")
    assert machine == {"cpu_model": "EPYC Y", "n_cpus": 2, "cpu_vendor": None, "l3_bytes": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("37486592 (1 instance)", 37486592), ("32 MiB (1 instance)", 2**25), ("32768K", 2**25), ("", None), (None, None)],
)
def test_sizes_of_caches_are_read_in_either_form(text: str | None, expected: int | None) -> None:
    assert cache_bytes(text) == expected


def test_a_second_import_replaces_the_first(whole: Path, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    import_sparecores(whole, lake)
    import_sparecores(whole, lake)
    assert ask(lake, "SELECT count(*) AS n FROM v_cells") == [{"n": 66}]


def test_damage_is_counted_and_the_rest_is_kept(whole: Path, tmp_path: Path) -> None:
    broken = "\n".join([row(SMALL, 16, 0, [0.5] * 5), "{half a li", row("unknown.gguf", 16, 0, [1.0]),
                        row(SMALL, 128, 0, []), row(SMALL, 16, 0, [0.7] * 5), "[1, 2]"])  # fmt: skip
    server(whole, "aws", "broken.out", llm__meta_json=json.dumps(META), llm__stdout=broken, llm__stderr=LOG)
    server(whole, "gcp", "no-meta", llm__stdout=STDOUT, llm__stderr=LOG)
    server(whole, "gcp", "bad-meta", llm__meta_json="{", llm__stderr="\x00\xff not a log")
    server(whole, "gcp", "never-ran", llm__meta_json=json.dumps({**META, "exit_code": -1, "error_msg": "no quota"}))
    server(
        whole,
        "hcloud",
        "bad-gpu",
        llm__meta_json=json.dumps(META),
        llm__stdout=STDOUT,
        nvidia_smi__stdout="<nvidia_smi_log><gpu>",
    )
    report = import_sparecores(whole, tmp_path / "lake", n_processes=2)
    assert report.n_servers == 6
    assert report.unreadable["llm/stdout: a line that is no row of llama-bench"] == 3
    assert report.unreadable["llm/stdout: a row without samples"] == 1
    assert report.unreadable["llm/stdout: a second row of a cell"] == 1
    assert report.unreadable["llm/meta.json: missing or damaged"] == 2
    assert report.unreadable["servers without anything to read"] == 1
    assert report.unreadable["nvidia_smi/stdout: damaged"] == 1
    vendors = query(open_lake(tmp_path / "lake"), "SELECT DISTINCT vendor FROM server_runs").to_series().to_list()
    assert "hetzner" in vendors and "hcloud" not in vendors, "one name for a vendor, whoever measured"
    runs = {r["server"]: r for r in ask(tmp_path / "lake", "SELECT server, outcome, n_measured FROM v_server_runs")}
    assert set(runs) == {"c1.medium", "broken.out", "no-meta", "never-ran", "bad-gpu"}
    assert runs["never-ran"]["outcome"] == "failed" and runs["broken.out"]["n_measured"] == 1


def test_trace_tables_give_the_same_rows(tmp_path: Path) -> None:
    key = {"vendor": "aws", "server": "a1.large", "run": 1}
    times = {"start": "2025-04-16T20:28:21", "end": "2025-04-16T20:42:36"}
    kind = {"cpu_model": "Cortex-A72", "cpu_info": "CPU", "vcpus": 2, "memory_mib": 4096.0, "price_usd_hour": 0.051}
    runs = pl.DataFrame([{**key, **times, **kind, "is_latest": True, "exit_code": 0}])
    runs.write_parquet(tmp_path / "runs.parquet")  # fmt: skip
    bench = {**key, "task": "pp", "n_tokens": 16, "model": SMALL}
    none = {**bench, "samples_ns": None, "started": None}
    pl.DataFrame([
        {**bench, "status": "ok", "samples_ns": [10**9] * 5, "gate_reason": None, "started": 50.0},
        {**none, "n_tokens": 128, "status": "gated", "gate_reason": "after_timeout"},
        {**none, "n_tokens": 512, "status": "sideways", "gate_reason": None},
    ]).write_parquet(tmp_path / "benches.parquet")  # fmt: skip
    pl.DataFrame([{**key, "model": SMALL, "status": "done", "seconds": 2.0, "finished": 40.0}]
                 ).write_parquet(tmp_path / "downloads.parquet")  # fmt: skip
    report = import_sparecores(tmp_path, tmp_path / "lake")
    assert (report.n_runs, report.n_measured, report.n_cells) == (1, 1, 2)
    assert report.unreadable["benches: a status that is not known, or ok without samples"] == 1
    (cell,) = ask(tmp_path / "lake", "SELECT tok_per_s_mean, usd_per_mtok FROM v_latest")
    assert cell["tok_per_s_mean"] == pytest.approx(16.0) and cell["usd_per_mtok"] > 0


def test_earlier_runs_of_a_server_show_its_drift(tmp_path: Path) -> None:
    older, newer = ({"vendor": "aws", "server": "a1.large", "run": n} for n in (1, 2))
    pl.DataFrame(
        [
            {**older, "start": "2025-04-16T20:28:21", "end": "2025-04-16T20:42:36", "is_latest": False, "exit_code": 0},
            {**newer, "start": "2026-04-16T20:28:21", "end": "2026-04-16T20:42:36", "is_latest": True, "exit_code": 0},
        ]
    ).write_parquet(tmp_path / "runs.parquet")
    bench = {"task": "pp", "n_tokens": 16, "model": SMALL, "status": "ok", "gate_reason": None, "started": 50.0}
    pl.DataFrame([{**older, **bench, "samples_ns": [10**9] * 5}, {**newer, **bench, "samples_ns": [2 * 10**9] * 5}]
                 ).write_parquet(tmp_path / "benches.parquet")  # fmt: skip
    pl.DataFrame([{**older, "model": SMALL, "status": "done", "seconds": 2.0, "finished": 40.0}]
                 ).write_parquet(tmp_path / "downloads.parquet")  # fmt: skip
    assert import_sparecores(tmp_path, tmp_path / "lake").n_runs == 1
    report = import_sparecores(tmp_path, tmp_path / "lake", all_runs=True)
    assert (report.n_runs, report.n_servers) == (2, 1)
    (moved,) = ask(tmp_path / "lake", "SELECT ratio FROM drift('aws/a1.large')")
    assert moved["ratio"] == 0.5


def test_a_folder_without_results_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sc-inspector-data"):
        import_sparecores(tmp_path, tmp_path / "lake")
    assert not (tmp_path / "lake").exists()
