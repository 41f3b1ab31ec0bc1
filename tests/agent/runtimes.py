"""llama.cpp runtimes for tests: the real one where this machine has it, and a stand-in that fails on order."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
from agent.runtime import allowed_builds, read_manifest
from runtime_recipe import load_recipe

FAKE = Path(__file__).with_name("fake_llama_bench.py")


def cache() -> Path:
    return Path(os.environ.get("TOKENSWEEP_CACHE", "~/.cache/tokensweep")).expanduser()


def real_runtime() -> tuple[Path, str]:
    """This checkout's runtime in the cache (or TOKENSWEEP_RUNTIME) and its best build for this CPU; else skips."""
    told = os.environ.get("TOKENSWEEP_RUNTIME")
    folder = Path(told) if told else cache() / "runtime" / load_recipe(platform.machine()).runtime_id
    builds = allowed_builds(read_manifest(folder))
    if not builds:
        pytest.skip(f"no llama.cpp runtime for this CPU in {folder}")
    return folder, builds[0]


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
