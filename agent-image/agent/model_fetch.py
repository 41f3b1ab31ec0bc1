"""A model's header and its download as the driver sees them: child processes whose lines become events."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from agent.child import Child, exit_status
from tasks.domain.cells import Reason
from tasks.domain.events import (
    DownloadFailed,
    DownloadFinished,
    DownloadPaused,
    DownloadProgress,
    DownloadResumed,
    DownloadStarted,
    Event,
    HeaderFailed,
    HeaderRead,
)
from tasks.domain.run_plan import ModelSpec

MAX_CHILD_RESTARTS = 3


class ModelFetch:
    """Starts the download at once. A child that dies without a verdict is started again and resumes."""

    def __init__(self, model: ModelSpec, path: Path, options: dict[str, Any]) -> None:
        self.model = model
        self.path = path
        self.ended = False
        self._paused = False
        self._announced = False
        self._n_restarts = 0
        self._values = {
            "urls": model.urls, "path": str(path), "bytes": model.bytes, "sha256": model.sha256, **options,
        }  # fmt: skip
        self.child = Child("fetch", self._values)

    def read(self, now_s: float) -> list[Event]:
        """Events from what the child has reported since the last call."""
        events: list[Event] = []
        for line in self.child.lines():
            if not self.ended:
                events.extend(self._event(now_s, line))
        return events

    def _event(self, now_s: float, line: dict[str, Any]) -> list[Event]:
        name = self.model.name
        kind = line["kind"]
        if kind == "started":
            if self._announced:
                return []
            self._announced = True
            return [DownloadStarted(now_s, name, line["bytes_total"], line["bytes_resumed"])]
        if kind == "progress":
            return [DownloadProgress(now_s, name, line["bytes_done"], line["n_connections"])]
        self.ended = True
        if kind == "finished":
            n_retries = line["n_retries"] + self._n_restarts
            return [DownloadFinished(now_s, name, line["bytes"], line["sha256"], n_retries)]
        return [DownloadFailed(now_s, name, line["reason"], line["detail"])]

    def reap(self, now_s: float) -> tuple[list[Event], bool]:
        """Last events of a child that has ended, and whether another child is at work now."""
        events = self.read(now_s)
        rc, tail = self.child.process.returncode, self.child.stderr_tail()
        self.child.close()
        if self.ended:
            return events, False
        if self._n_restarts >= MAX_CHILD_RESTARTS:
            self.ended = True
            detail = f"the download process ended {self._n_restarts + 1} times, last with rc {exit_status(rc)}. {tail}"
            failed = DownloadFailed(now_s, self.model.name, Reason.DOWNLOAD_FAILED.value, detail.strip())
            return [*events, failed], False
        self._n_restarts += 1
        self.child = Child("fetch", self._values)
        if self._paused:
            self.child.send(signal.SIGSTOP)
        return events, True

    def pause(self, now_s: float) -> list[Event]:
        self._paused = True
        self.child.send(signal.SIGSTOP)
        return [DownloadPaused(now_s, self.model.name)]

    def resume(self, now_s: float) -> list[Event]:
        self._paused = False
        self.child.send(signal.SIGCONT)
        return [DownloadResumed(now_s, self.model.name)]

    def abort(self, now_s: float) -> list[Event]:
        """End it and remove what it had."""
        self.ended = True
        self.child.close()
        remove_model(self.path)
        return [DownloadFailed(now_s, self.model.name, Reason.CANCELLED.value, "stopped on purpose")]


class HeaderRequest:
    """Reads one model's header in a process of its own: a long vocabulary would keep the event loop busy."""

    def __init__(self, model: ModelSpec, options: dict[str, Any]) -> None:
        self._model = model
        self._answers: list[dict[str, Any]] = []
        patience = {key: value for key, value in options.items() if key in ("stall_s", "dead_s")}
        self.child = Child("header", {"urls": model.urls, "total_bytes": model.bytes, **patience})

    def read(self) -> None:
        """Take in what the child has written, so that it never waits for a reader."""
        self._answers += self.child.lines()

    def reap(self, now_s: float) -> Event:
        """The answer of a child that has ended."""
        self.read()
        rc, tail = self.child.process.returncode, self.child.stderr_tail()
        self.child.close()
        name = self._model.name
        if not self._answers:
            detail = f"the header process ended with rc {exit_status(rc)}. {tail}".strip()
            return HeaderFailed(now_s, name, Reason.DOWNLOAD_FAILED.value, detail)
        answer = self._answers[-1]
        if answer["kind"] == "header":
            return HeaderRead(now_s, name, answer["header"])
        return HeaderFailed(now_s, name, answer["reason"], answer["detail"])


def remove_model(path: Path) -> None:
    """Remove a model's file and what a download of it left."""
    for suffix in ("", ".part", ".part.json", ".part.json.new"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
