"""Prefect's process worker, with an end that its flow runs have a part in."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from abc import ABC
from contextlib import suppress
from typing import Any

from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus
from prefect.client.schemas.objects import FlowRun
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

POLL_S = 0.2
REPORT_S = 20.0


class EndingWorker(ProcessWorker, ABC):
    """A process worker with a limit. ABC: so that Prefect does not take it for a second type `process`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ending = False
        self._processes: set[int] = set()

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        return [] if self._ending else await super().get_and_submit_flow_runs()

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        noting = _Noting(self._processes, task_status or TASK_STATUS_IGNORED)
        try:
            return await super().run(flow_run, configuration, noting)
        finally:
            self._processes.discard(noting.pid)

    async def end_flow_runs(self) -> None:
        """Take nothing on any more, tell each flow run to end, and wait until all have and Prefect knows how; for that
        not longer than REPORT_S, since its API may have ended before us."""
        self._ending = True
        told: set[int] = set()
        worked_s = time.monotonic()
        while self.limiter.borrowed_tokens and time.monotonic() < worked_s + REPORT_S:
            for pid in self._processes - told:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            told = set(self._processes)
            if any(_lives(pid) for pid in told):
                worked_s = time.monotonic()
            await asyncio.sleep(POLL_S)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class _Noting(TaskStatus[int]):
    """Passes on which process a flow run has been given, and keeps it."""

    def __init__(self, processes: set[int], to: TaskStatus[int]) -> None:
        self.pid = -1
        self._processes, self._to = processes, to

    def started(self, value: int | None = None) -> None:
        if value is not None:
            self.pid = value
            self._processes.add(value)
            self._to.started(value)
