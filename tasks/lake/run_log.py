"""The agent's event log as a timeline: downloads, attempts at cells, telemetry, decisions, phases.

Besides the events of `tasks/domain/events.py` a log holds these lines, each with `seq`, `unix_s`, `kind`, `t_s`:

    AgentStarted {agent_sha256, runtime}            a second one: the agent was started again
    Decision     {action, subject, reason, evidence}
    Phase        {name, started_s, ended_s, model}  on the clock of t_s
    Telemetry    {allowed_cpu_busy, ...}            about the time since the reading before it
    AgentError   {error_kind, error}
    Finished     {reason, results: [{cell, reason, detail, samples_s}]}

All times here are unix seconds of the server's clock, as it stood when the agent started, moved on by the monotonic
`t_s`: a clock that is set during the run moves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

from tasks.domain import events as ev
from tasks.domain.cells import TASKS, Cell
from tasks.domain.errors import AgentError
from tasks.lake.timeline import Attempt, Download, EndedVariant, Process, Reading, TimedLine

TELEMETRY_INTERVAL_S = 1.0
"""What the first reading is about; each later one is about the time since the one before."""

MAX_UNIX_S = 1e11
"""Beyond the year 5000; what is larger is no time."""


FALL_BACK = "fall_back_to_cpu"
"""The decision after which a server that has a GPU is measured on its CPUs."""

_JUDGED_WHOLE = ("checksum", "not_gguf")
"""Failures that only a file which came in full can have; the agent has removed it by then and counts from 0."""


class RunLog:
    """Reads lines in the order of their numbers. Doubles are dropped; what is no event is counted and left out.

    `origin_unix_s` dates lines without `unix_s`.
    """

    def __init__(self, lines: Iterable[Any], origin_unix_s: float) -> None:
        self.n_events = 0
        self.n_missing = 0
        self.n_unreadable = 0
        self.start_s: float | None = None
        self.end_s = origin_unix_s
        self.probed: tuple[float, ev.Probed] | None = None
        self.headers: dict[str, dict[str, Any]] = {}
        self.processes: list[Process] = []
        self.attempts: dict[Cell, list[Attempt]] = {}
        self.downloads: list[Download] = []
        self.variants: list[EndedVariant] = []
        self.telemetry: list[Reading] = []
        self.decisions: list[TimedLine] = []
        self.phases: list[TimedLine] = []
        self.agent: dict[str, Any] = {}
        self.agent_error: dict[str, Any] | None = None
        self.finished: dict[str, Any] | None = None
        self._origin_s = origin_unix_s
        self._offset_s: float | None = None
        self._build = ""
        self._cpu_fallback: str | None = None
        self._open: Attempt | None = None
        for line in self._in_order(lines):
            self._read(line)

    def _in_order(self, lines: Iterable[Any]) -> list[dict[str, Any]]:
        numbered: dict[int, dict[str, Any]] = {}
        for line in lines:
            if isinstance(line, dict) and isinstance(line.get("seq"), int):
                numbered.setdefault(line["seq"], line)
            else:
                self.n_unreadable += 1
        self.n_events = len(numbered)
        if numbered:
            self.n_missing = max(numbered) - min(min(numbered), 1) + 1 - len(numbered)
        return [numbered[seq] for seq in sorted(numbered)]

    def _read(self, line: dict[str, Any]) -> None:
        try:
            kind, t_s = str(line["kind"]), _seconds(line["t_s"])
            if kind == "AgentStarted" or self._offset_s is None:
                self._begin(line, t_s)
            at_s = (self._offset_s or 0.0) + t_s
            own = _OWN_KINDS.get(kind)
            if own is not None:
                own(self, at_s, line)
            elif kind in ev.EVENT_TYPES:
                handler = _EVENTS.get(kind)
                event = _well_formed(ev.event_from_dict(line))
                if handler is not None:
                    handler(self, at_s, event, line)
            self.end_s = max(self.end_s, at_s)
        except (KeyError, TypeError, ValueError, AttributeError, AgentError):
            self.n_unreadable += 1

    def _begin(self, line: dict[str, Any], t_s: float) -> None:
        """The agent started: `t_s` begins anew, and what the agent before it had running is over."""
        self._offset_s = (_seconds(line["unix_s"]) if "unix_s" in line else self._origin_s) - t_s
        if self.start_s is None:
            self.start_s = self._offset_s + t_s
            self.end_s = self.start_s
            return
        for download in self.downloads:
            if download.ended_s is None:
                download.end(self.end_s)
        self._end_process(self.end_s)

    # ---- the agent's own lines ----------------------------------------------------------------------

    def _on_agent_started(self, at_s: float, line: dict[str, Any]) -> None:
        self.agent = line

    def _on_decision(self, at_s: float, line: dict[str, Any]) -> None:
        str(line["action"]), str(line["subject"]), str(line["reason"])
        self.decisions.append(TimedLine(at_s, line))
        if line["action"] == FALL_BACK:
            self._cpu_fallback = str(line["reason"])

    def _on_phase(self, at_s: float, line: dict[str, Any]) -> None:
        begin_s, end_s = _seconds(line["started_s"]), _seconds(line.get("ended_s", line["t_s"]))
        started_s = at_s + begin_s - _seconds(line["t_s"])
        self.phases.append(TimedLine(started_s, {**line, "name": str(line["name"]), "seconds": end_s - begin_s}))

    def _on_telemetry(self, at_s: float, line: dict[str, Any]) -> None:
        since_s = self.telemetry[-1].at_s if self.telemetry else at_s - TELEMETRY_INTERVAL_S
        values = {k: v for k, v in line.items() if k not in ("seq", "unix_s", "kind", "t_s")}
        self.telemetry.append(Reading(min(since_s, at_s), at_s, float(line["t_s"]), values))

    def _on_agent_error(self, at_s: float, line: dict[str, Any]) -> None:
        self.agent_error = line

    def _on_finished(self, at_s: float, line: dict[str, Any]) -> None:
        self.finished = line
        self._end_process(at_s)

    # ---- the probe and the downloads ----------------------------------------------------------------

    def _on_probed(self, at_s: float, event: ev.Probed, line: dict[str, Any]) -> None:
        if self.probed is None:
            self.probed = (at_s, event)

    def _on_header(self, at_s: float, event: ev.HeaderRead, line: dict[str, Any]) -> None:
        self.headers[str(event.model)] = dict(event.header)

    def _on_download_started(self, at_s: float, event: ev.DownloadStarted, line: dict[str, Any]) -> None:
        attempt = 1 + sum(d.model == event.model for d in self.downloads)
        host = line.get("url_host")
        download = Download(
            event.model, attempt, at_s, int(event.bytes_total), int(event.bytes_resumed), int(event.bytes_resumed)
        )
        download.url_host = None if host is None else str(host)
        self.downloads.append(download)

    def _download(self, model: str) -> Download | None:
        return next((d for d in reversed(self.downloads) if d.model == model and d.ended_s is None), None)

    def _on_download_progress(self, at_s: float, event: ev.DownloadProgress, line: dict[str, Any]) -> None:
        download = self._download(event.model)
        if download is not None:
            download.bytes_done = int(event.bytes_done)
            # A short download ends before its first count: what is left is the 0 of the last line, which is no count.
            download.n_connections = max(download.n_connections or 0, int(event.n_connections)) or None

    def _on_download_paused(self, at_s: float, event: ev.DownloadPaused, line: dict[str, Any]) -> None:
        download = self._download(event.model)
        if download is not None and download.paused_since_s is None:
            download.paused_since_s = at_s

    def _on_download_resumed(self, at_s: float, event: ev.DownloadResumed, line: dict[str, Any]) -> None:
        download = self._download(event.model)
        if download is not None and download.paused_since_s is not None:
            download.pauses.append((download.paused_since_s, at_s))
            download.paused_since_s = None

    def _on_download_finished(self, at_s: float, event: ev.DownloadFinished, line: dict[str, Any]) -> None:
        download = self._download(event.model)
        if download is not None:
            download.end(at_s)
            download.outcome, download.reason = "finished", "ok"
            download.bytes_done, download.sha256 = int(event.bytes), event.sha256 or None
            download.n_retries = int(event.n_retries)
            download.url_host = str(line["url_host"]) if "url_host" in line else download.url_host

    def _on_download_failed(self, at_s: float, event: ev.DownloadFailed, line: dict[str, Any]) -> None:
        download = self._download(event.model)
        if download is not None:
            download.end(at_s)
            download.outcome = "cancelled" if event.reason == "cancelled" else "failed"
            download.reason, download.detail = event.reason, event.detail
            if event.reason in _JUDGED_WHOLE:
                download.bytes_done = download.bytes_total

    # ---- llama-bench --------------------------------------------------------------------------------

    def _on_bench_started(self, at_s: float, event: ev.BenchStarted, line: dict[str, Any]) -> None:
        self._end_process(at_s)
        self._build = event.build
        self.processes.append(Process(event.model, at_s, cpu_fallback=self._cpu_fallback))

    def _on_warmup(self, at_s: float, event: ev.WarmupStarted, line: dict[str, Any]) -> None:
        process = self.processes[-1] if self.processes else None
        if process is not None and process.loaded_s is None:
            process.loaded_s = at_s
        self._begin_attempt(at_s, event.cell).warmup_s = at_s

    def _on_engine(self, at_s: float, event: ev.EngineLoaded, line: dict[str, Any]) -> None:
        if self.processes:
            self.processes[-1].engine = event

    def _on_repeat(self, at_s: float, event: ev.RepeatStarted, line: dict[str, Any]) -> None:
        attempt = self._open
        if attempt is None or attempt.cell != event.cell:
            attempt = self._begin_attempt(at_s, event.cell)
        attempt.n_repeats = int(event.n_repeats)
        attempt.marks_s.append(at_s)

    def _on_row(self, at_s: float, event: ev.BenchRow, line: dict[str, Any]) -> None:
        """Rows and marks come through two pipes: the mark of the next cell may come before the row of the last."""
        attempts = self.attempts.get(event.cell, [])
        running = [a for a in attempts[-1:] if a.row is None and a.process == len(self.processes)]
        attempt = running[0] if running else self._begin_attempt(at_s, event.cell)
        attempt.row = event
        if attempt is self._open:
            attempt.ended_s, self._open = at_s, None

    def _on_exit(self, at_s: float, event: ev.BenchExited, line: dict[str, Any]) -> None:
        self._end_process(at_s)

    def _on_variant(self, at_s: float, event: ev.VariantEnded, line: dict[str, Any]) -> None:
        self.variants.append(EndedVariant(event, at_s + _seconds(event.started_s) - _seconds(event.t_s), at_s))

    def _begin_attempt(self, at_s: float, cell: Cell) -> Attempt:
        if self._open is not None:
            self._open.ended_s = at_s
        self._open = Attempt(cell, self._build, len(self.processes))
        self.attempts.setdefault(cell, []).append(self._open)
        return self._open

    def _end_process(self, at_s: float) -> None:
        if self._open is not None:
            self._open.ended_s, self._open = at_s, None
        if self.processes and self.processes[-1].ended_s is None:
            self.processes[-1].ended_s = at_s


def _end_download(download: Download, at_s: float) -> None:
    if download.paused_since_s is not None:
        download.pauses.append((download.paused_since_s, at_s))
        download.paused_since_s = None
    download.ended_s = at_s


def _seconds(value: Any) -> float:
    """A time as a log may hold it. Raises ValueError or TypeError for anything that no clock has shown."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < MAX_UNIX_S:
        raise ValueError(f"{value!r} is no time.")
    return float(value)


