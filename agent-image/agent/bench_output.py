"""llama-bench's output as events: rows from stdout, marks of warm-ups and repeats from stderr."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from tasks.domain.cells import PP, TG, Cell
from tasks.domain.events import BenchRow, Event, RepeatStarted, WarmupStarted

TAIL_BYTES = 4096
MARK = re.compile(r"llama-bench: benchmark (\d+)/\d+: (?:(warmup) \w+ run|(?:prompt|generation) run (\d+)/(\d+))$")
STARTING = re.compile(r"llama-bench: benchmark \d+/\d+: starting$")


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
    """Turns bytes of the two streams into events. Text that is neither row nor mark is kept as the tail."""

    def __init__(self, cells: tuple[Cell, ...]) -> None:
        self._cells = cells
        self._next_row = 0
        self._rests = {"stdout": b"", "stderr": b""}
        self._tail = b""

    def feed(self, t_s: float, stdout: bytes, stderr: bytes) -> list[Event]:
        """Events in the order in which they happened: a cell's marks, its row, then the next cell's marks."""
        items: list[tuple[int, int, Event]] = []
        for line in self._lines("stderr", stderr):
            mark = MARK.match(line.decode(errors="replace"))
            index = int(mark.group(1)) - 1 if mark else -1
            if mark and 0 <= index < len(self._cells):
                items.append((index, 0, self._mark(t_s, self._cells[index], mark)))
            elif not STARTING.match(line.decode(errors="replace")):
                self._keep(line)
        for line in self._lines("stdout", stdout):
            row = self._row(t_s, line)
            if row is None:
                self._keep(b"[stdout] " + line)
            else:
                items.append((self._cells.index(row.cell), 1, row))
        return [event for _, _, event in sorted(items, key=lambda item: item[:2])]

    def tail(self) -> str:
        """The last 4 KiB of what was neither row nor mark, unfinished lines included."""
        rest = self._rests["stderr"] + (b"[stdout] " + self._rests["stdout"] if self._rests["stdout"] else b"")
        return (self._tail + rest)[-TAIL_BYTES:].decode(errors="replace").strip()

    def _lines(self, stream: str, data: bytes) -> list[bytes]:
        *lines, rest = (self._rests[stream] + data).split(b"\n")
        if stream == "stderr":
            rest = rest[-TAIL_BYTES:]
        self._rests[stream] = rest
        return [line for line in lines if line.strip()]

    def _keep(self, line: bytes) -> None:
        self._tail = (self._tail + line[:TAIL_BYTES] + b"\n")[-TAIL_BYTES:]

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
