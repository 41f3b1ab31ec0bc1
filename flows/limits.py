"""Limits that all workers share: servers alive at once and creates a second, per vendor, as Prefect's global limits.

`tokensweep limits` makes them with the defaults below; change them in the UI (Concurrency) at any time, also while a
sweep runs. A limit that does not exist limits nothing, so small sweeps pay one call and no more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.asyncio import concurrency, rate_limit
from prefect.exceptions import ObjectNotFound

logger = logging.getLogger(__name__)

LEASE_S = 600.0
ASK_S = 15.0


@dataclass(frozen=True)
class VendorLimits:
    """alive: servers of ours at once. creates_per_s: how fast they may be asked for; `burst`: as many at once."""

    alive: int
    creates_per_s: float
    burst: int


DEFAULTS: Mapping[str, VendorLimits] = {
    # RunInstances: a bucket of its own that refills at 2 a second, one call a server; the first vCPU quota binds.
    "aws": VendorLimits(alive=200, creates_per_s=2.0, burst=50),
    # ARM writes: 10 a second per subscription and region; of the 66 calls of a run five are writes, and one a delete.
    "azure": VendorLimits(alive=200, creates_per_s=1.5, burst=20),
    # 1,500 a minute for the default group, of which a server run takes 43.
    "gcp": VendorLimits(alive=200, creates_per_s=2.0, burst=50),
    # 3,600 an hour and project; a server run takes 19 calls, and one more for each poll while it boots longer.
    "hetzner": VendorLimits(alive=25, creates_per_s=0.03, burst=10),
    # No figure is published: gentle.
    "upcloud": VendorLimits(alive=20, creates_per_s=0.2, burst=5),
}
"""From the vendors' published API limits (docs/vendors/), and the calls that one server run takes at the emulators
(`python -m tests.benchmarks.vendor_calls`)."""


def alive_name(vendor: str) -> str:
    return f"tokensweep-{vendor}-alive"


def creates_name(vendor: str) -> str:
    return f"tokensweep-{vendor}-creates"


async def apply(limits: Mapping[str, VendorLimits] = DEFAULTS) -> dict[str, str]:
    """Make what is missing; what is there is left as somebody may have set it. Says which was which."""
    done: dict[str, str] = {}
    async with get_client() as client:
        for vendor, own in limits.items():
            wanted = (
                GlobalConcurrencyLimitCreate(name=alive_name(vendor), limit=own.alive),
                GlobalConcurrencyLimitCreate(
                    name=creates_name(vendor), limit=own.burst, slot_decay_per_second=own.creates_per_s
                ),
            )
            for limit in wanted:
                try:
                    there = await client.read_global_concurrency_limit_by_name(limit.name)
                    done[limit.name] = f"left at {there.limit}"
                except ObjectNotFound:
                    await client.create_global_concurrency_limit(limit)
                    done[limit.name] = f"made: {limit.limit}"
    return done


async def existing(vendors: Collection[str]) -> frozenset[str]:
    """Names of the limits that there are for these vendors; none where Prefect does not answer soon."""
    names = {name for vendor in vendors for name in (alive_name(vendor), creates_name(vendor))}
    try:
        async with asyncio.timeout(ASK_S), get_client() as client:
            found = await client.read_global_concurrency_limits(limit=200, offset=0)
    except Exception as exc:
        logger.warning("whether there are limits cannot be asked: %s: %s", type(exc).__name__, exc)
        return frozenset()
    return frozenset(limit.name for limit in found if limit.name in names)


@asynccontextmanager
async def vendor_slot(vendor: str, limits: Collection[str]) -> AsyncIterator[None]:
    """Wait until the vendor may have one more server of ours, and may be asked for it. limits: those that exist.

    Where Prefect no longer answers, the server run goes on: a vendor's own throttling is waited out all the same. A
    slot that cannot be given back then comes free when its lease ends.
    """
    held = AsyncExitStack()
    try:
        try:
            if alive_name(vendor) in limits:
                slot = concurrency(alive_name(vendor), lease_duration=LEASE_S, raise_on_lease_renewal_failure=False)
                await held.enter_async_context(slot)
            if creates_name(vendor) in limits:
                await rate_limit(creates_name(vendor))
        except Exception as exc:
            logger.warning("%s: its limits cannot be asked: %s: %s", vendor, type(exc).__name__, exc)
        yield
    finally:
        try:
            await held.aclose()
        except Exception as exc:
            logger.warning("%s: its slot could not be given back: %s: %s", vendor, type(exc).__name__, exc)