def _well_formed(event: ev.Event) -> ev.Event:
    """The event, once each value is of the type that its class declares. Raises TypeError for one that is not."""
    for field in fields(event):
        value = getattr(event, field.name)
        if not _IS_A[str(field.type)](value):
            raise TypeError(f"{type(event).__name__}.{field.name} cannot be {value!r}.")
    return event


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_cell(value: Any) -> bool:
    if not isinstance(value.model, str) or value.task not in TASKS or not _is_count(value.n_tokens):
        return False
    return bool(0 < value.n_tokens < 2**31)


# By the annotation of the field.
_IS_A: dict[str, Callable[[Any], bool]] = {
    "str": lambda v: isinstance(v, str),
    "bool": lambda v: isinstance(v, bool),
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool) and abs(v) < 2**63,
    "int | None": lambda v: v is None or _IS_A["int"](v),
    "float": lambda v: isinstance(v, (int, float)) and math.isfinite(v),
    "Cell": _is_cell,
    "dict[str, Any]": lambda v: isinstance(v, dict),
    "list[dict[str, Any]]": lambda v: isinstance(v, list) and all(isinstance(x, dict) for x in v),
    "tuple[int, ...]": lambda v: all(_is_count(x) for x in v),
    "tuple[float, ...]": lambda v: all(isinstance(x, (int, float)) for x in v),
    "tuple[Cell, ...]": lambda v: all(_is_cell(x) for x in v),
}

