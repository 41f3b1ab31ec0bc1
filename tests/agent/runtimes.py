"""llama.cpp runtimes for tests: the real one where this machine has it, and a stand-in that fails on order."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from agent.runtime import allowed_builds, read_manifest

FAKE = Path(__file__).with_name("fake_llama_bench.py")


def cache() -> Path:
    return Path(os.environ.get("TOKENSWEEP_CACHE", "~/.cache/tokensweep")).expanduser()


def real_runtime() -> tuple[Path, str]:
    """The runtime of the cache and its best build for this CPU; skips where there is none."""
    runtime = Path(os.environ.get("TOKENSWEEP_RUNTIME", cache() / "runtime"))
    builds = allowed_builds(read_manifest(runtime))
    if not builds:
        pytest.skip(f"no llama.cpp runtime for this CPU in {runtime}")
    return runtime, builds[0]


def real_model() -> Path:
    """The smallest random-weight model of the cache; skips where there is none."""
    models = sorted((cache() / "models").glob("*.gguf"), key=lambda p: p.stat().st_size)
    if not models:
        pytest.skip(f"no model in {cache() / 'models'}")
    return models[0]


def fake_runtime(folder: Path, builds: tuple[str, ...] = ("generic",)) -> Path:
    runtime = folder / "runtime"
    (runtime / "bin").mkdir(parents=True)
    (runtime / "bin" / "llama-bench").symlink_to(FAKE)
    manifest = {"builds": [{"name": name, "cpu_flags": []} for name in builds]}
    (runtime / "manifest.json").write_text(json.dumps(manifest))
    return runtime
