"""The agent's own download processes, begun in advance and let run only when wanted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.workbench import CpuSet, Workbench

CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MOST_BYTES = 16 << 30
DISK_SHARE = 1 / 16


@dataclass(frozen=True)
class Used:
    """What a process has done so far, or between two looks at it."""

    bytes_written: int = 0
    cpu_s: float = 0.0

    def since(self, before: Used) -> Used:
        return Used(self.bytes_written - before.bytes_written, self.cpu_s - before.cpu_s)


def cpu_s(pid: int) -> float:
    """Processor time of all threads of a process; it grows in steps of 10 ms."""
    columns = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(columns[11]) + int(columns[12])) / CLOCK_TICKS_PER_S


def endless_file(folder: Path) -> tuple[Path, int]:
    """A file that begins as a GGUF file does and takes no room; so large that no download of it ends meanwhile."""
    free = os.statvfs(folder)
    n_bytes = int(min(MOST_BYTES, free.f_bavail * free.f_frsize * DISK_SHARE))
    path = folder / "endless.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF")
        file.truncate(n_bytes)
    return path, n_bytes


class Download:
    """One fetch process of the agent, with another scheduling where one is given. It stands still until `go`."""

    def __init__(self, bench: Workbench, url: str, n_bytes: int, where: CpuSet, scheduling: str | None) -> None:
        self.folder = bench.folder("download")
        spec = {"urls": [url], "path": str(self.folder / "model.gguf"), "bytes": n_bytes}
        if scheduling is not None:
            spec["scheduling"] = scheduling
        # The agent starts it in a session of its own too: with autogroups, that decides what its niceness is worth.
        self._process = subprocess.Popen(
            [*where.pin(), sys.executable, "-I", "-S", str(bench.engine.agent), "fetch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(spec).encode())
        self._process.stdin.close()
        first = self._process.stdout.readline()
        if b"started" not in first:
            raise RuntimeError(f"the download did not start: {first!r}")
        self.stand_still()
        threading.Thread(target=self._process.stdout.read, daemon=True).start()

    def go(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stand_still(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def used(self) -> Used:
        """Raises RuntimeError when the download has ended, as then nothing was downloaded while llama-bench ran."""
        pid = self._process.pid
        if self._process.poll() is not None:
            raise RuntimeError("a download ended in the middle; it needs a larger file")
        written = next(
            int(line.split()[1]) for line in Path(f"/proc/{pid}/io").read_text().splitlines() if "wchar" in line
        )
        return Used(written, cpu_s(pid))

    def close(self) -> None:
        """End it and remove what it wrote."""
        self._process.kill()
        self._process.wait()
        for path in self.folder.iterdir():
            path.unlink()


@contextmanager
def closing_all(downloads: list[Download]) -> Iterator[None]:
    try:
        yield
    finally:
        for download in downloads:
            download.close()
