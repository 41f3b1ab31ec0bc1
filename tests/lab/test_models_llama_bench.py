"""llama-bench itself on files with random weights: it loads every architecture, and takes the memory foretold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.domain.gguf import GgufHeader, parse_header
from tasks.domain.memory import memory_needed_bytes
from tasks.models.catalogue import load_catalogue
from tasks.models.synthesize import default_directory, synthesize
from tests.unit.test_models_synthesize import small

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """What llama-bench of the cache needs to run here; skips where no build of it does."""
    cache = default_directory().parent / "runtime"
    for build in sorted(cache.glob("*/builds/*")):
        runtime = build.parent.parent
        libraries = f"{runtime / 'lib'}:{build}"
        environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "OMP_WAIT_POLICY": "passive"}
        environment["LLAMA_BENCH"] = str(runtime / "bin" / "llama-bench")
        tried = subprocess.run([environment["LLAMA_BENCH"], "--version"], env=environment, capture_output=True)
        if tried.returncode == 0:
            return environment
    pytest.skip(f"no llama.cpp runtime for this CPU in {cache}")


def llama_bench(environment: dict[str, str], model: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [environment["LLAMA_BENCH"], "-m", str(model), "-t", "1", "-r", "1", "-fa", "1", "-o", "jsonl"]
    return subprocess.Popen(
        [*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def header_of(path: Path) -> GgufHeader:
    data = path.read_bytes()
    return parse_header(data, len(data))


@pytest.mark.parametrize("name", ["tiny-15m", "smollm-135m", "qwen1.5-0.5b", "gemma-2b", "phi-4", "llama-3.3-70b"])
def test_every_architecture_loads_and_runs(name: str, environment: dict[str, str], tmp_path: Path) -> None:
    made = synthesize(small(name, width=576 if name == "smollm-135m" else 512), tmp_path)
    process = llama_bench(environment, made.path, "-p", "16", "-n", "4")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [(16, 0), (0, 4)]
    header = header_of(made.path)
    assert (rows[0]["model_size"], rows[0]["model_n_params"]) == (header.tensor_bytes, header.n_params)
    assert "Q4_K - Medium" in rows[0]["model_type"]


def peaks_bytes(process: subprocess.Popen[str]) -> Iterator[int]:
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        yield max((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), default=0)
        time.sleep(0.005)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("name", "n_tokens"), [("tiny-15m", 16), ("tiny-15m", 2048), ("smollm-135m", 128)])
def test_the_peak_of_memory_is_foretold(name: str, n_tokens: int, environment: dict[str, str], tmp_path: Path) -> None:
    model = load_catalogue()[name]
    made = synthesize(replace(model, name=f"peak-{name}"), tmp_path)
    loading = ("-lm", "none") if "-lm" in _help(environment) else ("-mmp", "0")
    process = llama_bench(environment, made.path, "-p", str(n_tokens), "-n", "0", "--no-warmup", *loading)
    peak_bytes = max(peaks_bytes(process))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    foretold = memory_needed_bytes(header_of(made.path), n_tokens)
    assert peak_bytes <= foretold.total <= peak_bytes + 96 * 2**20


def _help(environment: dict[str, str]) -> str:
    return subprocess.run(
        [environment["LLAMA_BENCH"], "--help"], env=environment, capture_output=True, text=True
    ).stdout
