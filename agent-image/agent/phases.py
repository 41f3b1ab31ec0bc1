"""How long each part of a server run took, from the events alone."""

from __future__ import annotations

from typing import Any

from tasks.domain.events import (
    BenchExited,
    BenchStarted,
    DownloadFailed,
    DownloadFinished,
    DownloadStarted,
    Event,
    HeaderFailed,
    HeaderRead,
    Probed,
    VariantEnded,
    WarmupStarted,
)


class Phases:
    """Give it every event; it returns the phases that the event ends: probe, header, download, load, bench, variant."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], float] = {("probe", ""): 0.0}

    def begin(self, name: str, model: str, t_s: float) -> None:
        self._open[(name, model)] = t_s

    def on(self, event: Event) -> list[dict[str, Any]]:
        if isinstance(event, Probed):
            return self._end("probe", "", event.t_s)
        if isinstance(event, (HeaderRead, HeaderFailed)):
            return self._end("header", event.model, event.t_s)
        if isinstance(event, DownloadStarted):
            self.begin("download", event.model, event.t_s)
        elif isinstance(event, (DownloadFinished, DownloadFailed)):
            return self._end("download", event.model, event.t_s)
        elif isinstance(event, BenchStarted):
            self.begin("load", event.model, event.t_s)
            self.begin("bench", event.model, event.t_s)
        elif isinstance(event, WarmupStarted):
            return self._end("load", event.cell.model, event.t_s)
        elif isinstance(event, VariantEnded):
            self.begin("variant", event.model, event.started_s)
            return self._end("variant", event.model, event.t_s)
        elif isinstance(event, BenchExited):
            self._open.pop(("load", event.model), None)
            return self._end("bench", event.model, event.t_s)
        return []

    def _end(self, name: str, model: str, t_s: float) -> list[dict[str, Any]]:
        started_s = self._open.pop((name, model), None)
        if started_s is None:
            return []
        return [{"t_s": t_s, "name": name, "model": model, "started_s": started_s, "ended_s": t_s}]
