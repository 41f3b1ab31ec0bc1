"""A runtime with a CUDA backend, built of a llama.cpp of a few lines: what is laid out, and how it ends without a GPU.

The toolkit's libraries are stand-ins made here: what NVIDIA's compiler makes of real kernels is not seen.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.unit.test_build_runtime import SOURCES, needs_compiler, quiet, thumb

from build_runtime import ensure_runtime, export, load_recipe  # isort: skip
from runtime_adopt import adopt  # isort: skip
from runtime_cuda import toolkit_root  # isort: skip

from tasks.domain.errors import ConfigError

REGISTRY = """
add_library(ggml SHARED ggml/registry.cpp)
set_target_properties(ggml PROPERTIES VERSION 0.1 SOVERSION 0)
target_link_libraries(ggml PUBLIC ggml-cpu)
target_link_libraries(llama-bench PRIVATE ggml)
target_link_libraries(llama-batched-bench PRIVATE ggml)
if (GGML_CUDA)
  add_library(ggml-cuda SHARED ggml/cuda.cpp)
  set_target_properties(ggml-cuda PROPERTIES VERSION 0.1 SOVERSION 0)
  target_link_libraries(ggml-cuda PRIVATE ${CUDAToolkit_ROOT}/lib/libcudart.so ${CUDAToolkit_ROOT}/lib/libcublas.so
    ${CUDA_cuda_driver_LIBRARY})
  target_link_options(ggml-cuda PRIVATE -Wl,--allow-shlib-undefined)
  target_compile_definitions(ggml PRIVATE GGML_USE_CUDA)
  target_link_libraries(ggml PRIVATE ggml-cuda)
endif()
"""
CHANGED = {
    "CMakeLists.txt": SOURCES["CMakeLists.txt"] + REGISTRY,
    "ggml/cuda.cpp": 'extern "C" int cublas();\nconst char *cuda() { return cublas() ? "cuda" : "none"; }\n',
    "ggml/registry.cpp": """const char *cuda();
#ifdef GGML_USE_CUDA
const char *backend() { return cuda(); }
#else
const char *backend() { return "cpu"; }
#endif
""",
    "tools/main.cpp": """#include <iostream>
