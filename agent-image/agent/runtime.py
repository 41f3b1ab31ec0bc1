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


def allowed_builds(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Names of the builds whose instruction set extensions this CPU has, in the manifest's order."""
    have = cpu_flags()
    arch = manifest.get("arch", platform.machine())
    if arch != platform.machine():
        return ()
    return tuple(b["name"] for b in manifest.get("builds", []) if have.issuperset(b.get("cpu_flags", [])))
