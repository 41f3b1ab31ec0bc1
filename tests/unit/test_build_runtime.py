"""The llama.cpp runtime: recipe and id, download, layout, tarball, and whole builds of a tiny source."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

AGENT_IMAGE = Path(__file__).resolve().parents[2] / "agent-image"
sys.path.insert(0, str(AGENT_IMAGE))

from build_runtime import ensure_runtime  # noqa: E402
from runtime_layout import describe, elf_names, finish, pack, read_runtime  # noqa: E402
from runtime_recipe import LOCK_FILE, Source, load_recipe  # noqa: E402
from runtime_source import DownloadError, fetch_source, sha256_of, unpack_source, verified  # noqa: E402

from tasks.domain.errors import ConfigError, TokensweepError  # noqa: E402

HAS_COMPILER = all(map(shutil.which, ("c++", "cc", "readelf", "strip"))) and platform.libc_ver()[0] == "glibc"
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="needs g++ and binutils on a Linux with glibc")


def quiet(_line: str) -> None:
    pass


# -- recipe and id --


def test_the_same_recipe_has_the_same_id_and_any_change_another() -> None:
    recipe = load_recipe("x86_64")
    assert recipe.runtime_id == load_recipe("AMD64").runtime_id
    assert recipe.runtime_id.startswith("llama.cpp-0c1e57098-x86_64-")
    changed = [
        replace(recipe, layout=recipe.layout + 1),
        replace(recipe, options=(*recipe.options, "GGML_LTO=ON")),
        replace(recipe, baseline="-march=x86-64-v2"),
        replace(recipe, builds=recipe.builds[1:]),
        replace(recipe, source=replace(recipe.source, sha256="0" * 64)),
        load_recipe("aarch64"),
    ]
    assert len({recipe.runtime_id, *(other.runtime_id for other in changed)}) == len(changed) + 1


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_builds_go_from_the_most_demanding_to_the_least(arch: str) -> None:
    builds = load_recipe(arch).builds
    needs = [set(build.cpu_flags) for build in builds]
    assert len({build.name for build in builds}) == len(builds)
    assert all(needs)
    # A CPU that may run a build may run every later one, so falling back never meets an unknown instruction.
    have = needs[0] | {"ssse3", "sse4_1", "popcnt"}
    assert all(needed <= have for needed in needs)
    assert [len(needed) for needed in needs[:-1]] == sorted((len(needed) for needed in needs[:-1]), reverse=True)


def test_no_build_uses_amx() -> None:
    text = LOCK_FILE.read_text(encoding="utf-8")
    assert "GGML_AMX" not in text
    assert "GGML_NATIVE=OFF" in text


def test_an_unknown_architecture_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"riscv64.*aarch64, x86_64"):
        load_recipe("riscv64")


# -- download --


class Index:
    """A package index over HTTP with one file; `requests` are the paths asked for with their credentials."""

    def __init__(self, source: Source, content: bytes, as_json: bool, announced_bytes: int) -> None:
        self.requests: list[tuple[str, str]] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.requests.append((self.path, self.headers.get("Authorization", "")))
                href = f"../../files/{source.file}#sha256={source.sha256}"
                if self.path == f"/simple/{source.project}/":
                    page = json.dumps({"files": [{"filename": source.file, "url": href}]})
                    kind = "application/vnd.pypi.simple.v1+json" if as_json else "text/html"
                    self.answer((page if as_json else f'<a href="{href}">{source.file}</a>').encode(), kind)
                elif self.path == f"/files/{source.file}":
                    self.answer(content, "application/gzip", announced_bytes)
                else:
                    self.send_error(404)

            def answer(self, body: bytes, kind: str, announced_bytes: int = 0) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(announced_bytes or len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"127.0.0.1:{self.server.server_port}"


@contextmanager
def index_of(source: Source, content: bytes, *, as_json: bool = False, announced_bytes: int = 0) -> Iterator[Index]:
    index = Index(source, content, as_json, announced_bytes)
    threading.Thread(target=index.server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield index
    finally:
        index.server.shutdown()
        index.server.server_close()


def source_of(content: bytes, url: str = "http://127.0.0.1:1/gone.tar.gz") -> Source:
    return Source(
        project="no-such-project-of-tokensweep",
        version="1.0",
        file="thumb-1.0.tar.gz",
        url=url,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        folder="vendor/llama.cpp",
        commit="abc1234",
    )


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("variable", ["PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX"])
def test_the_configured_index_is_used(tmp_path: Path, variable: str, as_json: bool) -> None:
    source = source_of(b"content")
    with index_of(source, b"content", as_json=as_json) as index:
        environ = {variable: f"http://user:p%40ss@{index.origin}/simple"}
        got = fetch_source(source, tmp_path / "source", quiet, environ)
        assert got.read_bytes() == b"content"
        assert [path for path, _ in index.requests] == [f"/simple/{source.project}/", f"/files/{source.file}"]
        assert {sent for _, sent in index.requests} == {"Basic dXNlcjpwQHNz"}
        assert fetch_source(source, tmp_path / "source", quiet, environ) == got
        assert len(index.requests) == 2, "a second call asks nobody"


def test_without_an_index_the_pinned_address_is_used(tmp_path: Path) -> None:
    with index_of(source_of(b"content"), b"content") as index:
        source = source_of(b"content", f"http://{index.origin}/files/thumb-1.0.tar.gz")
        assert fetch_source(source, tmp_path, quiet, {}).read_bytes() == b"content"


def test_another_content_is_refused_and_removed(tmp_path: Path) -> None:
    source = source_of(b"content")
    with index_of(source, b"c0ntent") as index, pytest.raises(ConfigError, match=source.sha256) as refused:
        fetch_source(source, tmp_path, quiet, {"PIP_INDEX_URL": f"http://{index.origin}/simple"})
    assert hashlib.sha256(b"c0ntent").hexdigest() in str(refused.value)
    assert refused.value.reason == "source_checksum"
    assert list(tmp_path.iterdir()) == []


def test_a_file_given_by_hand_is_checked_and_left_alone(tmp_path: Path) -> None:
    given = tmp_path / "given.tar.gz"
    given.write_bytes(b"c0ntent")
    with pytest.raises(ConfigError, match="is not the pinned"):
        verified(given, source_of(b"content"))
    assert given.exists()


def test_a_cut_download_goes_on_to_the_next_address_and_says_so_at_the_end(tmp_path: Path) -> None:
    source = source_of(b"content")
    environ = {"PATH": str(tmp_path)}
    with index_of(source, b"cont", announced_bytes=7) as index:
        environ["PIP_INDEX_URL"] = f"http://u:secret@{index.origin}/simple"
        with pytest.raises(DownloadError) as failed:
            fetch_source(source, tmp_path / "source", quiet, environ)
    assert "thumb-1.0.tar.gz could not be downloaded" in str(failed.value)
    assert "127.0.0.1:1" in str(failed.value), "the pinned address was tried too"
    assert "secret" not in str(failed.value)
    assert not (tmp_path / "source" / source.file).exists()


# -- layout and tarball --


def tree_in(folder: Path) -> Path:
    for name, content in {
        "bin/llama-bench": "#!/bin/sh\n",
        "lib/b.so": "b",
        "lib/a.so": "a",
        "licenses/x": "x",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_the_tarball_depends_on_nothing_but_the_content(tmp_path: Path) -> None:
    first, second = tree_in(tmp_path / "first"), tree_in(tmp_path / "second")
    for number, path in enumerate(sorted(second.rglob("*"), reverse=True)):
        os.utime(path, (number, number))
    for tree in (first, second):
        pack(tree, tree / "runtime.tar.gz")
    assert (first / "runtime.tar.gz").read_bytes() == (second / "runtime.tar.gz").read_bytes()
    with tarfile.open(first / "runtime.tar.gz") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == sorted(m.name for m in members)
    assert {"bin/llama-bench", "lib/a.so", "lib/b.so"} < {m.name for m in members}
    assert {(m.mtime, m.uid, m.gid, m.uname) for m in members} == {(0, 0, 0, "")}


def test_a_runtime_that_lost_a_file_is_none(tmp_path: Path) -> None:
    tree = tree_in(tmp_path / "runtime")
    assert read_runtime(tree) is None
    finish(tree, {"files": [{"path": "lib/a.so", "bytes": 1}]})
    runtime = read_runtime(tree)
    assert runtime is not None
    assert runtime.tarball == tree / "runtime.tar.gz"
    assert os.access(tree / "bin" / "llama-bench", os.X_OK)
    (tree / "lib" / "a.so").write_text("")
    assert read_runtime(tree) is None
    (tree / "manifest.json").write_text("{")
    assert read_runtime(tree) is None


@needs_compiler
def test_what_is_no_elf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    with pytest.raises(ConfigError, match="readelf cannot read"):
        elf_names(tmp_path / "text")


# -- a whole build --

CMAKE_LISTS = """
cmake_minimum_required(VERSION 3.19)
project(llama.cpp C CXX)
find_program(GIT_EXE NAMES git)
if(GIT_EXE)
  message(FATAL_ERROR "git would answer for the checkout that the cache lies in")
