"""Builds agent.pyz: the agent and the domain as one file that any Python >= 3.9 runs."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHEBANG = b"#!/usr/bin/env python3\n"
MAIN = "import sys\nfrom agent.cli import main\nsys.exit(main())\n"
EPOCH = (1980, 1, 1, 0, 0, 0)


def _sources() -> Iterator[tuple[str, bytes]]:
    """Archive names and contents in a fixed order."""
    yield "__main__.py", MAIN.encode()
    for folder, package in (
        (ROOT / "agent-image" / "agent", "agent"),
        (ROOT / "tasks" / "domain", "tasks/domain"),
    ):
        for path in sorted(folder.glob("*.py")):
            yield f"{package}/{path.name}", path.read_bytes()
    yield "tasks/__init__.py", b""


def build_agent(out: Path) -> Path:
    """Write the archive to `out` and return it. The same sources always give the same bytes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".new")
    with temporary.open("wb") as file:
        file.write(SHEBANG)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, content in _sources():
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.create_system = 3
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, content)
    temporary.chmod(0o755)
    temporary.replace(out)
    return out


if __name__ == "__main__":
    sys.stdout.write(f"{build_agent(Path(sys.argv[1] if len(sys.argv) > 1 else 'dist/agent.pyz'))}\n")
