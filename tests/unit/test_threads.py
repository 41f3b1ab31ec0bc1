"""Blocking work beside the loop: a cancellation neither loses it nor cuts it short."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tasks.threads import in_thread, to_its_end


async def test_a_cancelled_caller_tells_the_work_and_waits_for_it():
    started, told, ended = threading.Event(), threading.Event(), threading.Event()

    def work():
        started.set()
        assert told.wait(10)
        ended.set()

    caller = asyncio.create_task(in_thread(work, on_cancel=told.set))
    await asyncio.to_thread(started.wait, 10)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()


async def test_a_caller_that_is_cancelled_again_still_waits_for_the_work():
    """An impatient second Ctrl-C while a create is in flight: torn down would be what is not known yet."""
    started, told, release, ended = (threading.Event() for _ in range(4))

    def work():
        started.set()
        assert release.wait(10)
        ended.set()

    caller = asyncio.create_task(in_thread(work, on_cancel=told.set))
    await asyncio.to_thread(started.wait, 10)
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0.02)
    assert told.is_set() and not caller.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()


async def test_errors_of_the_work_reach_the_caller():
    def work():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await in_thread(work)


async def test_what_must_end_ends_although_its_caller_is_cancelled_twice():
    release = asyncio.Event()
    done = []

    async def must_end():
        await release.wait()
        done.append(True)

    caller = asyncio.create_task(to_its_end(must_end()))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done == [True]


async def test_to_its_end_returns_and_raises_what_the_work_does():
    async def gives():
        return 7

    async def fails():
        raise KeyError("x")

    assert await to_its_end(gives()) == 7
    with pytest.raises(KeyError):
        await to_its_end(fails())
