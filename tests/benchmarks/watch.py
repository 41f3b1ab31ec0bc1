"""What processes take while something runs: peak memory and CPU seconds, by role."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

SAMPLE_EVERY_S = 1.0
MIB = 2**20


@dataclass
class Role:
    """peak_mib: of the largest process. sum_peak_mib: of all of the role at one time. cpu_s: of all that there were."""

    peak_mib: float = 0.0
    sum_peak_mib: float = 0.0
    most_processes: int = 0
    most_threads: int = 0
    cpu_by_process: dict[tuple[int, float], float] = field(default_factory=dict)

    @property
    def cpu_s(self) -> float:
        return sum(self.cpu_by_process.values())


class ProcessWatch:
    """Samples once a second. roots: the processes to look at now, with their children, by role; `role_of` may name
    another role for a child by its command line. PSS where it can be read, so that what PostgreSQL's processes share
    counts once."""

    def __init__(self, roots: Callable[[], dict[str, list[int]]], role_of: Callable[[str, str], str]) -> None:
        self._roots, self._role_of = roots, role_of
        self.roles: dict[str, Role] = defaultdict(Role)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ProcessWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            began_s = time.monotonic()
            self._sample()
            self._ended.wait(min(5.0, 10 * (time.monotonic() - began_s)))  # looking must not be most of the load

    def _sample(self) -> None:
        now: dict[str, list[float]] = defaultdict(list)
        for name, pids in self._roots().items():
            for pid in pids:
                try:
                    root = psutil.Process(pid)
                    family = [root, *root.children(recursive=True)]
                except psutil.Error:
                    continue
                for process in family:
                    self._look(name, process, now)
        for name, sizes in now.items():
            role = self.roles[name]
            role.peak_mib = max(role.peak_mib, *sizes)
            role.sum_peak_mib = max(role.sum_peak_mib, sum(sizes))
            role.most_processes = max(role.most_processes, len(sizes))

    def _look(self, name: str, process: psutil.Process, now: dict[str, list[float]]) -> None:
        try:
            with process.oneshot():
                name = self._role_of(name, " ".join(process.cmdline()))
                times, key = process.cpu_times(), (process.pid, process.create_time())
                memory = process.memory_full_info().pss if name == "postgres" else process.memory_info().rss
                n_threads = process.num_threads()
        except psutil.Error:
            return
        role = self.roles[name]
        role.cpu_by_process[key] = times.user + times.system
        role.most_threads = max(role.most_threads, n_threads)
        now[name].append(memory / MIB)
