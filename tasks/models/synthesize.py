"""GGUF files of real architectures with random weights, for sweeps without a download.

A file has the tensors, types and sizes of the real one, so it costs the engine the same work; what it says is noise.
Its metadata says so (`tokensweep.weights = random`), and so does every row that is measured with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.domain.errors import ConfigError
from tasks.domain.run_plan import ModelSpec
from tasks.models.catalogue import CatalogueModel, Shape
from tasks.models.gguf_header import ALIGNMENT, GENERATOR_VERSION, header_bytes
from tasks.models.random_blocks import rope_frequency_factors, tensor_chunks
from tasks.models.tensor_plan import TensorPlan, plan_tensors


@dataclass(frozen=True)
class SynthesizedFile:
    path: Path
    bytes: int
    sha256: str


def default_directory() -> Path:
    """`models` in $TOKENSWEEP_CACHE, else in $XDG_CACHE_HOME/tokensweep, else in ~/.cache/tokensweep."""
    cache = os.environ.get("TOKENSWEEP_CACHE")
    if cache:
        return Path(cache) / "models"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tokensweep" / "models"


def random_file_name(model: CatalogueModel) -> str:
    return f"{model.name}.random-{GENERATOR_VERSION}.Q4_K_M.gguf"


def random_spec(model: CatalogueModel, made: SynthesizedFile, urls: tuple[str, ...]) -> ModelSpec:
    """What a server run is told to download when `made` is served under `urls`."""
    return ModelSpec(
        name=model.name,
        file=made.path.name,
        urls=urls,
        bytes=made.bytes,
        sha256=made.sha256,
        weights="random",
        revision=f"random-{GENERATOR_VERSION}",
    )


def synthesize(model: CatalogueModel, directory: Path | None = None) -> SynthesizedFile:
    """Make the model's file with random weights, or return the one that is there already.

    The same model gives the same bytes everywhere. Safe against other makers of the same file and against being
    killed: the file appears whole or not at all. Raises ConfigError when the disk has no room or cannot be written.
    """
    target = (directory or default_directory()) / random_file_name(model)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_maker(target):
            known = _already_made(target)
            if known is not None:
                return known
            tensors = plan_tensors(model.shape)
            _check_room(target.parent, sum(t.n_bytes for t in tensors), model.name)
            return _make(model, tensors, target)
    except OSError as exc:
        raise ConfigError(
            f"The file {target} with random weights could not be made: {exc.strerror or exc}.",
            next_step="Set TOKENSWEEP_CACHE to a folder that can be written and has room.",
        ) from exc


def _make(model: CatalogueModel, tensors: list[TensorPlan], target: Path) -> SynthesizedFile:
    part = target.with_name(f".{target.name}.part")
    try:
        header = header_bytes(model, tensors, part)
        digest = hashlib.sha256()
        n_bytes = 0
        with part.open("wb") as out:
            for chunk in _file_chunks(model.shape, tensors, header):
                out.write(chunk)
                digest.update(chunk)
                n_bytes += len(chunk)
            out.flush()
            os.fsync(out.fileno())
        made = SynthesizedFile(target, n_bytes, digest.hexdigest())
        _note(made, part)
        part.replace(target)
        return made
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _file_chunks(shape: Shape, tensors: list[TensorPlan], header: bytes) -> Iterator[bytes]:
    yield header
    for index, tensor in enumerate(tensors):
        if tensor.name == "rope_freqs.weight":
            yield (
                rope_frequency_factors(
                    tensor.shape[0], shape.rope_base, shape.rope_scaling_factor, shape.rope_original_context
                )
                .astype("<f4")
                .tobytes()
            )
        else:
            yield from tensor_chunks(tensor, GENERATOR_VERSION, index)
        yield bytes(-tensor.n_bytes % ALIGNMENT)


def _already_made(target: Path) -> SynthesizedFile | None:
    """The file that is there, if it is the one whose checksum was noted when it was made."""
    try:
        noted = json.loads(_note_path(target).read_text(encoding="utf-8"))
        stat = target.stat()
        if (stat.st_size, stat.st_mtime_ns) != (noted["bytes"], noted["mtime_ns"]):
            return None
        return SynthesizedFile(target, noted["bytes"], noted["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(made: SynthesizedFile, part: Path) -> None:
    """Write the checksum beside the file, so that a second call need not read it again."""
    note = {"bytes": made.bytes, "sha256": made.sha256, "mtime_ns": part.stat().st_mtime_ns}
    path = _note_path(made.path)
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(json.dumps(note), encoding="utf-8")
    scratch.replace(path)


def _note_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _check_room(directory: Path, n_bytes: int, name: str) -> None:
    free = shutil.disk_usage(directory).free
    if n_bytes > free:
        raise ConfigError(
            f"{name} with random weights takes {n_bytes:,} bytes, but {directory} has {free:,} free.",
            next_step="Free some space, set TOKENSWEEP_CACHE to another disk, or leave the model out.",
        )


@contextmanager
def _only_maker(target: Path) -> Iterator[None]:
    """Wait until no other process makes this file."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
