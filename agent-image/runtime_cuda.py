"""The CUDA backend of a runtime: compiled once, then laid over every CPU build with links."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from runtime_compile import LIBRARY_TREE, Compiler
from runtime_layout import elf_names
from runtime_recipe import CUDA, CpuBuild, CudaBuild, combined_name

from tasks.domain.errors import ConfigError

BACKEND = "libggml-cuda.so.0"
# The registry of backends knows CUDA by a definition of its own, so it is another file than the CPU builds' one.
REGISTRY = "libggml.so.0"
DRIVER = "libcuda.so.1"
JOB_MEMORY_BYTES = 3_000_000_000  # an instance of flash attention, for one architecture at a time
CARRIED = ("libcudart.so.", "libcublas.so.", "libcublasLt.so.")


def toolkit_root(folder: Path) -> Path:
    """The toolkit in a folder that `pip install --target` filled from requirements.cuda.txt, or an installed one.

    Adds the names that linkers look for, which the packages lack. Raises ConfigError where there is no nvcc.
    """
    for root in (*sorted(folder.glob("nvidia/cu*")), folder):
        if (root / "bin" / "nvcc").is_file():
            for library in [*(root / "lib").glob("*.so.*")]:
                plain = library.with_name(library.name.partition(".so.")[0] + ".so")
                if not plain.exists():
                    plain.symlink_to(library.name)
            for program in (*(root / "bin").iterdir(), *(root / "nvvm" / "bin").glob("*")):
                if program.is_file():
                    program.chmod(program.stat().st_mode | 0o111)
            return root
    raise ConfigError(
        f"There is no nvcc in {folder}.",
        reason="no_cuda_toolkit",
        next_step=f"Run `pip install --require-hashes --target {folder} -r agent-image/requirements.cuda.txt`.",
    )


def add_cuda(compiler: Compiler, root: Path, cuda: CudaBuild, work: Path, out: Path) -> None:
    """Compile the backend with the toolkit in `root` and lay it out under builds/."""
    last = compiler.recipe.builds[-1]
    build = CpuBuild(CUDA, (), (*last.options, *cuda.options, *_toolkit_options(compiler, root, cuda, work)))
    tree = compiler.compile(("ggml",), work / CUDA, build, LIBRARY_TREE, job_memory_bytes=JOB_MEMORY_BYTES)
    target = out / "builds" / CUDA
    target.mkdir()
    for name in (REGISTRY, BACKEND):
        shutil.copyfile(tree / "bin" / name, target / name)
    _check_needs(target / BACKEND)
    for library in _carried(root, target / BACKEND):
        shutil.copyfile(library, target / library.name)
    for cpu in compiler.recipe.builds:
        both = out / "builds" / combined_name(cpu)
        both.mkdir()
        for file in sorted([*target.iterdir(), *(out / "builds" / cpu.name).iterdir()]):
            (both / file.name).symlink_to(Path("..") / file.parent.name / file.name)
    for licence in sorted(root.parent.parent.glob("nvidia_cublas-*.dist-info/licenses/License.txt")):
        shutil.copyfile(licence, out / "licenses" / "nvidia-cuda")


def _toolkit_options(compiler: Compiler, root: Path, cuda: CudaBuild, work: Path) -> tuple[str, ...]:
    """The driver's library belongs to the server: an empty one of its name stands in for it while linking."""
    driver = work / "libcuda.so"
    subprocess.run(
        [compiler.tools.cc, "-shared", "-nostdlib", f"-Wl,-soname,{DRIVER}", "-x", "c", "/dev/null", "-o", str(driver)],
        check=True,
    )
    return (
        f"CMAKE_CUDA_ARCHITECTURES={';'.join(cuda.architectures)}",
        f"CMAKE_CUDA_COMPILER={root / 'bin' / 'nvcc'}",
        f"CMAKE_CUDA_HOST_COMPILER={compiler.tools.cxx}",
        # CMake tries its compilers without the libraries of the packages, which lie in lib and not in lib64.
        f"CMAKE_CUDA_FLAGS=-L{root / 'lib'}",
        f"CUDAToolkit_ROOT={root}",
        f"CUDA_cuda_driver_LIBRARY={driver}",
        "CMAKE_SHARED_LINKER_FLAGS=-Wl,--no-as-needed",
    )


def _check_needs(backend: Path) -> None:
    """Without the driver's library among its needs, a server without a driver would run on its CPU in silence."""
    if DRIVER not in elf_names(backend):
        raise ConfigError(
            f"{BACKEND} was built without {DRIVER}, so that a missing driver would not be noticed.",
            reason="cuda_without_driver",
            next_step="Build it with GGML_CUDA_NO_VMM=OFF.",
        )


def _carried(root: Path, backend: Path) -> Iterator[Path]:
    """The toolkit's libraries that the backend needs, and those that they need."""
    waiting, seen = [backend], set[str]()
    while waiting:
        for name in elf_names(waiting.pop()):
            if name.startswith(CARRIED) and name not in seen:
                seen.add(name)
                waiting.append(root / "lib" / name)
                yield root / "lib" / name
