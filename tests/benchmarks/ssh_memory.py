"""python -m tests.benchmarks.ssh_memory [N]: what N open SSH connections cost the process that follows N servers.

Real sshd on loopback, the product's own connect; each connection has one command running whose output is read by a
thread of its own, as a server run follows its agent's event log. Memory of sshd's processes is not counted.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tasks.domain.errors import RemoteError
from tasks.remote.session import Session
from tasks.remote.ssh import connect
from tests.sshd import Sshd

LINE = "x" * 1000
FOLLOW = f"for i in 1 2 3 4 5 6 7 8 9 10; do echo {LINE}; done; exec sleep 600"


def main(n: int) -> int:
    own = psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        server = Sshd(Path(folder))
        server.start()
        sessions: list[Session] = [connect(server.endpoint(), timeout_s=120.0)]
        read = threading.Semaphore(0)
        _follow(sessions[0], read)
        gc.collect()
        before_bytes, before_threads, before_s = own.memory_info().rss, own.num_threads(), _cpu_s(own)
        began_s = time.monotonic()
        for _ in range(n):
            sessions.append(connect(server.endpoint(), timeout_s=120.0))
            _follow(sessions[-1], read)
        for _ in range(10 * (n + 1)):
            read.acquire(timeout=120.0)
        took_s, cpu_s = time.monotonic() - began_s, _cpu_s(own) - before_s
        gc.collect()
        kib = (own.memory_info().rss - before_bytes) / 1024 / n
        threads = (own.num_threads() - before_threads) / n
        print(f"{n} connections: {kib:.0f} KiB and {threads:.1f} threads each, {1e3 * cpu_s / n:.0f} ms of CPU to open")
        print(f"{took_s:.0f} s for all; process {own.memory_info().rss / 2**20:.0f} MiB, {own.num_threads()} threads")
        for session in sessions:
            session.close()
        server.stop()
    return 0


def _follow(session: Session, read: threading.Semaphore) -> None:
    """Read the lines as they come, in a thread."""

    def work() -> None:
        with suppress(RemoteError):  # the connection is closed at the end
            for _ in session.stream(["sh", "-c", FOLLOW]):
                read.release()

    threading.Thread(target=work, daemon=True).start()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
