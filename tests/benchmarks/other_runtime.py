"""A llama.cpp runtime from elsewhere instead of the cache's."""

from __future__ import annotations

from pathlib import Path

from agent.runtime import read_manifest
from build_agent import build_agent

from tasks.engine import Engine


def engine_of(runtime: Path, scratch: Path) -> Engine:
    """Of a folder with manifest.json, and an archive of it beside; the agent is built from this checkout."""
    manifest = read_manifest(runtime)
    return Engine(
        runtime_tarball=runtime.with_name(f"{runtime.name}.tar.gz"),
        runtime_dir=runtime.resolve(),
        runtime_id=runtime.name,
        llama_cpp_commit=str(manifest["llama_cpp_commit"]),
        build_names=tuple(build["name"] for build in manifest["builds"]),
        agent=build_agent(scratch / "agent.pyz"),
        agent_version="checkout",
    )
