"""The process of one download: its specification from stdin, its report as JSON lines to stdout."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from agent.download import FetchSpec, fetch


def yield_processor(*, idle: bool) -> None:
    """Take only processor time that nobody else wants (`idle`), or the least share."""
    os.nice(19)
    if idle:
        with contextlib.suppress(OSError):  # nice 19 remains
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def report(values: dict[str, Any]) -> None:
    os.write(1, json.dumps(values).encode() + b"\n")


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while True:
            block = file.read(1 << 20)
            if not block:
                return digest.hexdigest()
            digest.update(block)


def _already_there(spec: FetchSpec) -> bool:
    """A finished file of an earlier agent is used again when it is the right one, and removed when not."""
    path = Path(spec.path)
    if not path.exists():
        return False
    size = path.stat().st_size
    sha256 = file_sha256(path) if size == (spec.bytes or size) else ""
    if not sha256 or (spec.sha256 and sha256 != spec.sha256):
        path.unlink()
        return False
    report({"kind": "started", "bytes_total": size, "bytes_resumed": size})
    report({"kind": "finished", "bytes": size, "sha256": sha256, "n_retries": 0})
    return True


def main(*, idle: bool) -> int:
    """Download what stdin asks for. Always ends with a `finished` or `failed` line, unless killed."""
    yield_processor(idle=idle)
    raw = json.load(sys.stdin)
    spec = FetchSpec(**{**raw, "urls": tuple(raw["urls"])})
    if not _already_there(spec):
        fetch(spec, report)
    # Threads of dropped connections may still wait for bytes that nobody needs.
    os._exit(0)
