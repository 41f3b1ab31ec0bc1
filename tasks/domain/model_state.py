"""What the conductor knows of one model: its stage, and its download as it goes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tasks.domain.policy import DownloadView
from tasks.domain.run_plan import ModelSpec

RECENT_WINDOW_S = 120.0
"""Of the speed that a download is judged by: long enough for a hiccup, short enough that a fast start is forgotten."""


class Stage(Enum):
    """A model only moves forward."""

    NEW = "new"
    HEADER = "header"
    QUEUED = "queued"
    DOWNLOADING = "downloading"
    READY = "ready"
    CLOSED = "closed"


@dataclass
class ModelState:
    spec: ModelSpec
    stage: Stage = Stage.NEW
    download: DownloadView | None = None
    pause_asked: bool = False
    kills: int = 0
    progress_at_s: float = 0.0

    def begin_download(self, now_s: float) -> None:
        self.stage = Stage.DOWNLOADING
        self.download = DownloadView(self.spec.name, self.spec.planned_bytes, started_s=now_s)
        self.pause_asked = False
        self.progress_at_s = now_s

    def download_started(self, t_s: float, bytes_total: int, bytes_resumed: int) -> None:
        self.progress_at_s = t_s
        if self.download is not None:
            self.download.bytes_total = bytes_total or self.download.bytes_total
            self.download.started_s = t_s
            self.download.bytes_done = bytes_resumed

    def progress(self, t_s: float, bytes_done: int) -> None:
        """Bytes so far; time spent in a pause does not count against the link."""
        download = self.download
        if download is None:
            return
        dt_s = t_s - self.progress_at_s
        if not download.paused and dt_s > 0:
            download.active_s += dt_s
            speed = max(bytes_done - download.bytes_done, 0) / dt_s
            weight = dt_s / max(dt_s, min(download.active_s, RECENT_WINDOW_S))  # at first the mean
            download.recent_bytes_per_s += weight * (speed - download.recent_bytes_per_s)
        download.bytes_done = bytes_done
        self.progress_at_s = t_s

    def paused(self, t_s: float) -> None:
        if self.download is not None:
            self.progress(t_s, self.download.bytes_done)
            self.download.paused = True

    def resumed(self, t_s: float) -> None:
        self.progress_at_s = t_s
        if self.download is not None:
            self.download.paused = False
