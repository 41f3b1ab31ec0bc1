"""Configures and compiles llama.cpp with the machine's own compiler; what goes wrong is told with what to do."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from runtime_recipe import CpuBuild, Recipe
from runtime_source import Say

from tasks.domain.errors import ConfigError, TokensweepError

# What is not timed need not be optimised: the programs take argument parsing and batches from llama-common, which is
# half of all the code, and the extra trees make libggml-base only to link against it.
PROGRAM_TREE = ("llama-common -O1", "cpp-httplib -O1")
LIBRARY_TREE = ("ggml-base -O0",)
JOB_MEMORY_BYTES = 1_200_000_000  # the largest compilation (arg.cpp) takes 1.0 GB with g++ 12
INSTALL = (
    "Install a C and C++ compiler: `apt install g++` (Debian, Ubuntu), `dnf install gcc-c++` (Fedora, RHEL), "
    "`pacman -S gcc` (Arch)."
)
INSTALL_CROSS = (
    "Install a cross compiler: `apt install g++-{arch_dashed}-linux-gnu` (Debian, Ubuntu), `pacman -S "
    "{arch}-linux-gnu-gcc` (Arch); or build on a machine of that architecture and copy the cache folder."
)


@dataclass(frozen=True)
class Toolchain:
    """Programs by path; `version` is the compiler's own first line, `options` tell CMake of another architecture."""

    cc: str
    cxx: str
    cmake: str
    ninja: str
    strip: str
    version: str
    options: tuple[str, ...] = ()


def find_toolchain(arch: str) -> Toolchain:
    """This Python's CMake and Ninja, and $CC and $CXX or the usual names; for another architecture GNU's cross names.

    Raises ConfigError with what to install.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        raise ConfigError(
            "The llama.cpp runtime for servers is built on a Linux with glibc.",
            reason="unsupported_build_machine",
            next_step="Build it in a Debian container and copy the cache folder.",
        )
    options: tuple[str, ...] = ()
    if arch == platform.machine():
        cxx = _program(os.environ.get("CXX"), "c++", "g++", "clang++")
        cc = _program(os.environ.get("CC"), "cc", "gcc", "clang")
        strip, what, install = _program("strip"), "", INSTALL
    else:
        cxx, cc, strip = (_program(f"{arch}-linux-gnu-{name}") for name in ("g++", "gcc", "strip"))
        what, install = f" for {arch}", INSTALL_CROSS.format(arch=arch, arch_dashed=arch.replace("_", "-"))
        options = ("CMAKE_SYSTEM_NAME=Linux", f"CMAKE_SYSTEM_PROCESSOR={arch}")
    wanted = {"C++ compiler": cxx, "C compiler": cc, "binutils": strip and _program("readelf")}
    missing = [name + what for name, found in wanted.items() if not found]
    if missing:
        raise ConfigError(
            f"llama.cpp cannot be built: no {', no '.join(missing)} in PATH.", reason="no_compiler", next_step=install
        )
    cmake, ninja = (_program(str(Path(sys.executable).with_name(name)), name) for name in ("cmake", "ninja"))
    if not (cmake and ninja):
        raise ConfigError(
            f"llama.cpp cannot be built: {'ninja' if cmake else 'cmake'} is missing.",
            reason="no_cmake",
            next_step=f"Run `uv sync`, or `{sys.executable} -m pip install cmake ninja`.",
        )
    shown = subprocess.run([str(cxx), "--version"], capture_output=True, text=True, check=True)
    return Toolchain(str(cc), str(cxx), cmake, ninja, str(strip), shown.stdout.splitlines()[0], options)


def _program(*names: str | None) -> str | None:
    return next((found for name in names if name and (found := shutil.which(name))), None)


@dataclass(frozen=True)
class Compiler:
    recipe: Recipe
    tools: Toolchain
    source: Path
    log: Path
    progress: Say

    def compile(
        self,
        targets: tuple[str, ...],
        tree: Path,
        build: CpuBuild,
        per_target: tuple[str, ...],
        job_memory_bytes: int = JOB_MEMORY_BYTES,
    ) -> Path:
        """Configure `tree` for `build`, make `targets` in it and return the tree."""
        tree.mkdir()
        hook = tree / "optimise.cmake"
        deferred = 'cmake_language(DEFER DIRECTORY "${{CMAKE_SOURCE_DIR}}" CALL target_compile_options {} PRIVATE {})\n'
        hook.write_text("".join(deferred.format(*line.split()) for line in per_target))
        # No path of this machine gets into the binaries, so that the same source gives the same bytes.
        hide = shlex.join(f"-ffile-prefix-map={folder}=." for folder in (self.source, tree))
        flags = f"{self.recipe.baseline} {hide}"
        options = (
            *self.recipe.options,
            *build.options,
            *self.tools.options,
            f"CMAKE_C_COMPILER={self.tools.cc}",
            f"CMAKE_CXX_COMPILER={self.tools.cxx}",
            f"CMAKE_MAKE_PROGRAM={self.tools.ninja}",
            f"CMAKE_C_FLAGS={flags}",
            f"CMAKE_CXX_FLAGS={flags}",
            f"CMAKE_PROJECT_llama.cpp_INCLUDE={hook}",
            # Asked of git otherwise, which would answer for whatever checkout the cache lies in: no such program, then.
            f"LLAMA_BUILD_COMMIT={self.recipe.source.commit}",
            "GIT_EXE=OFF",
            "LLAMA_BUILD_NUMBER=0",
        )
        what = f"{' and '.join(targets)} ({build.name})"
        configure = [self.tools.cmake, "-S", str(self.source), "-B", str(tree), "-G", "Ninja"]
        self._run([*configure, *(f"-D{option}" for option in options)], f"configure {what}")
        jobs = max(1, min(len(os.sched_getaffinity(0)), _available_memory_bytes() // job_memory_bytes))
        self._run([self.tools.ninja, "-C", str(tree), f"-j{jobs}", *targets], f"compile {what} with {jobs} jobs")
        return tree

    def _run(self, command: list[str], phase: str) -> None:
        """Run at low priority, all output into the log, a line of progress at each quarter. Raises TokensweepError."""
        self.progress(phase)
        environment = {k: v for k, v in os.environ.items() if k not in ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS")}
        nice = ["nice", "-n", "10"] if shutil.which("nice") else []
        quarter = 1
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n")
            with subprocess.Popen(
                [*nice, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
            ) as process:
                for line in process.stdout or ():
                    log.write(line)
                    step = re.match(r"\[(\d+)/(\d+)\]", line)
                    if step and quarter < 4 and int(step[1]) * 4 >= int(step[2]) * quarter:
                        quarter = int(step[1]) * 4 // int(step[2]) + 1
                        self.progress(f"  {step[1]} of {step[2]}")
        if process.returncode != 0:
            raise TokensweepError(
                f"llama.cpp could not be built: `{phase}` ended with {process.returncode}: {_first_error(self.log)}",
                reason="build_failed",
                next_step=f"The whole log is {self.log}. {INSTALL}",
            )


def _first_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    wrong = [line for line in lines if re.search(r"\berror\b|No space left|Killed", line, re.IGNORECASE)]
    return (wrong or lines or ["no output"])[0].strip()


def _available_memory_bytes() -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else JOB_MEMORY_BYTES
