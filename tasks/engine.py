"""The two archives that go onto a server: the llama.cpp runtime and the agent. Made once, then found in the cache."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from tasks.clouds.base import ServerType
from tasks.clouds.hosts import SIMULATED
from tasks.domain.errors import ConfigError
from tasks.settings import CHECKOUT

_IMAGE = CHECKOUT / "agent-image"
UNNAMED = "unnamed"
_lock = threading.Lock()


@dataclass(frozen=True)
class Engine:
    """llama_cpp_commit and runtime_id say what is measured with; `build_names` are its builds, best first."""

    runtime_tarball: Path
    runtime_dir: Path
    runtime_id: str
    llama_cpp_commit: str
    build_names: tuple[str, ...]
    agent: Path
    agent_version: str


def gpu_model_of(kind: ServerType) -> str:
    """By which a server type's runtime is chosen: "" without a GPU, and never where there is one."""
    return (kind.gpu_model or UNNAMED) if kind.gpus else ""


def ensure_engine(cache_dir: Path, arch: str = "", gpu_model: str = "") -> Engine:
    """Build what is missing (minutes, once) and say where it is. arch: of the servers, by default this machine's.

    gpu_model: of GPU servers, which get the CUDA runtime of its generation. That one is only found, never built here.
    Raises ConfigError with what to install or to adopt.
    """
    with _lock:
        return _ensure(cache_dir, arch or platform.machine(), gpu_model)


def why_no_engine(cache_dir: Path, arch: str, gpu_model: str = "") -> str:
    """Why servers of this architecture, with such GPUs, cannot be measured from here, or ""; builds nothing."""
    build = _module("build_runtime")
    try:
        if gpu_model:
            build.ensure_runtime(cache_dir / "runtime", arch=arch, gpus=_generation(gpu_model))
            return ""
        recipe = build.load_recipe(arch, build.LOCK_FILE)
        if build.read_runtime(cache_dir / "runtime" / recipe.runtime_id) is None:
            build.find_toolchain(arch)
    except ConfigError as exc:
        return f"{exc.message} {exc.next_step}".strip()
    return ""


def engine_for(weights: str, cache_dir: Path, arch: str = "", gpu_model: str = "") -> Engine:
    """The engine that measures such weights. Simulated servers run none, so nothing is built for them."""
    if weights != SIMULATED:
        return ensure_engine(cache_dir, arch, gpu_model)
    return Engine(
        runtime_tarball=cache_dir,
        runtime_dir=cache_dir,
        runtime_id=SIMULATED,
        llama_cpp_commit=SIMULATED,
        build_names=(),
        agent=cache_dir,
        agent_version=SIMULATED,
    )


@cache
def _ensure(cache_dir: Path, arch: str, gpu_model: str) -> Engine:
    gpus = _generation(gpu_model) if gpu_model else ""
    runtime = _module("build_runtime").ensure_runtime(cache_dir / "runtime", arch=arch, gpus=gpus)
    agent = _agent(cache_dir)
    return Engine(
        runtime_tarball=runtime.tarball,
        runtime_dir=runtime.path,
        runtime_id=runtime.path.name,
        llama_cpp_commit=str(runtime.manifest["llama_cpp_commit"]),
        build_names=tuple(build["name"] for build in runtime.manifest["builds"]),
        agent=agent,
        agent_version=agent.stem.removeprefix("agent-"),
    )


def _generation(gpu_model: str) -> str:
    return str(_module("runtime_recipe").generation_of(gpu_model))


def _agent(cache_dir: Path) -> Path:
    """The agent's zipapp, named by its content, so that a changed agent is never mistaken for an old one."""
    import hashlib

    folder = cache_dir / "agent"
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{os.getpid()}.pyz"
    built: Path = _module("build_agent").build_agent(part)
    digest = hashlib.sha256(built.read_bytes()).hexdigest()[:12]
    return built.rename(folder / f"agent-{digest}.pyz")


@cache
def _module(name: str) -> ModuleType:
    """A module of agent-image/, whose name with a dash keeps it from being a package."""
    spec = importlib.util.spec_from_file_location(f"agent_image_{name}", _IMAGE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{_IMAGE / name}.py is missing")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
