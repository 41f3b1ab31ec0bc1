"""Limits per vendor on a real Prefect server: made once, left as people set them, and waited for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.product import CHECKOUT, Product
from tests.flows.lossy_api import LossyApi
from tests.flows.prefect_rest import Prefect

HOLD = """
import asyncio
from flows.limits import existing, vendor_slot

async def one(alive, limits):
    async with vendor_slot("hetzner", limits):
        alive.add(asyncio.current_task())
        most = len(alive)
        await asyncio.sleep(0.5)
        alive.discard(asyncio.current_task())
        return most

async def main():
    alive, limits = set(), await existing(["hetzner"])
    print(max(await asyncio.gather(*(one(alive, limits) for _ in range(5)))))

asyncio.run(main())
"""

HOLD_WHILE_IT_GOES = """
import asyncio, sys
from flows.limits import existing, vendor_slot

async def main():
    limits = await existing(["upcloud"])
    async with vendor_slot("upcloud", limits):
        print("held", len(limits), flush=True)
        sys.stdin.readline()
    print("went on")

asyncio.run(main())
"""


@pytest.fixture
def prefect(prefect_url: str) -> Iterator[Prefect]:
    asked = Prefect(prefect_url)
    yield asked
    asked.close()


def hold(product: Product, **changes: str) -> str:
    """How many of five server runs were let through at once."""
    done = subprocess.run(
        [sys.executable, "-c", HOLD],
        env=product.env() | changes,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_limits_are_made_once_stay_as_they_are_set_and_hold(product: Product, prefect: Prefect) -> None:
    first = product.run("limits", "--json")
    assert first.rc == 0 and first.json()["tokensweep-hetzner-alive"] == "made: 25", str(first)
    prefect.patch("/v2/concurrency_limits/tokensweep-hetzner-alive", {"limit": 2})
    again = product.run("limits", "--json").json()
    assert again["tokensweep-hetzner-alive"] == "left at 2"
    assert hold(product) == "2"


def test_without_prefect_nothing_waits(product: Product) -> None:
    product.environment.pop("PREFECT_API_URL")
    refused = product.run("limits")
    assert refused.rc == 2 and "PREFECT_API_URL" in refused.err
    assert hold(product, PREFECT_API_URL="http://127.0.0.1:9/api") == "5"


def test_a_slot_that_cannot_be_given_back_ends_nothing(product: Product, prefect: Prefect, prefect_url: str) -> None:
    """Else one server run that has ended well would take all the others of its sweep with it."""
    assert product.run("limits").rc == 0
    api = LossyApi(int(prefect_url.split(":")[2].split("/")[0]))
    changes = {"PREFECT_API_URL": api.url, "PREFECT_CLIENT_MAX_RETRIES": "0"}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_WHILE_IT_GOES],
        env=product.env() | changes,
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held 2\n"
        api.away()
        out, err = holder.communicate("\n", timeout=240)
    finally:
        holder.kill()
        api.close()
    assert (holder.returncode, out) == (0, "went on\n"), err
    assert "could not be given back" in err