_OWN_KINDS: dict[str, Callable[[RunLog, float, dict[str, Any]], None]] = {
    "AgentStarted": RunLog._on_agent_started,
    "Decision": RunLog._on_decision,
    "Phase": RunLog._on_phase,
    "Telemetry": RunLog._on_telemetry,
    "AgentError": RunLog._on_agent_error,
    "Finished": RunLog._on_finished,
}

_EVENTS: dict[str, Callable[[RunLog, float, Any, dict[str, Any]], None]] = {
    "Probed": RunLog._on_probed,
    "HeaderRead": RunLog._on_header,
    "DownloadStarted": RunLog._on_download_started,
    "DownloadProgress": RunLog._on_download_progress,
    "DownloadPaused": RunLog._on_download_paused,
    "DownloadResumed": RunLog._on_download_resumed,
    "DownloadFinished": RunLog._on_download_finished,
    "DownloadFailed": RunLog._on_download_failed,
    "BenchStarted": RunLog._on_bench_started,
    "WarmupStarted": RunLog._on_warmup,
    "RepeatStarted": RunLog._on_repeat,
    "EngineLoaded": RunLog._on_engine,
    "BenchRow": RunLog._on_row,
    "BenchExited": RunLog._on_exit,
    "VariantEnded": RunLog._on_variant,
}
