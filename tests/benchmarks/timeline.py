"""What a run's event log says about its pipeline: when was each model downloaded, when benchmarked, who waited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.benchmarks.workbench import of_kind


@dataclass(frozen=True)
class Span:
    model: str
    began_s: float
    ended_s: float

    @property
    def took_s(self) -> float:
        return self.ended_s - self.began_s


@dataclass(frozen=True)
class Timeline:
    """paused_s: time in which downloads stood still on purpose. makespan_s: from the agent's start to its end."""

    downloads: tuple[Span, ...]
    benches: tuple[Span, ...]
    paused_s: float
    makespan_s: float

    @property
    def bound_s(self) -> float:
        """The shortest makespan for downloads and benches that take as long as these did, pauses left out."""
        all_downloads_s = sum(d.took_s for d in self.downloads) - self.paused_s
        all_benches_s = sum(b.took_s for b in self.benches)
        return max(all_downloads_s + self.benches[-1].took_s, self.downloads[0].took_s + all_benches_s)

    @property
    def benches_s(self) -> float:
        return sum(b.took_s for b in self.benches)

    @property
    def before_first_download_s(self) -> float:
        return self.downloads[0].began_s

    @property
    def between_downloads_s(self) -> float:
        """No download, though there was one more to come: its header was read, its process started."""
        pairs = zip(self.downloads, self.downloads[1:], strict=False)
        return sum(after.began_s - before.ended_s for before, after in pairs)

    @property
    def bench_late_s(self) -> float:
        """llama-bench was not running though a model was there."""
        late_s, free_s = 0.0, 0.0
        for bench, download in zip(self.benches, self.downloads, strict=True):
            late_s += bench.began_s - max(free_s, download.ended_s)
            free_s = bench.ended_s
        return late_s

    @property
    def after_last_bench_s(self) -> float:
        return self.makespan_s - self.benches[-1].ended_s


def timeline(events: list[dict[str, Any]]) -> Timeline:
    """Of a run in which every model was downloaded and benchmarked once, in the same order."""
    paused_s, since_s = 0.0, None
    for event in events:
        if event["kind"] == "DownloadPaused":
            since_s = event["t_s"]
        elif event["kind"] in ("DownloadResumed", "DownloadFinished") and since_s is not None:
            paused_s, since_s = paused_s + event["t_s"] - since_s, None
    # A download may be paused before its process could say that it has started.
    return Timeline(
        _spans(events, ("DownloadStarted", "DownloadPaused"), "DownloadFinished"),
        _spans(events, ("BenchStarted",), "BenchExited"),
        paused_s,
        events[-1]["t_s"],
    )


def _spans(events: list[dict[str, Any]], begins: tuple[str, ...], ends: str) -> tuple[Span, ...]:
    ended_s = {event["model"]: event["t_s"] for event in of_kind(events, ends)}
    began_s: dict[str, float] = {}
    for event in events:
        if event["kind"] in begins:
            began_s.setdefault(event["model"], event["t_s"])
    return tuple(Span(model, t_s, ended_s[model]) for model, t_s in began_s.items())