const char *level(), *backend();
int main() { std::cout << level() << " " << backend() << " " COMMIT "\\n"; }
""",
}
CUDA = f"""
[cuda]
archs = ["{platform.machine()}"]
toolkit = "13.0"
min_driver = "580.65.06"
options = ["GGML_CUDA=ON"]
[[cuda.generations]]
name = "hopper"
compute_capabilities = ["9.0"]
architectures = ["90-real"]
"""


def library(folder: Path, name: str, code: str, *links: str) -> None:
    source = folder / "code.c"
    source.write_text(code)
    command = ["cc", "-shared", "-fPIC", "-Wl,--no-as-needed", f"-Wl,-soname,{name}", "-o", folder / name, source]
    subprocess.run([*command, f"-L{folder}", *links], check=True)
    source.unlink()


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """As pip leaves the packages: programs without the right to run, libraries without the names linkers look for."""
    root = tmp_path / "toolkit" / "nvidia" / "cu13"
    for folder in ("bin", "lib"):
        (root / folder).mkdir(parents=True)
    (root / "bin" / "nvcc").write_text("#!/bin/sh\n")
    library(root / "lib", "libcudart.so.13", "")
    library(root / "lib", "libcublasLt.so.13", "")
    library(root / "lib", "libcublas.so.13", "int cublas(void) { return 1; }\n", "-l:libcublasLt.so.13")
    return tmp_path / "toolkit"


@needs_compiler
def test_cuda_is_laid_over_each_cpu_build_and_ends_by_name_where_there_is_no_driver(
    tmp_path: Path, toolkit: Path
) -> None:
    archive, lock = thumb(tmp_path, CHANGED)
    lock.write_text(lock.read_text() + CUDA)
    runtime = ensure_runtime(
        tmp_path / "cache", source_file=archive, cuda_toolkit=toolkit, gpus="hopper", lock_file=lock, progress=quiet
    )
    assert runtime.path.name == load_recipe(platform.machine(), lock, gpus="hopper").runtime_id
    assert (runtime.manifest["variant"], runtime.manifest["gpus"]) == ("cuda", "hopper")
    names = [build["name"] for build in runtime.manifest["builds"]]
    assert names == ["cuda+fast", "cuda+plain", "fast", "plain"]

    export(runtime, tmp_path / "out")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "out", check=True)
    server = tmp_path / "server"
    server.mkdir()
    subprocess.run(["tar", "-xzf", tmp_path / "out" / "runtime.tar.gz", "-C", server], check=True)
    carried = {path.name for path in (server / "builds" / "cuda").iterdir()}
    system = {"libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13"}
    assert carried == {"libggml.so.0", "libggml-cuda.so.0", *system}
    with tarfile.open(runtime.tarball) as tar:
        copies = [m for m in tar.getmembers() if m.isfile() and m.name.endswith("libcublas.so.13")]
    assert len(copies) == 1, "one copy, links for the others"

    # No driver here: it must end, and say why; a runtime that runs anyhow would measure the CPU in silence.
    without = run(server, "cuda+plain")
    assert (without.returncode, without.stdout) == (127, "")
    assert "libcuda.so.1: cannot open shared object file" in without.stderr
    driver = tmp_path / "driver"
    driver.mkdir()
    library(driver, "libcuda.so.1", "")
    assert run(server, "cuda+plain", driver).stdout == "plain cuda abc1234\n"
    assert run(server, "cuda+fast", driver).stdout == "fast cuda abc1234\n"
    assert run(server, "fast").stdout == "fast cpu abc1234\n"

    manifest = json.loads((server / "manifest.json").read_text())
    links = {p.relative_to(server).as_posix(): str(p.readlink()) for p in server.rglob("*") if p.is_symlink()}
    assert manifest["links"] == links
    assert links["builds/cuda+fast/libggml-cpu.so.0"] == "../fast/libggml-cpu.so.0"
    assert not [file for file in manifest["files"] if file["path"] in links]

    # A controller without CUDA takes it over, and from then on finds it; a broken or another one it does not take.
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(ConfigError, match="no CUDA toolkit to build it with") as refused:
        ensure_runtime(elsewhere, gpus="hopper", lock_file=lock)
    assert refused.value.reason == "no_cuda_runtime"
    adopted = adopt(tmp_path / "out", elsewhere, lock)
    assert adopted.manifest == runtime.manifest
    assert adopted.tarball.read_bytes() == runtime.tarball.read_bytes()
    assert adopt(tmp_path / "out", elsewhere, lock).path == adopted.path
    assert ensure_runtime(elsewhere, gpus="hopper", lock_file=lock, progress=pytest.fail).path == adopted.path
    with pytest.raises(ConfigError, match="this checkout measures with"):
        lock.write_text(lock.read_text().replace("580.65.06", "590.1"))
        adopt(tmp_path / "out", tmp_path / "third", lock)
    (tmp_path / "out" / "runtime.tar.gz").write_bytes(b"cut off")
    with pytest.raises(ConfigError, match="is not what SHA256SUMS says"):
        adopt(tmp_path / "out", tmp_path / "third", lock)
    assert not (tmp_path / "third").exists()


def run(server: Path, build: str, driver: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [server / "builds" / build, server / "lib", *([driver] if driver else [])]
    environment = {"LD_LIBRARY_PATH": os.pathsep.join(map(str, paths))}
    return subprocess.run([server / "bin" / "llama-bench"], env=environment, capture_output=True, text=True)


def test_what_pip_unpacked_becomes_a_toolkit(tmp_path: Path, toolkit: Path) -> None:
    for _ in range(2):
        root = toolkit_root(toolkit)
        assert os.access(root / "bin" / "nvcc", os.X_OK)
        assert (root / "lib" / "libcublas.so").resolve() == root / "lib" / "libcublas.so.13"
    with pytest.raises(ConfigError, match="no nvcc"):
        toolkit_root(tmp_path / "elsewhere")
