"""SIGTERM, SIGINT and output that nobody reads any more end a sweep by cancelling its task, as asyncio means it.

Prefect's own handler raises in the main thread, wherever that is just then: in a task that only draws a bar the
exception is stored with that task, nobody hears of it, and the sweep goes on. Every flow that begins installs that
handler again, so ours is put back on the first lines of both flows.

Output is read by nobody when the worker that a shard belongs to was killed, or a pipe was closed. rich, through which
Prefect logs, then raises SystemExit wherever a line was just being logged: asyncio leaves its loop in the middle of one
server run, and cancels the others without waiting for what they had begun.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from uuid import UUID

from prefect.client.schemas.objects import StateType
from rich.console import Console

ASK_PREFECT_S = 5.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_root: asyncio.Task[object] | None = None
_came: signal.Signals | None = None


@contextmanager
def stops_on_signals() -> Iterator[None]:
    """While the block runs, a signal cancels the outermost task that entered such a block. Does nothing outside the
    main thread."""
    global _root
    outermost = _root is None
    if outermost:
        _root = asyncio.current_task()
        for console in _log_consoles():
            console.on_broken_pipe = partial(_unread, console)  # type: ignore[method-assign]
    loop = asyncio.get_running_loop()

    def told(number: int, _frame: object) -> None:
        loop.call_soon_threadsafe(_stop, signal.Signals(number))

    # Not by loop.add_signal_handler: a signal is then one byte in the socket by which threads wake the loop. It has
    # room for some 280, and what forty servers report at once fills it: the signal is lost.
    with suppress(ValueError):
        for number in _SIGNALS:
            signal.signal(number, told)
    try:
        yield
    finally:
        if outermost:
            _root = None
            with suppress(ValueError):
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)


def exit_code() -> int:
    """128 plus the signal that came, as a shell reports it; 130 when none did."""
    return 128 + (_came or signal.SIGINT)


def _stop(number: signal.Signals) -> None:
    global _came
    if _came is not None:
        with suppress(OSError):
            sys.stderr.write("deleting servers, please wait; after kill -9, `tokensweep reap` does it\n")
    _came = number
    if _root is not None:
        _root.cancel()


def _log_consoles() -> set[Console]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {h for logger in loggers if isinstance(logger, logging.Logger) for h in logger.handlers}
    return {console for h in handlers if isinstance(console := getattr(h, "console", None), Console)}


def _unread(console: Console) -> None:
    console.quiet = True
    if _came is None:
        os.kill(os.getpid(), signal.SIGTERM)


async def was_cancelled_in_prefect() -> bool:
    """Whether somebody cancelled this flow run in the UI or by the API, which then sends us SIGTERM.

    Our handler stands where Prefect's stood, so Prefect would take the end of the flow for a crash. True also takes
    the cancellation off the task, so that the flow can return its state.
    """
    from prefect import get_client
    from prefect.runtime import flow_run

    task = asyncio.current_task()
    if task is None or not flow_run.id:
        return False
    while task.uncancel():
        pass
    try:
        async with asyncio.timeout(ASK_PREFECT_S), get_client() as client:
            found = await client.read_flow_run(UUID(flow_run.id))
    except Exception:
        return False  # without an API there is nobody who could have cancelled there
    return found.state is not None and found.state.type == StateType.CANCELLING
