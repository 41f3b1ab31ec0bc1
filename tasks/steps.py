"""Steps of a server run as task runs: bars in the timeline of the Prefect UI.

A bar only shows work; it never does it. What costs money (a create, a delete, a measurement) must not wait for
Prefect's API, and must go on when that API is gone: teardown above all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

SETTLE_S = 10.0

_ends: dict[int, asyncio.Future[State[Any]]] = {}
_numbers = count(1)


@task(task_run_name="{what}", cache_policy=NO_CACHE)
async def step(what: str, number: int) -> Any:
    """Ends when the work that it shows ends, in the state that fits."""
    state = await _ends[number]
    # Work can end before Prefect has its task running. The server keeps the state with the latest time, so that an
    # end dated before the beginning would show as running for ever.
    return state.fresh_copy()


class QuietBar:
    """A step that nobody is shown."""

    def end(self, state: State[Any]) -> None:
        """The step is over, in the state that fits."""


class Bar(QuietBar):
    """One task run, begun now. It ends once; ends after the first are ignored."""

    def __init__(self, what: str) -> None:
        self._number = next(_numbers)
        self._end = _ends[self._number] = asyncio.get_running_loop().create_future()
        self._shown = asyncio.create_task(self._show(what))

    async def _show(self, what: str) -> None:
        try:
            await cast("Awaitable[Any]", step(what, self._number, return_state=True))
        finally:
            _ends.pop(self._number, None)

    def end(self, state: State[Any]) -> None:
        if not self._end.done():
            self._end.set_result(state)

    @property
    def shown(self) -> asyncio.Task[None]:
        return self._shown


class Timeline:
    """The bars of one server run; none where `shown` is false."""

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._bars: list[Bar] = []

    def begin(self, what: str) -> QuietBar:
        if not self._shown:
            return QuietBar()
        bar = Bar(what)
        self._bars.append(bar)
        return bar

    @asynccontextmanager
    async def bar(self, what: str) -> AsyncIterator[None]:
        """A bar for the block; it fails with what the block raises."""
        shown = self.begin(what)
        try:
            yield
        except BaseException as exc:
            shown.end(Failed(message=str(exc) or type(exc).__name__))
            raise
        shown.end(Completed())

    async def settle(self) -> None:
        """End what is still open and give Prefect a moment to store it; never raises, never waits for long."""
        for bar in self._bars:
            bar.end(Failed(message="ended with its server run"))
        if self._bars:
            _, late = await asyncio.wait([bar.shown for bar in self._bars], timeout=SETTLE_S)
            for shown in late:
                shown.cancel()
            await asyncio.gather(*(bar.shown for bar in self._bars), return_exceptions=True)