endif()
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(ggml-base SHARED ggml/base.cpp)
add_library(ggml-cpu SHARED ggml/cpu.cpp)
set_target_properties(ggml-base ggml-cpu PROPERTIES VERSION 0.1 SOVERSION 0)
target_link_libraries(ggml-cpu PRIVATE ggml-base)
target_compile_definitions(ggml-cpu PRIVATE LEVEL="${LEVEL}")
add_library(cpp-httplib STATIC src/empty.cpp)
add_library(llama-common STATIC src/empty.cpp)
add_executable(llama-bench tools/main.cpp)
add_executable(llama-batched-bench tools/main.cpp)
foreach(program llama-bench llama-batched-bench)
  target_compile_definitions(${program} PRIVATE COMMIT="${LLAMA_BUILD_COMMIT}")
  target_link_libraries(${program} PRIVATE ggml-cpu)
endforeach()
"""
SOURCES = {
    "CMakeLists.txt": CMAKE_LISTS,
    "LICENSE": "free\n",
    "ggml/base.cpp": "const char *base() { return __FILE__; }\n",
    "ggml/cpu.cpp": "const char *base();\nconst char *level() { return base() ? LEVEL : nullptr; }\n",
    "src/empty.cpp": "",
    "tools/main.cpp": """#include <iostream>
