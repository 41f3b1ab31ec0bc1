"""Faults that only the whole product can meet, on the simulated cloud."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.clouds.sim import SimCloud
from tasks.settings import Settings
from tasks.wiring import open_services
from tests.e2e.product import Product

pytestmark = pytest.mark.timeout(600)
PRESET: dict[str, Any] = {
    "vendor": "sim",
    "servers": ["*:2"],
    "models": ["smollm-135m"],
    "weights": "simulated",
    "pp": [16],
    "tg": [16],
    "max_usd": 2.0,
    "max_usd_per_server": 0.5,
    "deadline_s": 3600,
    "vendor_options": {"seed": 4, "speedup": 120},
}


def test_a_lake_that_cannot_be_written_does_not_keep_a_server(tmp_path: Path) -> None:
    """In the middle of the sweep the folder of the lake becomes something that nobody can write into."""
    product = Product(tmp_path / "home", tmp_path / "cache")
    preset, lake = tmp_path / "two.yaml", product.home / "lake"
    preset.write_text(yaml.safe_dump(PRESET))
    running = product.start("run", "--yes", str(preset))
    running.wait_for(": connect")
    shutil.rmtree(lake, ignore_errors=True)
    lake.write_text("no folder")
    done = running.end()
    assert done.rc != 0, str(done)
    assert product.run("reap").rc == 0
    cloud = open_services(Settings(home=product.home)).cloud("sim")
    assert isinstance(cloud, SimCloud)
    assert [thing for thing in cloud.existing() if thing.ours] == []
    assert cloud.bill().usd_per_hour == 0 and product.run("leaks").rc == 0


def test_a_ledger_that_is_replaced_in_the_middle_does_not_keep_a_server(tmp_path: Path) -> None:
    """By an older copy, say. The sweep ends its own server: to a reaper it is in use while the sweep lives, and so
    until its deadline."""
    product = Product(tmp_path / "home", tmp_path / "cache")
    preset = tmp_path / "one.yaml"
    preset.write_text(yaml.safe_dump(PRESET | {"servers": ["*:1"], "vendor_options": {"seed": 4, "speedup": 30}}))
    running = product.start("run", "--yes", str(preset))
    running.wait_for(": connect")
    with closing(sqlite3.connect(product.home / "ledger.sqlite", timeout=60)) as ledger, ledger:
        assert ledger.execute("DELETE FROM resources").rowcount > 0
    done = running.end()
    cloud = open_services(Settings(home=product.home)).cloud("sim")
    assert isinstance(cloud, SimCloud)
    lived_s = [thing.ends_unix_s - thing.created_unix_s for thing in cloud.state.all_things() if thing.kind == "server"]
    assert lived_s and max(lived_s) < PRESET["deadline_s"], str(done)
