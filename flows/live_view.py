"""What the agent on a server does, as bars of the timeline and as progress: each download and each llama-bench
process is one bar, so that the UI shows downloads running beside benchmarks."""

from __future__ import annotations

import logging
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from tasks.domain.run_plan import RunPlan
from tasks.progress import say
from tasks.steps import QuietBar, Timeline


class LiveView:
    """Takes in the events of one server run, in order."""

    def __init__(
        self,
        plan: RunPlan,
        timeline: Timeline,
        log: logging.Logger | logging.LoggerAdapter[Any],
        *,
        cell_lines: bool = True,
    ) -> None:
        self.plan, self.timeline, self.log = plan, timeline, log
        self.n_cells = len(plan.cells())
        # A line for each cell of thousands of servers would be most of what Prefect has to store.
        self.level = logging.INFO if cell_lines else logging.DEBUG
        self.n_done = 0
        self.running: dict[str, QuietBar] = {}

    def on_event(self, event: dict[str, Any]) -> None:
        handler = getattr(self, "_on_" + str(event.get("kind")), None)
        if handler is not None:
            handler(event)

    def _on_DownloadStarted(self, event: dict[str, Any]) -> None:
        mib = event["bytes_total"] / 2**20
        self._begin(f"download {event['model']}", f"download {event['model']} ({mib:.0f} MiB)")

    def _on_DownloadFinished(self, event: dict[str, Any]) -> None:
        self._end(f"download {event['model']}", Completed(message=f"{event['bytes']} bytes, checksum matches"))

    def _on_DownloadFailed(self, event: dict[str, Any]) -> None:
        name = f"download {event['model']}"
        if event["reason"] == "cancelled":
            self._end(name, Completed(name="Gated", message="stopped by a gate"))
        else:
            self.log.warning("%s: %s: %s", name, event["reason"], event["detail"])
            say(self.plan.server, f"{name} failed: {event['reason']}")
            self._end(name, Failed(message=f"{event['reason']}: {event['detail']}"))

    def _on_BenchStarted(self, event: dict[str, Any]) -> None:
        lengths = " ".join(f"{c['task']}{c['n_tokens']}" for c in event["cells"])
        self._begin(f"bench {event['model']}", f"bench {event['model']}: {lengths}")

    def _on_BenchExited(self, event: dict[str, Any]) -> None:
        name = f"bench {event['model']}"
        if event["aborted"]:
            self._end(name, Completed(name="Stopped", message="stopped by the policy; finished repeats are kept"))
        elif event["rc"] == 0:
            self._end(name, Completed(message="all cells"))
        else:
            self._end(name, Failed(message=f"llama-bench ended with rc {event['rc']}: {event['stderr_tail'][-200:]}"))

    def _on_BenchRow(self, event: dict[str, Any]) -> None:
        cell, samples = event["cell"], event["samples_s"]
        if samples:
            speed = cell["n_tokens"] / sorted(samples)[len(samples) // 2]
            self.log.log(self.level, "%s %s%d: %.1f tokens/s", cell["model"], cell["task"], cell["n_tokens"], speed)

    def _on_Decision(self, event: dict[str, Any]) -> None:
        if event.get("action") == "resolve":
            self.n_done += 1
            share = self.n_done / max(self.n_cells, 1)
            say(self.plan.server, f"{event['subject']}: {event['reason']}", min(share, 0.99))
        elif event.get("action") in ("run_cell", "download"):
            say(self.plan.server, f"{event['action'].replace('_cell', '')} {event['subject']}")

    def _begin(self, name: str, title: str) -> None:
        self.running[name] = self.timeline.begin(title)

    def _end(self, name: str, state: State[Any]) -> None:
        if name in self.running:
            self.running.pop(name).end(state)
