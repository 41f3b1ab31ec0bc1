"""A controller that can be killed at every point where it touches a cloud or the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from tasks.clouds.base import CreateSpec
from tasks.clouds.lifecycle import Draft, ServerRequest, create_server, request_delete
from tasks.ledger import Ledger, RunState
from tests.memory_cloud import MemoryCloud


class HookedLedger(Ledger):
    """Calls `on_write` before and after every commit."""

    on_write: Callable[[str], None] = staticmethod(lambda point: None)
    controller_tag = ""

    @property
    def controller(self) -> str:
        return self.controller_tag or super().controller

    @contextmanager
    def _transaction(self, *, write: bool = True) -> Iterator[sa.Connection]:
        if write:
            self.on_write("commit before")
        with super()._transaction(write=write) as conn:
            yield conn
        if write:
            self.on_write("commit after")


def run_server(
    cloud: MemoryCloud,
    ledger: HookedLedger,
    make_spec: Callable[[Draft], CreateSpec],
    request: ServerRequest,
    *,
    now: Callable[[], float],
    sleep: Callable[[float], None],
    at_point: Callable[[str], Any],
) -> None:
    """One whole server run, as a flow does it; at_point is called around every cloud call and every commit."""
    cloud.on_call = at_point
    ledger.on_write = at_point  # type: ignore[method-assign]
    try:
        ledger.begin_run(request.server_run_id, sweep_id=request.sweep_id, server="small", vendor=cloud.vendor)
        live = create_server(cloud, ledger, make_spec, request, now=now, sleep=sleep)
        request_delete(cloud, ledger, live.row)
        ledger.end_run(request.server_run_id, RunState.LANDED)
    finally:
        cloud.on_call = lambda point: None
        ledger.on_write = lambda point: None  # type: ignore[method-assign]
