"""What happens on a server, as task runs of its flow: each download and each llama-bench process is one bar of the
timeline, so that the UI shows downloads running beside benchmarks.

These tasks do no work: they begin and end with the events that the agent sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, cast

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from tasks.domain.run_plan import RunPlan
from tasks.progress import say

_ends: dict[str, asyncio.Future[State[Any]]] = {}


@task(task_run_name="{what}", cache_policy=NO_CACHE)
async def watched(what: str, key: str) -> Any:
    """Ends when the event that ends it arrives, in the state that the event means."""
    return await _ends[key]


async def _watch(title: str, key: str) -> None:
    await cast("Awaitable[Any]", watched(title, key, return_state=True))


class LiveView:
    """Turns the events of one server run into task runs and progress."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.n_cells = len(plan.cells())
        self.n_done = len(plan.measured)
        self.running: dict[str, tuple[str, asyncio.Task[Any]]] = {}
        self.n_started = 0
        self.log = get_run_logger()

    async def on_event(self, event: dict[str, Any]) -> None:
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
            self.log.info("%s %s%d: %.1f tokens/s", cell["model"], cell["task"], cell["n_tokens"], speed)

    def _on_Decision(self, event: dict[str, Any]) -> None:
        if event.get("action") == "resolve":
            self.n_done += 1
            share = self.n_done / max(self.n_cells, 1)
            say(self.plan.server, f"{event['subject']}: {event['reason']}", min(share, 0.99))
        elif event.get("action") in ("run_cell", "download"):
            say(self.plan.server, f"{event['action'].replace('_cell', '')} {event['subject']}")

    def _begin(self, name: str, title: str) -> None:
        self.n_started += 1
        key = f"{self.plan.server_run_id}/{self.n_started}"
        _ends[key] = asyncio.get_running_loop().create_future()
        self.running[name] = (key, asyncio.create_task(_watch(title, key)))

    def _end(self, name: str, state: State[Any]) -> None:
        key = self.running.get(name, ("", None))[0]
        future = _ends.get(key)
        if future is not None and not future.done():
            future.set_result(state)

    async def close(self) -> None:
        """End what is still open (a lost server, a cancel) and wait until every task run has its final state."""
        for name in list(self.running):
            self._end(name, Failed(message="ended with its server"))
        await asyncio.gather(*(t for _, t in self.running.values()), return_exceptions=True)
        for key, _ in self.running.values():
            _ends.pop(key, None)
