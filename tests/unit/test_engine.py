"""Which runtime goes onto a server: by its architecture and, where it has GPUs, by their generation."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

AGENT_IMAGE = Path(__file__).resolve().parents[2] / "agent-image"
sys.path.insert(0, str(AGENT_IMAGE))

from runtime_layout import finish  # noqa: E402
from runtime_recipe import generation_of, load_recipe, manifest_builds  # noqa: E402

from tasks.clouds.azure.gpus import model_of  # noqa: E402
from tasks.clouds.base import ServerType  # noqa: E402
from tasks.domain.errors import ConfigError  # noqa: E402
from tasks.engine import engine_for, ensure_engine, gpu_model_of, why_no_engine  # noqa: E402
from tests.memory_cloud import Clock, MemoryCloud  # noqa: E402


def put_runtime(cache: Path, gpus: str = "") -> str:
    """A whole runtime of one file, as far as the cache can tell; returns its id."""
    recipe = load_recipe("x86_64", gpus=gpus)
    folder = cache / "runtime" / recipe.runtime_id
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "llama-bench").write_text("#!/bin/sh\n")
    files = [{"path": "bin/llama-bench", "bytes": 10}]
    commit = recipe.source.commit
    finish(folder, {"files": files, "builds": manifest_builds(recipe), "llama_cpp_commit": commit})
    return recipe.runtime_id


def kind_of(gpus: int, gpu_model: str) -> ServerType:
    return replace(MemoryCloud(Clock().now).server_type("small"), gpus=gpus, gpu_model=gpu_model)


@pytest.mark.parametrize(
    ("gpu_model", "generation"),
    [
        ("NVIDIA T4", "turing"),
        ("nvidia-tesla-t4", "turing"),
        ("Tesla T4", "turing"),
        ("NVIDIA A10G", "ampere"),
        ("NVIDIA A100-SXM4-40GB", "ampere"),
        ("nvidia-a100-80gb", "ampere"),
        ("L4", "ada"),
        ("NVIDIA L40S", "ada"),
        ("NVIDIA RTX 6000 Ada Generation", "ada"),
        ("NVIDIA H100 80GB HBM3", "hopper"),
        ("nvidia-h200-141gb", "hopper"),
        ("NVIDIA RTX PRO 6000 Blackwell Server", "blackwell"),
        ("NVIDIA RTX PRO Server 6000", "blackwell"),  # as EC2 calls that of g7e
        ("nvidia-b200", "blackwell"),
    ],
)
def test_a_gpu_is_of_the_generation_that_its_runtime_is_made_for(gpu_model: str, generation: str) -> None:
    assert generation_of(gpu_model) == generation


@pytest.mark.parametrize("gpu_model", ["NVIDIA V100", "Radeon Pro V520", "NVIDIA M60", "Quadro RTX 6000", "unnamed"])
def test_a_gpu_without_a_runtime_is_refused_by_its_name(gpu_model: str) -> None:
    with pytest.raises(ConfigError, match=gpu_model) as refused:
        generation_of(gpu_model)
    assert refused.value.reason == "unsupported_gpus"


def test_the_sizes_of_azure_have_a_generation_or_none() -> None:
    assert generation_of(model_of("Standard_NC24ads_A100_v4")[0]) == "ampere"
    assert generation_of(model_of("Standard_NV36ads_A10_v5")[0]) == "ampere"
    assert generation_of(model_of("Standard_ND96isr_H100_v5")[0]) == "hopper"


def test_a_server_type_without_gpus_asks_for_none_and_one_with_gpus_never_passes_for_it() -> None:
    assert gpu_model_of(kind_of(0, "")) == ""
    assert gpu_model_of(kind_of(8, "NVIDIA H100")) == "NVIDIA H100"
    assert gpu_model_of(kind_of(1, "")) == "unnamed", "a catalogue that does not say which must not give a CPU runtime"


def test_a_gpu_server_gets_the_cuda_runtime_of_its_generation_and_a_cpu_server_does_not(tmp_path: Path) -> None:
    plain, hopper = put_runtime(tmp_path), put_runtime(tmp_path, "hopper")
    assert ensure_engine(tmp_path, "x86_64").runtime_id == plain
    engine = engine_for("real", tmp_path, "x86_64", "NVIDIA H100 80GB HBM3")
    assert engine.runtime_id == hopper
    assert engine.runtime_tarball == tmp_path / "runtime" / hopper / "runtime.tar.gz"
    assert engine.build_names[0].startswith("cuda+"), "best first"
    assert why_no_engine(tmp_path, "x86_64", "NVIDIA H100 80GB HBM3") == ""


def test_a_gpu_server_without_its_runtime_is_not_measured_on_its_cpus(tmp_path: Path) -> None:
    put_runtime(tmp_path)
    put_runtime(tmp_path, "hopper")
    why = why_no_engine(tmp_path, "x86_64", "NVIDIA L4")
    assert "cuda13.0-ada" in why
    assert "--variant cuda --gpus ada" in why
    with pytest.raises(ConfigError, match="no CUDA toolkit to build it with"):
        ensure_engine(tmp_path, "x86_64", "NVIDIA L4")
    assert "V100" in why_no_engine(tmp_path, "x86_64", "NVIDIA V100")
    assert "aarch64" in why_no_engine(tmp_path, "aarch64", "NVIDIA T4g")
