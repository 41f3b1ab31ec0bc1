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

NICE = 10


def yield_processor(scheduling: str) -> None:
    """Stand back behind llama-bench.

    Measured with one CPU that llama-bench keeps busy and a link of 100 MB/s: SCHED_IDLE lets 2 to 5 MB/s
    through, nice 19 about 10, nice 10 all of it for a tenth of the CPU. Less than that would stop the download
    for as long as anything is benchmarked; whether it may run then is the conductor's question, who pauses it.
    """
    if scheduling == "idle":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        _be_nice(19)
    elif scheduling == "nice":
        _be_nice(NICE)


def _be_nice(niceness: int) -> None:
    """Also as a session: with autogroups (the default of many kernels) each session gets an equal share of the
    processor, and the niceness of a process counts only within its own. Measured there: half of llama-bench's speed.
    """
    os.nice(niceness)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # a kernel without them
            Path("/proc/self/autogroup").write_text(str(niceness), encoding="ascii")


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


def main() -> int:
    """Download what stdin asks for. Always ends with a `finished` or `failed` line, unless killed."""
    raw = json.load(sys.stdin)
    spec = FetchSpec(**{**raw, "urls": tuple(raw["urls"])})
    yield_processor(spec.scheduling)
    if not _already_there(spec):
        fetch(spec, report)
    # Threads of dropped connections may still wait for bytes that nobody needs.
    os._exit(0)
