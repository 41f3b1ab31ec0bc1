"""What the machine does while it measures, once a second, at less than a thousandth of one CPU.

Files are kept open and read again from the start: opening them would cost more than reading them.
"""

from __future__ import annotations

import os
import time
from typing import Any

from agent.limits import cgroup_memory_used_bytes

CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Columns of a cpu line in /proc/stat.
USER, NICE, SYSTEM, IDLE, IOWAIT, IRQ, SOFTIRQ, STEAL = range(8)


class _ProcFile:
    def __init__(self, path: str, size_bytes: int = 16384) -> None:
        self._size_bytes = size_bytes
        try:
            self._fd: int | None = os.open(path, os.O_RDONLY)
        except OSError:
            self._fd = None

    def read(self) -> bytes:
        if self._fd is None:
            return b""
        try:
            data = os.pread(self._fd, self._size_bytes, 0)
            while len(data) == self._size_bytes:
                self._size_bytes *= 2
                data = os.pread(self._fd, self._size_bytes, 0)
            return data
        except OSError:
            return b""

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)


class Telemetry:
    """`sample()` gives what happened since the sample before; counters become rates."""

    def __init__(self) -> None:
        self._stat = _ProcFile("/proc/stat")
        self._meminfo = _ProcFile("/proc/meminfo", 4096)
        self._net = _ProcFile("/proc/net/dev", 4096)
        self._load = _ProcFile("/proc/loadavg", 256)
        self._pressure = {name: _ProcFile(f"/proc/pressure/{name}", 512) for name in ("cpu", "memory", "io")}
        self._process: tuple[_ProcFile, _ProcFile] | None = None
        self._allowed = {f"cpu{n}".encode() for n in os.sched_getaffinity(0)}
        self._before: dict[str, float] = {}
        self._before_s = 0.0

    def watch(self, pid: int) -> None:
        """Also tell memory, processor time and context switches of this process, until the next call; 0 for none."""
        if self._process is not None:
            for file in self._process:
                file.close()
        self._process = None
        if pid:
            self._process = (_ProcFile(f"/proc/{pid}/stat", 1024), _ProcFile(f"/proc/{pid}/status", 4096))
        for name in ("bench_cpu_s", "bench_switches", "bench_preemptions"):
            self._before.pop(name, None)

    def sample(self) -> dict[str, Any]:
        """JSON-ready values; the first call has no rates."""
        started_cpu_s = time.thread_time()
        now_s = time.monotonic()
        counters: dict[str, float] = {}
        values: dict[str, Any] = {}
        self._read_stat(counters)
        self._read_memory(values)
        self._read_network(counters)
        self._read_pressure(counters)
        self._read_process(counters, values)
        load = self._load.read().split()
        if load:
            values["load1"] = float(load[0])
        if self._before:
            values.update(self._rates(counters, now_s - self._before_s))
        self._before, self._before_s = counters, now_s
        times = os.times()
        values["agent_cpu_s"] = round(times.user + times.system, 3)
        values["sample_cpu_ms"] = round((time.thread_time() - started_cpu_s) * 1000.0, 3)
        return values

    def _read_stat(self, counters: dict[str, float]) -> None:
        data = self._stat.read()
        for line in data.split(b"\n"):
            if line.startswith(b"cpu"):
                name, *columns = line.split()
                if name != b"cpu" and name not in self._allowed:
                    continue
                ticks = [int(c) for c in columns[:8]]
                prefix = "machine" if name == b"cpu" else "allowed"
                idle = ticks[IDLE] + ticks[IOWAIT]
                for key, value in (("total", sum(ticks)), ("busy", sum(ticks) - idle - ticks[STEAL]),
                                   ("steal", ticks[STEAL]), ("iowait", ticks[IOWAIT])):  # fmt: skip
                    counters[f"{prefix}_{key}"] = counters.get(f"{prefix}_{key}", 0) + value
            elif line.startswith(b"ctxt "):
                counters["ctxt"] = int(line[5:])
                break

    def _read_memory(self, values: dict[str, Any]) -> None:
        for line in self._meminfo.read().split(b"\n")[:5]:
            name, _, rest = line.partition(b":")
            if name == b"MemAvailable":
                values["memory_available_bytes"] = int(rest.split()[0]) * 1024
            elif name == b"MemTotal":
                total = int(rest.split()[0]) * 1024
        if "memory_available_bytes" in values:
            values["memory_used_bytes"] = total - values["memory_available_bytes"]
        used = cgroup_memory_used_bytes()
        if used is not None:
            values["cgroup_memory_used_bytes"] = used

    def _read_network(self, counters: dict[str, float]) -> None:
        for line in self._net.read().split(b"\n")[2:]:
            name, colon, rest = line.partition(b":")
            if colon:
                columns = rest.split()
                scope = "lo" if name.strip() == b"lo" else "net"
                for key, column in (("rx", 0), ("tx", 8)):
                    counters[f"{scope}_{key}"] = counters.get(f"{scope}_{key}", 0) + int(columns[column])

    def _read_pressure(self, counters: dict[str, float]) -> None:
        for name, file in self._pressure.items():
            data = file.read()
            at = data.find(b"total=")
            if at >= 0:
                counters[f"psi_{name}"] = int(data[at + 6 :].split(None, 1)[0])

    def _read_process(self, counters: dict[str, float], values: dict[str, Any]) -> None:
        if self._process is None:
            return
        stat, status = self._process
        columns = stat.read().rpartition(b")")[2].split()
        if len(columns) > 21:
            counters["bench_cpu_s"] = (int(columns[11]) + int(columns[12])) / CLOCK_TICKS_PER_S
            values["bench_rss_bytes"] = int(columns[21]) * PAGE_BYTES
            values["bench_major_faults"] = int(columns[9])
        for line in status.read().split(b"\n"):
            if line.startswith(b"voluntary_ctxt_switches"):
                counters["bench_switches"] = int(line.split()[1])
            elif line.startswith(b"nonvoluntary_ctxt_switches"):
                counters["bench_preemptions"] = int(line.split()[1])

    def _rates(self, counters: dict[str, float], elapsed_s: float) -> dict[str, Any]:
        delta = {name: value - self._before[name] for name, value in counters.items() if name in self._before}
        rates: dict[str, Any] = {}
        for scope in ("allowed", "machine"):
            total = delta.get(f"{scope}_total", 0)
            if total > 0:
                for key in ("busy", "steal", "iowait"):
                    rates[f"{scope}_cpu_{key}"] = round(delta[f"{scope}_{key}"] / total, 4)
        elapsed_s = max(elapsed_s, 1e-6)
        for name, key in (("ctxt", "context_switches_per_s"), ("net_rx", "net_rx_bytes_per_s"),
                          ("net_tx", "net_tx_bytes_per_s"), ("lo_rx", "loopback_bytes_per_s"),
                          ("bench_cpu_s", "bench_cpus"),
                          ("bench_switches", "bench_switches_per_s"),
                          ("bench_preemptions", "bench_preemptions_per_s")):  # fmt: skip
            if name in delta:
                rates[key] = round(delta[name] / elapsed_s, 3)
        for name in self._pressure:
            if f"psi_{name}" in delta:  # microseconds in which at least one task waited
                rates[f"pressure_{name}"] = round(delta[f"psi_{name}"] / elapsed_s / 1e6, 4)
        return rates
