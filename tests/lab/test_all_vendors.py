"""All five vendors' SDKs at once against their emulators, on real micro-VMs, with faults; `make lab` does more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tasks.clouds.local import microvm
from tests.e2e.product import CHECKOUT, Product

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]


def test_five_vendors_in_one_sweep_and_nothing_is_left(product: Product) -> None:
    """`product` only makes sure that runtime and model are there: the lab has a home and a network of its own."""
    if why_not := microvm.why_not():
        pytest.skip(f"micro-VMs cannot be made here: {why_not}")
    done = subprocess.run(
        [sys.executable, "-u", "-m", "tests.lab.all_vendors", "wide"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    for vendor in ("aws", "azure", "gcp", "hetzner", "upcloud"):
        assert f"proof: {vendor} " in done.stdout
