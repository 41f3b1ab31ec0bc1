"""Prefect shows and starts sweeps; it is not needed to measure, to tear down or to land."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from flows.inline import STARTS_AT_ONCE
from tests.e2e.product import SERVER, Product
from tests.local_servers import processes_with

N_SERVERS = 10


def test_a_sweep_outlives_its_prefect_server(bare: Product) -> None:
    bare.environment["PREFECT_CLIENT_MAX_RETRIES"] = "0"  # it would wait half a minute per question before it goes on
    running = bare.start("run", "--yes", bare.preset(servers=[SERVER, "cpu1-mem256m-400mbit"]))
    running.wait_for(": connect")
    for pid in prefect_servers(bare.home):
        os.kill(pid, signal.SIGKILL)
    done = running.end()
    assert "Prefect's API has gone" in done.err
    assert done.rc == 0 and "Traceback" not in done.err and "4 of 4 cells measured" in done.out, str(done)
    cells = bare.cells()
    assert len(cells) == 4 and {outcome for outcome, _ in cells.values()} == {"measured"}
    bare.assert_nothing_is_left()


def test_every_server_is_started_without_it(tmp_path: Path) -> None:
    """Each that starts holds one of a few places until its subflow begins, which none does any more."""
    product = Product(tmp_path / "home", tmp_path / "cache", {"PREFECT_CLIENT_MAX_RETRIES": "0"})
    preset = product.preset(
        vendor="sim",
        servers=[f"*:{N_SERVERS}"],
        models=["smollm-135m"],
        weights="simulated",
        max_usd=20.0,
        max_usd_per_server=1.0,
        max_parallel=2,
        vendor_options={"seed": 1, "speedup": 100.0, "faults": 0.0},
    )
    assert N_SERVERS > 2 + STARTS_AT_ONCE
    running = product.start("run", "--yes", preset)
    running.wait_for(": connect")
    for pid in prefect_servers(product.home):
        os.kill(pid, signal.SIGKILL)
    done = running.end()
    assert done.rc == 0 and f"{2 * N_SERVERS} of {2 * N_SERVERS} cells measured" in done.out, str(done)
    assert len(product.cells()) == 2 * N_SERVERS and product.run("leaks").rc == 0


def prefect_servers(home: Path) -> list[int]:
    found = [trace for trace in processes_with(str(home)) if "\0server\0start\0" in trace]
    assert found, "the command has brought no Prefect server"
    return [int(trace.split(" ")[0]) for trace in found]
