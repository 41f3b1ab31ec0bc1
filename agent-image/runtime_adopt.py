"""Takes a runtime that was built elsewhere into the cache: a CUDA one on a controller without CUDA, say."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

from runtime_layout import MANIFEST, TARBALL, Runtime, read_runtime
from runtime_recipe import LOCK_FILE, load_recipe
from runtime_source import sha256_of

from tasks.domain.errors import ConfigError

SUMS = "SHA256SUMS"


def adopt(folder: Path, cache: Path, lock_file: Path = LOCK_FILE) -> Runtime:
    """Unpack what `folder` holds (tarball, manifest, checksums) into `cache`, where it is found like a built one.

    A second call finds it there. Raises ConfigError when a checksum is wrong or this checkout wants another runtime.
    """
    _check_sums(folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    wanted = load_recipe(manifest["arch"], lock_file, gpus=manifest.get("gpus", "")).runtime_id
    if manifest["runtime_id"] != wanted:
        raise ConfigError(
            f"{folder} holds {manifest['runtime_id']}, and this checkout measures with {wanted}.",
            reason="another_runtime",
            next_step="Build it from this checkout.",
        )
    target = cache.expanduser().absolute() / wanted
    found = read_runtime(target)
    if found is not None:
        return found
    work = target.with_name(f".{wanted}.adopted")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with tarfile.open(folder / TARBALL, "r:gz") as tar:
        # Python 3.11 before 3.11.4 has no filters; the checksums below say whether it is what was built.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
        tar.extractall(work)  # noqa: S202
    wrong = [file["path"] for file in manifest["files"] if sha256_of(work / file["path"]) != file["sha256"]]
    if wrong:
        shutil.rmtree(work)
        raise ConfigError(f"{folder / TARBALL} holds other files than its manifest: {wrong[:3]}.", reason="checksum")
    shutil.copyfile(folder / TARBALL, work / TARBALL)
    shutil.rmtree(target, ignore_errors=True)
    work.rename(target)
    runtime = read_runtime(target)
    if runtime is None:
        raise ConfigError(f"{target} is not whole.", reason="checksum", next_step="Copy the folder once more.")
    return runtime


def _check_sums(folder: Path) -> None:
    for line in (folder / SUMS).read_text(encoding="ascii").splitlines():
        sha256, _, name = line.partition("  ")
        if sha256_of(folder / name) != sha256:
            raise ConfigError(
                f"{folder / name} is not what {SUMS} says.", reason="checksum", next_step="Copy the folder once more."
            )
