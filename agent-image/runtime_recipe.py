"""What the llama.cpp runtime is made of: pinned source, CMake options and the CPU builds of one architecture."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.domain.errors import ConfigError

LOCK_FILE = Path(__file__).resolve().with_name("runtime.lock.toml")
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
class Recipe:
    """`builds` are best first; `baseline` is the compiler flag for everything but libggml-cpu."""

    layout: int
    arch: str
    source: Source
    options: tuple[str, ...]
    baseline: str
    builds: tuple[CpuBuild, ...]

    @property
    def runtime_id(self) -> str:
        """Names the folder in the cache: the same commit, options and architecture always give the same name."""
        content = json.dumps(asdict(self), sort_keys=True).encode()
        return f"llama.cpp-{self.source.commit}-{self.arch}-{hashlib.sha256(content).hexdigest()[:10]}"


def load_recipe(arch: str, lock_file: Path = LOCK_FILE) -> Recipe:
    """The recipe for `arch` as `platform.machine()` names it. Raises ConfigError where there is none."""
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
    )
