"""Builds the llama.cpp runtime that runs on the measured servers: its benchmarks, and a libggml-cpu per kind of CPU.

python agent-image/build_runtime.py [--cache DIR] [--arch ARCH] [--source FILE]

Progress goes to standard error; the only line on standard output is the folder of the runtime. A second call finds it.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The siblings are found from anywhere: as a program, and when the file is loaded by its path.
sys.path += [folder for folder in map(str, Path(__file__).resolve().parents[:2]) if folder not in sys.path]

from runtime_adopt import adopt
from runtime_compile import LIBRARY_TREE, PROGRAM_TREE, Compiler, find_toolchain
from runtime_cuda import add_cuda, toolkit_root
from runtime_layout import (
    CPU_LIBRARY,
    MANIFEST,
    PROGRAMS,
    Runtime,
    collect_programs,
    describe,
    finish,
    read_runtime,
    strip_symbols,
)
from runtime_recipe import ALL, LOCK_FILE, CpuBuild, Recipe, load_recipe
from runtime_source import Say, fetch_source, sha256_of, unpack_source, verified

from tasks.domain.errors import ConfigError, TokensweepError


def default_cache() -> Path:
    """`runtime` in $TOKENSWEEP_CACHE, else in $XDG_CACHE_HOME/tokensweep, else in ~/.cache/tokensweep."""
    cache = os.environ.get("TOKENSWEEP_CACHE")
    if cache:
        return Path(cache) / "runtime"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tokensweep" / "runtime"


def say(line: str) -> None:
    print(f"runtime: {line}", file=sys.stderr, flush=True)


def ensure_runtime(
    cache: Path,
    *,
    arch: str | None = None,
    source_file: Path | None = None,
    cuda_toolkit: Path | None = None,
    gpus: str = "",
    lock_file: Path = LOCK_FILE,
    progress: Say = say,
) -> Runtime:
    """The runtime for `arch` (this machine's unless given) in `cache`, built if it is not there (minutes, once).

    gpus: with the CUDA backend for that generation of GPUs, or ALL, over each of the CPU builds. It is compiled by
    the toolkit in the folder `cuda_toolkit`, without which such a runtime is only found (see `adopt`).
    Of concurrent callers, processes too, one builds and the others wait. Raises ConfigError when a compiler is missing
    or the source is not the pinned one, TokensweepError when the build fails; neither leaves half a runtime.
    """
    cache = cache.expanduser().absolute()
    recipe = load_recipe(arch or platform.machine(), lock_file, gpus=gpus or (ALL if cuda_toolkit else ""))
    folder = cache / recipe.runtime_id
    found = read_runtime(folder)
    if found is not None:
        return found
    if recipe.cuda is not None and cuda_toolkit is None:
        raise ConfigError(
            f"There is no {recipe.runtime_id} in {cache}, and no CUDA toolkit to build it with.",
            reason="no_cuda_runtime",
            next_step=f'Run `make image IMAGE="--variant cuda --gpus {gpus}"` and adopt what it leaves in '
            f"dist/runtime: `python agent-image/build_runtime.py --adopt dist/runtime/cuda-{gpus}-amd64`.",
        )
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / f"{recipe.runtime_id}.lock", progress):
        found = read_runtime(folder)
        if found is not None:
            return found
        work = cache / f".{recipe.runtime_id}.building"
        shutil.rmtree(work, ignore_errors=True)  # of a build that was killed: the lock says that nobody uses it
        try:
            _build(recipe, cache, work, source_file, cuda_toolkit, progress)
            shutil.rmtree(folder, ignore_errors=True)
            (work / "runtime").rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        (cache / "source" / recipe.source.file).unlink(missing_ok=True)
    runtime = read_runtime(folder)
    if runtime is None:
        raise TokensweepError(f"{folder} was built and is gone again.", next_step="Build it once more.")
    progress(f"ready in {folder}: tarball {runtime.tarball.stat().st_size / 1e6:.1f} MB")
    return runtime


def export(runtime: Runtime, folder: Path) -> None:
    """Copy what a server or an image is made from into `folder`, with the checksums of both files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = (runtime.tarball, runtime.path / MANIFEST)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    sums = "".join(f"{sha256_of(file)}  {file.name}\n" for file in files)
    (folder / "SHA256SUMS").write_text(sums, encoding="ascii")


def _build(
    recipe: Recipe, cache: Path, work: Path, source_file: Path | None, cuda_toolkit: Path | None, progress: Say
) -> None:
    """Make the finished folder `work`/runtime; on failure the log stays in the cache."""
    began_s, cpu_before_s = time.monotonic(), _children_cpu_s()
    tools = find_toolchain(recipe.arch)
    cuda_root = toolkit_root(cuda_toolkit) if cuda_toolkit else None
    if source_file is not None:
        archive = verified(source_file, recipe.source)
    else:
        archive = fetch_source(recipe.source, cache / "source", progress)
    progress(f"unpack llama.cpp {recipe.source.commit}")
    source = unpack_source(archive, recipe.source, work / "source")
    log = cache / f"{recipe.runtime_id}.log"
    log.unlink(missing_ok=True)
    compiler = Compiler(recipe, tools, source, log, progress)
    out = work / "runtime"
    for folder in ("bin", "lib", "system", "builds", "licenses"):
        (out / folder).mkdir(parents=True)

    # The programs' tree needs a libggml-cpu to link against: the last build's serves for that and for itself.
    *others, last = recipe.builds
    tree = compiler.compile(PROGRAMS, work / "program", last, PROGRAM_TREE)
    collect_programs(tree, out, tools.cxx)
    _take_cpu_library(tree, out, last)
    for build in others:
        _take_cpu_library(compiler.compile(("ggml-cpu",), work / build.name, build, LIBRARY_TREE), out, build)
    if recipe.cuda and cuda_root:
        add_cuda(compiler, cuda_root, recipe.cuda, work, out)
    shutil.copyfile(source / "LICENSE", out / "licenses" / "llama.cpp")
    strip_symbols(out, tools.strip)
    cmake = subprocess.run([tools.cmake, "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
    finish(out, describe(out, recipe, tools.version, cmake))
    try_builds(out, recipe, progress)
    log.unlink(missing_ok=True)
    progress(f"built in {time.monotonic() - began_s:.0f} s ({_children_cpu_s() - cpu_before_s:.0f} CPU seconds)")


def _take_cpu_library(tree: Path, out: Path, build: CpuBuild) -> None:
    target = out / "builds" / build.name
    target.mkdir()
    shutil.copyfile(tree / "bin" / CPU_LIBRARY, target / CPU_LIBRARY)


def try_builds(folder: Path, recipe: Recipe, progress: Say = say) -> None:
    """Start each program once with every build this CPU can run. Raises TokensweepError when one does not start."""
    if recipe.arch != platform.machine():
        progress(f"not tried here: it is for {recipe.arch}")
        return
    flags = set(re.findall(r"\S+", Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")))
    for build in recipe.builds:
        if not flags.issuperset(build.cpu_flags):
            progress(f"not tried here, this CPU lacks what it needs: {build.name}")
            continue
        paths = f"{folder / 'builds' / build.name}:{folder / 'lib'}"
        for name in PROGRAMS:
            command = [str(folder / "bin" / name), "--version"]
            tried = subprocess.run(command, env={"LD_LIBRARY_PATH": paths}, capture_output=True, text=True)
            if tried.returncode != 0 or recipe.source.commit not in tried.stdout + tried.stderr:
                raise TokensweepError(
                    f"{name} of the build {build.name} does not start: exit status {tried.returncode}, "
                    f"{tried.stderr.strip()!r}.",
                    reason="build_does_not_start",
                    next_step="Report it with the compiler's version; another compiler ($CC, $CXX) may do.",
                )


@contextmanager
def _lock(path: Path, progress: Say) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process builds it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the llama.cpp runtime for servers; a second call finds it.")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="cache folder instead of $TOKENSWEEP_CACHE")
    parser.add_argument("--arch", help="x86_64 or aarch64; another than this machine's needs a cross compiler")
    parser.add_argument("--source", type=Path, metavar="FILE", help="the source archive, already downloaded")
    parser.add_argument(
        "--cuda", type=Path, metavar="DIR", help="with the CUDA backend, compiled by the toolkit in DIR"
    )
    parser.add_argument(
        "--gpus", default="", metavar="GENERATION", help="which the CUDA backend is for (with --cuda: all)"
    )
    parser.add_argument("--adopt", type=Path, metavar="DIR", help="put what --out left elsewhere into the cache")
    parser.add_argument("--out", type=Path, metavar="DIR", help="copy the tarball, its manifest and SHA256SUMS there")
    options = parser.parse_args(argv)
    try:
        cache = options.cache / "runtime" if options.cache else default_cache()
        if options.adopt:
            print(adopt(options.adopt, cache).path)
            return 0
        runtime = ensure_runtime(
            cache, arch=options.arch, source_file=options.source, cuda_toolkit=options.cuda, gpus=options.gpus
        )
    except TokensweepError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    if options.out:
        export(runtime, options.out)
    print(runtime.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
