"""Blocking work (SDKs, paramiko, the lake) beside the event loop, without losing it when the loop is cancelled."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

# Each server run in flight keeps one thread in its event tail; the others come and go.
MAX_THREADS = 128
GRACE_S = 20.0

_executor = ThreadPoolExecutor(max_workers=MAX_THREADS, thread_name_prefix="tokensweep")


async def in_thread(work: Callable[..., T], /, *args: Any, on_cancel: Callable[[], object] | None = None) -> T:
    """Run `work` in a thread and return what it returns.

    A thread cannot be stopped. When the caller is cancelled, `on_cancel` is called to tell the work to end, and it
    gets up to GRACE_S to do so before the cancellation goes on, however often it is repeated: a create that is under
    way must not be lost sight of.
    """
    context = contextvars.copy_context()
    future = asyncio.get_running_loop().run_in_executor(_executor, partial(context.run, work, *args))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if on_cancel is not None:
            on_cancel()
        end_s = time.monotonic() + GRACE_S
        while not future.done() and (left_s := end_s - time.monotonic()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future], timeout=left_s)
        if future.done() and not future.cancelled():
            future.exception()  # taken note of; the cancellation is what the caller hears
        raise


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` without letting a cancellation of the caller cut it short; the cancellation is raised after it."""
    running = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        if not running.cancelled():
            running.exception()
        raise cancelled
    return running.result()
