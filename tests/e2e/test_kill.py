"""`kill -9` of the controller, at every step and at any moment: `reap` leaves nothing, and the sweep takes up again."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

import pytest

from tests.e2e.product import SERVER, Product

LADDER: dict[str, Any] = {"pp": [16, 128, 512], "tg": [16, 128]}
N_CELLS = 5
STEPS = ["reap", "create", "connect", "download tiny-15m", "run tiny-15m pp16", "tear down", "land", "prove"]


def killed_at(product: Product, preset: str, step: str, *arguments: str) -> None:
    running = product.start("run", "--yes", preset, *arguments)
    running.wait_for(f": {step}")
    running.kill()
    running.end()


def reap(product: Product) -> list[dict[str, Any]]:
    """What it recovered. Nothing may be left when it has passed."""
    done = product.run("reap", "--json")
    assert done.rc == 0, str(done)
    report = done.json()
    assert report["errors"] == [] and report["waiting"] == [] and report["braked"] == []
    product.assert_nothing_is_left()
    recovered: list[dict[str, Any]] = report["recovered"]
    return recovered


@pytest.mark.parametrize("step", STEPS)
def test_after_a_kill_at_any_step_the_reaper_leaves_nothing(product: Product, step: str) -> None:
    killed_at(product, product.preset(**LADDER), step)
    reap(product)
    assert product.run("reap").out.splitlines()[-1] == "Nothing to do."


def test_what_was_measured_before_the_kill_is_not_measured_again(product: Product) -> None:
    preset = product.preset(**LADDER)
    killed_at(product, preset, "run tiny-15m pp512")
    (recovered,) = reap(product)
    assert recovered["landed"]
    before = product.samples()
    assert {key[2:] for key in before} >= {("pp", 16), ("pp", 128)}
    ended = product.cells()
    assert len(ended) == N_CELLS, "what was not reached has its outcome too"
    assert {reason for outcome, reason in ended.values() if outcome != "measured"} <= {"server_lost"}

    done = product.run("run", "--yes", preset)
    assert done.rc == 0, str(done)
    assert {outcome for outcome, _ in product.cells().values()} == {"measured"}
    after = product.samples()
    assert len(after) == N_CELLS
    assert {key: after[key] for key in before} == before
    first, second = product.query("SELECT server_run_id, n_resumed FROM server_runs ORDER BY started_at")
    assert (first["n_resumed"], second["n_resumed"]) == (0, len(before))
    sql = f"SELECT subject FROM decisions WHERE action = 'run_cell' AND server_run_id = '{second['server_run_id']}'"
    benched = {row["subject"] for row in product.query(sql)}
    assert benched and not benched & {f"{model} {task}{n}" for _, model, task, n in before}
    product.assert_nothing_is_left()
    assert product.run("run", "--yes", preset).rc == 3


def test_a_sweep_that_is_killed_again_and_again_completes(product: Product) -> None:
    """Without a reaper in between: each start ends what the one before has left."""
    preset = product.preset(**LADDER)
    for _ in range(3):
        running = product.start("run", "--yes", preset)
        running.wait_for("sweep: plan")
        time.sleep(random.uniform(0.0, 4.0))
        running.kill()
        running.end()
    done = product.run("run", "--yes", preset)
    assert done.rc in (0, 3), str(done)
    cells = product.cells()
    assert len(cells) == N_CELLS and {outcome for outcome, _ in cells.values()} == {"measured"}
    assert {key[0] for key in cells} == {SERVER}
    product.assert_nothing_is_left()


def test_a_kill_takes_the_prefect_server_of_the_command_with_it(bare: Product) -> None:
    preset = bare.preset()
    running = bare.start("run", "--yes", preset)
    running.wait_for(": connect")
    running.signal(signal.SIGKILL)
    running.end()
    reap(bare)