const char *level();
int main() { std::cout << level() << " " COMMIT "\\n"; }
""",
    "docs/left-out.md": "never unpacked",
}
LOCK = """
layout = 1
[source]
project = "no-such-project-of-tokensweep"
version = "1.0"
file = "thumb-1.0.tar.gz"
url = "http://127.0.0.1:1/thumb-1.0.tar.gz"
sha256 = "{sha256}"
bytes = {bytes}
folder = "vendor/llama.cpp"
commit = "abc1234"
[cmake]
options = ["CMAKE_BUILD_TYPE=Release", "CMAKE_SKIP_RPATH=ON"]
[arch.{arch}]
baseline = ""
[[arch.{arch}.builds]]
name = "fast"
cpu_flags = ["an_extension_of_the_future"]
options = ["LEVEL=fast"]
[[arch.{arch}.builds]]
name = "plain"
cpu_flags = []
options = ["LEVEL=plain"]
"""


def thumb(folder: Path, changed: dict[str, str] | None = None) -> tuple[Path, Path]:
    """An archive with a llama.cpp of a few lines, and a lock file that pins it."""
    archive, lock = folder / "thumb-1.0.tar.gz", folder / "lock.toml"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in {**SOURCES, **(changed or {})}.items():
            info = tarfile.TarInfo(f"thumb-1.0/vendor/llama.cpp/{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    pins = {"sha256": sha256_of(archive), "bytes": archive.stat().st_size, "arch": platform.machine()}
    lock.write_text(LOCK.format(**pins))
    return archive, lock


def test_only_the_needed_folders_are_unpacked(tmp_path: Path) -> None:
    archive, lock = thumb(tmp_path)
    source = load_recipe(platform.machine(), lock).source
    root = unpack_source(archive, source, tmp_path / "out")
    assert (root / "ggml" / "cpu.cpp").exists()
    assert not (root / "docs").exists()
    with pytest.raises(ConfigError, match=r"no llama\.cpp in"):
        unpack_source(archive, replace(source, folder="elsewhere"), tmp_path / "other")


@needs_compiler
def test_two_callers_get_one_whole_runtime_that_runs_anywhere(tmp_path: Path) -> None:
    archive, lock = thumb(tmp_path)
    cache = tmp_path / "a cache" / "runtime"
    lines: list[str] = []
    got: list[Path] = []

    def build() -> None:
        got.append(ensure_runtime(cache, source_file=archive, lock_file=lock, progress=lines.append).path)

    callers = [threading.Thread(target=build) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(got) == 2
    assert got[0] == got[1]
    assert sum(line.startswith("compile llama-bench and llama-batched-bench (plain)") for line in lines) == 1, (
        "one of them built"
    )
    assert "not tried here, this CPU lacks what it needs: fast" in lines

    runtime = ensure_runtime(cache, lock_file=lock, progress=pytest.fail)
    assert runtime.path == got[0]
    assert runtime.path.name == load_recipe(platform.machine(), lock).runtime_id
    assert sorted(path.name for path in cache.iterdir()) == sorted((runtime.path.name, f"{runtime.path.name}.lock"))

    elsewhere = ensure_runtime(tmp_path / "other", source_file=archive, lock_file=lock, progress=quiet)
    assert elsewhere.tarball.read_bytes() == runtime.tarball.read_bytes(), "where it is built does not show"

    # What arrives on a server: two CPU builds behind one program, chosen by LD_LIBRARY_PATH, its own C library.
    unpacked = tmp_path / "server"
    subprocess.run(["sh", "-c", 'mkdir -p "$1" && tar -xzf "$0" -C "$1"', runtime.tarball, unpacked], check=True)
    for build_name in ("fast", "plain"):
        paths = {"LD_LIBRARY_PATH": f"{unpacked}/builds/{build_name}:{unpacked}/lib"}
        for program in ("llama-bench", "llama-batched-bench"):
            ran = subprocess.run([unpacked / "bin" / program], env=paths, capture_output=True, text=True)
            assert (ran.returncode, ran.stdout) == (0, f"{build_name} abc1234\n")
    none = subprocess.run([unpacked / "bin" / "llama-bench"], env={}, capture_output=True, text=True)
    assert none.returncode == 127, "no build is ever chosen by chance"
    assert {"libggml-base.so.0"} == {path.name for path in (unpacked / "lib").iterdir()}
    assert {"libc.so.6", "libstdc++.so.6"} < {path.name for path in (unpacked / "system").iterdir()}
    for path in [*(unpacked / "lib").iterdir(), *(unpacked / "builds").rglob("*.so.0")]:
        assert str(tmp_path).encode() not in path.read_bytes(), "no path of the building machine in the binaries"

    manifest = json.loads((unpacked / "manifest.json").read_text())
    assert manifest == runtime.manifest
    assert manifest["llama_cpp_commit"] == "abc1234"
    assert manifest["arch"] == platform.machine()
    assert [build["name"] for build in manifest["builds"]] == ["fast", "plain"]
    assert {"compiler", "min_kernel", "glibc", "source_sha256", "selection"} <= manifest.keys()
    on_disk = {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()} - {"manifest.json"}
    assert on_disk == {file["path"] for file in manifest["files"]}
    assert all(file["sha256"] == sha256_of(unpacked / file["path"]) for file in manifest["files"])
    recipe = load_recipe(platform.machine(), lock)
    assert describe(unpacked, recipe, manifest["compiler"], manifest["cmake"]) == manifest


@needs_compiler
def test_a_failed_build_names_the_error_and_the_log_and_leaves_no_runtime(tmp_path: Path) -> None:
    archive, lock = thumb(tmp_path, {"ggml/cpu.cpp": "int broken( {\n"})
    cache = tmp_path / "runtime"
    with pytest.raises(TokensweepError) as failed:
        ensure_runtime(cache, source_file=archive, lock_file=lock, progress=quiet)
    log = next(cache.glob("*.log"))
    assert failed.value.reason == "build_failed"
    assert "compile llama-bench and llama-batched-bench (plain)" in str(failed.value)
    assert "cpu.cpp" in str(failed.value)
    assert str(log) in str(failed.value)
    assert "broken" in log.read_text()
    assert sorted(path.suffix for path in cache.iterdir()) == [".lock", ".log"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the runtime is built on Linux only")
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_without_a_compiler_the_program_says_what_to_install(tmp_path: Path, arch: str) -> None:
    environ = {key: value for key, value in os.environ.items() if key not in ("CC", "CXX")}
    ended = subprocess.run(
        [sys.executable, AGENT_IMAGE / "build_runtime.py", "--cache", tmp_path / "cache", "--arch", arch],
        env={**environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    native = ("no C++ compiler, no C compiler", "apt install g++`", "dnf install gcc-c++", "pacman -S gcc`")
    cross = (
        f"no C++ compiler for {arch}",
        f"apt install g++-{arch.replace('_', '-')}-linux-gnu",
        f"{arch}-linux-gnu-gcc",
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    for words in native if arch == platform.machine() else cross:
        assert words in ended.stderr
    assert list((tmp_path / "cache" / "runtime").glob("llama.cpp-*-*[!k]")) == []
