"""The folder that goes onto a server: shared libraries, their needs, the manifest and a tarball with stable bytes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime_recipe import CUDA, Recipe, manifest_builds

from tasks.domain.errors import ConfigError

MANIFEST = "manifest.json"
TARBALL = "runtime.tar.gz"
CPU_LIBRARY = "libggml-cpu.so.0"
C_LIBRARY = "libc.so.6"
PROGRAMS = ("llama-bench", "llama-batched-bench")
# The carried loader and C library run the program, so that neither a server with an older glibc nor one without any
# turns it down, and the same mathematical functions are timed everywhere.
LAUNCHER = """\
#!/bin/sh
# LD_LIBRARY_PATH=builds/NAME:lib chooses the CPU build.
top=${{0%/*}}/..
libraries=${{LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}}$top/system
exec "$top/system/{loader}" --library-path "$libraries" "$top/bin/{program}" "$@"
"""
SELECTION = (
    "Take the first build whose cpu_flags are all in /proc/cpuinfo and run bin/llama-bench with "
    "LD_LIBRARY_PATH=builds/<name>:lib. Exit status 132 (SIGILL) or 139 (SIGSEGV) means that the CPU does not keep "
    "what its flags promise: go on with the next build."
)


@dataclass(frozen=True)
class Runtime:
    """A finished runtime: `tarball` unpacks to what is in `path`."""

    path: Path
    tarball: Path
    manifest: dict[str, Any]


def elf_names(path: Path) -> tuple[str, ...]:
    """The shared libraries that a file asks for. Raises ConfigError on what is no ELF file."""
    return tuple(re.findall(r"\(NEEDED\)\s+Shared library: \[(.+)\]", _readelf("-dW", path)))


def elf_program(out: Path, name: str) -> Path:
    """What the launcher of that name starts."""
    return out / "bin" / f"{name}.elf"


def collect_programs(tree: Path, out: Path, compiler: str) -> None:
    """Lay out PROGRAMS of a build tree: lib/ gets llama.cpp's libraries but the CPU's, system/ gets all others.

    Raises ConfigError when a needed library is neither llama.cpp's nor known to the compiler.
    """
    waiting = [tree / "bin" / CPU_LIBRARY]
    for name in PROGRAMS:
        program = elf_program(out, name)
        shutil.copyfile(tree / "bin" / name, program)
        loader = re.findall(r"program interpreter: .*/(.+)\]", _readelf("-lW", program))[0]
        shutil.copyfile(_of_compiler(loader, compiler), out / "system" / loader)
        (out / "bin" / name).write_text(LAUNCHER.format(loader=loader, program=program.name), encoding="ascii")
        waiting.append(program)
    while waiting:
        for name in elf_names(waiting.pop()):
            ours = (tree / "bin" / name).exists()
            target = out / ("lib" if ours else "system") / name
            if name != CPU_LIBRARY and not target.exists():
                shutil.copyfile(tree / "bin" / name if ours else _of_compiler(name, compiler), target)
                waiting.append(target)


def _of_compiler(name: str, compiler: str) -> Path:
    printed = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    found = Path(printed.stdout.strip())
    if not found.is_absolute():
        raise ConfigError(
            f"llama.cpp needs {name}, and {compiler} does not know where it is.",
            reason="library_missing",
            next_step="Build with g++ (CC=gcc CXX=g++).",
        )
    return found


def strip_symbols(out: Path, strip: str) -> None:
    ours = [
        *(elf_program(out, name) for name in PROGRAMS),
        *(out / "lib").iterdir(),
        *(out / "builds").rglob("libggml*.so.*"),
    ]
    files = [str(path) for path in ours if not path.is_symlink()]
    subprocess.run([strip, "--strip-unneeded", *files], check=True)


def _min_kernel(out: Path) -> str:
    """The oldest kernel that the carried C library starts on, from its ABI note."""
    found = re.search(r"OS: Linux, ABI: ([\d.]+)", _readelf("-nW", out / "system" / C_LIBRARY))
    return found[1] if found else ""


def _glibc(out: Path) -> str:
    """The version that the carried C library prints when it is started as a program."""
    found = re.search(rb"stable release version ([\d.]+\d)", (out / "system" / C_LIBRARY).read_bytes())
    return found[1].decode() if found else ""


def _readelf(option: str, path: Path) -> str:
    """What readelf, which every C compiler comes with, says about a file."""
    plain = {**os.environ, "LC_ALL": "C"}
    shown = subprocess.run(["readelf", option, str(path)], capture_output=True, text=True, env=plain)
    if shown.returncode != 0 or "Error" in shown.stderr:
        raise ConfigError(f"readelf cannot read {path}: {shown.stderr.strip()}.", reason="not_elf")
    return shown.stdout


def describe(folder: Path, recipe: Recipe, compiler: str, cmake: str) -> dict[str, Any]:
    """The manifest of a laid out folder. It holds no times and no paths of this machine: same input, same bytes."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, TARBALL))
    files = [path for path in found if not path.is_symlink()]
    links = {path.relative_to(folder).as_posix(): str(path.readlink()) for path in found if path.is_symlink()}
    manifest = {
        "runtime_id": recipe.runtime_id,
        "layout": recipe.layout,
        "llama_cpp_commit": recipe.source.commit,
        "source": f"{recipe.source.project} {recipe.source.version}",
        "source_sha256": recipe.source.sha256,
        "arch": recipe.arch,
        "os": "linux",
        "min_kernel": _min_kernel(folder),
        "glibc": _glibc(folder),
        "compiler": compiler,
        "cmake": cmake,
        "baseline": recipe.baseline,
        "options": list(recipe.options),
        "selection": SELECTION,
        "builds": manifest_builds(recipe),
        "files": [
            {
                "path": path.relative_to(folder).as_posix(),
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in files
        ],
    }
    return manifest if recipe.cuda is None else {**manifest, "variant": CUDA, "gpus": recipe.cuda.gpus, "links": links}


def finish(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, set the modes and pack all of it into runtime.tar.gz."""
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for path in folder.rglob("*"):
        if path.is_symlink():
            continue
        program = path.parent.name == "bin" or path.name.startswith("ld")  # the loader is started by the launcher
        path.chmod(0o755 if path.is_dir() or program else 0o644)
    pack(folder, folder / TARBALL)


def pack(folder: Path, tarball: Path) -> None:
    """A .tar.gz of the folder's content whose bytes depend on names, modes and contents alone."""

    def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.mtime = info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    members = sorted(path for path in folder.rglob("*") if path != tarball)
    with (
        tarball.open("wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in members:
            tar.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=anonymous)


def read_runtime(folder: Path) -> Runtime | None:
    """The runtime in `folder`; None where it is missing or has lost a file."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = all((folder / file["path"]).stat().st_size == file["bytes"] for file in manifest["files"])
        packed = (folder / TARBALL).stat().st_size > 0
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Runtime(folder, folder / TARBALL, manifest) if whole and packed else None
