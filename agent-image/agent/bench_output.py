"""llama-bench's output as events: rows from stdout, marks of warm-ups and repeats from stderr."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from tasks.domain.cells import PP, TG, Cell
from tasks.domain.events import BenchRow, Event, RepeatStarted, WarmupStarted

TAIL_BYTES = 4096
MARK_PREFIX = b"llama-bench: benchmark "
MARK = re.compile(r"llama-bench: benchmark (\d+)/\d+: (?:(warmup) \w+ run|(?:prompt|generation) run (\d+)/(\d+))$")
# What of the engine's log is worth keeping when it fails.
TROUBLE = re.compile(
    rb"fail|error|insufficient|\babort|assert|exception|terminate|unable|out of memory|bad_alloc|illegal|killed", re.I
)
TROUBLE_HINTS = (
    b"fail", b"error", b"insufficient", b"abort", b"assert", b"exception", b"terminate", b"unable", b"out of memory",
    b"bad_alloc", b"illegal", b"killed",
)  # fmt: skip
BUFFER = re.compile(
    r"(?:load_tensors|llama_kv_cache|sched_reserve):\s+(\S+)\s+(model|KV|compute) buffer size\s*=\s*([\d.]+) MiB"
)
OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
USING = re.compile(r": using device ((?:CUDA|ROCm|Vulkan|SYCL|MUSA|CANN)\d+) ")


def _tells_of_trouble(text: bytes) -> bool:
    """Plain words first: a tenth of the time of the expression, and -v writes a thousand lines before each cell."""
    lower = text.lower()
    return any(hint in lower for hint in TROUBLE_HINTS) and TROUBLE.search(text) is not None


def _samples_s(row: dict[str, Any]) -> tuple[float, ...] | None:
    """Seconds of each repeat from the raw samples; None when they are no times."""
    samples = row.get("samples_ns")
    if not isinstance(samples, list) or not samples:
        return None
    if any(isinstance(ns, bool) or not isinstance(ns, (int, float)) or not ns > 0 for ns in samples):
        return None
    seconds = tuple(ns / 1e9 for ns in samples)
    return seconds if all(math.isfinite(s) for s in seconds) else None


class BenchOutput:
    """Turns bytes of the two streams into events. `engine`: where the model was put, as the engine's log tells."""

    def __init__(self, cells: tuple[Cell, ...]) -> None:
        self.engine: dict[str, Any] = {"buffers_mib": {}, "layers_offloaded": None, "layers_total": None,
                                       "gpus_used": set()}  # fmt: skip
        self._cells = cells
        self._next_row = 0
        self._rests = {"stdout": b"", "stderr": b""}
        self._tail = b""
        self._trouble = b""

    def feed(self, t_s: float, stdout: bytes, stderr: bytes) -> list[Event]:
        """Events in the order in which they happened: a cell's marks, its row, then the next cell's marks."""
        items: list[tuple[int, int, Event]] = []
        for line in self._lines("stderr", stderr):
            if MARK_PREFIX not in line:
                self._log_line(line)
                continue
            mark = MARK.search(line.decode(errors="replace"))
            if mark and 0 < int(mark.group(1)) <= len(self._cells):
                index = int(mark.group(1)) - 1
                items.append((index, 0, self._mark(t_s, self._cells[index], mark)))
        for line in self._lines("stdout", stdout):
            row = self._row(t_s, line)
            if row is None:
                self._log_line(b"[stdout] " + line)
            else:
                items.append((self._cells.index(row.cell), 1, row))
        return [event for _, _, event in sorted(items, key=lambda item: item[:2])]

    def tail(self) -> str:
        """The last 4 KiB of what tells of trouble; where nothing does, of all that was neither row nor mark."""
        rest = self._rests["stderr"]
        trouble = self._trouble + (rest if _tells_of_trouble(rest) else b"")
        text = trouble or self._tail + rest
        if self._rests["stdout"]:
            text += b"[stdout] " + self._rests["stdout"]
        return text[-TAIL_BYTES:].decode(errors="replace").strip()

    def _log_line(self, line: bytes) -> None:
        line = line[:TAIL_BYTES] + b"\n"
        self._tail = (self._tail + line)[-TAIL_BYTES:]
        if line.startswith(b"[stdout]") or _tells_of_trouble(line):
            self._trouble = (self._trouble + line)[-TAIL_BYTES:]
        elif b"buffer size" in line:
            found = BUFFER.search(line.decode(errors="replace"))
            if found:
                buffers = self.engine["buffers_mib"]
                buffers.setdefault(f"{found.group(1)} {found.group(2)}", float(found.group(3)))
        elif b"using device" in line:
            self.engine["gpus_used"].update(USING.findall(line.decode(errors="replace")))
        elif b"layers to GPU" in line:
            found = OFFLOADED.search(line.decode(errors="replace"))
            if found:
                self.engine["layers_offloaded"], self.engine["layers_total"] = map(int, found.groups())

    def _lines(self, stream: str, data: bytes) -> list[bytes]:
        *lines, rest = (self._rests[stream] + data).split(b"\n")
        if stream == "stderr":
            rest = rest[-TAIL_BYTES:]
        self._rests[stream] = rest
        return [line for line in lines if line.strip()]

    @staticmethod
    def _mark(t_s: float, cell: Cell, mark: re.Match[str]) -> Event:
        if mark.group(2):
            return WarmupStarted(t_s, cell)
        return RepeatStarted(t_s, cell, int(mark.group(3)), int(mark.group(4)))

    def _row(self, t_s: float, line: bytes) -> BenchRow | None:
        """The row of a cell that is still open, or None for anything else."""
        try:
            row = json.loads(line, parse_constant=lambda _: None)
        except ValueError:
            return None
        samples_s = _samples_s(row) if isinstance(row, dict) else None
        if samples_s is None or row.get("n_depth"):
            return None
        n_prompt, n_gen = row.get("n_prompt"), row.get("n_gen")
        for index in range(self._next_row, len(self._cells)):
            cell = self._cells[index]
            if (n_prompt, n_gen) == ((cell.n_tokens, 0) if cell.task == PP else (0, cell.n_tokens)):
                self._next_row = index + 1
                return BenchRow(t_s, cell, samples_s, row)
        return None


def lengths(cells: tuple[Cell, ...], task: str) -> str:
    """The -p or -n argument; "0" keeps llama-bench from running its default length."""
    return ",".join(str(c.n_tokens) for c in cells if c.task == task) or "0"


def in_run_order(cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
    """The order in which one process runs them: every prompt length as given, then every generation length."""
    return tuple(c for task in (PP, TG) for c in cells if c.task == task)
