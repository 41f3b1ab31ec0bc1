"""What a sweep is compared with: gated async subflows of Prefect that only sleep. Arguments: how many, how many at
once, through a gate of how many, for how many seconds."""

from __future__ import annotations

import asyncio
import sys

from prefect import flow
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

NAME = "plain"


@flow(name=NAME)
async def plain(number: int, gate_number: int, sleep_s: float) -> int:
    gates[gate_number].release()
    await asyncio.sleep(sleep_s)
    return number


gates: list[asyncio.Semaphore] = []


@flow(name="plain-parent")
async def parent(n: int, at_once: int, starts_at_once: int, sleep_s: float) -> int:
    gate, places = asyncio.Semaphore(starts_at_once), asyncio.Semaphore(at_once)
    gates[:] = [gate]

    async def one(number: int) -> int:
        async with places:
            await gate.acquire()
            return await plain(number, 0, sleep_s)

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        return len(await asyncio.gather(*(one(number) for number in range(n))))


if __name__ == "__main__":
    asyncio.run(parent(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
