"""The llama.cpp runtime on this server: which of its builds this CPU may run, best first."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

from agent.hardware import cpu_flags

MANIFEST_FILE = "manifest.json"


def read_manifest(runtime_dir: Path) -> dict[str, Any]:
    """The runtime's manifest; empty where there is none, so that the run can end with a reason of its own."""
    try:
        manifest = json.loads((runtime_dir / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _glibc() -> tuple[int, ...]:
    name, version = platform.libc_ver()
    return _numbers(version) if name == "glibc" else ()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def fits_system(manifest: dict[str, Any]) -> bool:
    """Whether architecture and C library of this server are those that the runtime is made for."""
    if manifest.get("arch", platform.machine()) != platform.machine():
        return False
    return _numbers(manifest.get("min_glibc", "")) <= (_glibc() or (0,))


def allowed_builds(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Names of the builds without a GPU that this server can run, in the manifest's order.

    Its architecture and C library must fit the runtime, and the CPU must have the build's instruction set
    extensions. Whether the CPU keeps what its flags promise shows only when it runs.
    """
    if not fits_system(manifest):
        return ()
    have = cpu_flags()
    builds = (b for b in manifest.get("builds", []) if str(b.get("backend") or "cpu") == "cpu")
    return tuple(b["name"] for b in builds if have.issuperset(b.get("cpu_flags", [])))
