"""Prefect shows and starts sweeps; it is not needed to measure, to tear down or to land."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.e2e.product import SERVER, Product
from tests.local_servers import processes_with


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


def prefect_servers(home: Path) -> list[int]:
    found = [trace for trace in processes_with(str(home)) if "\0server\0start\0" in trace]
    assert found, "the command has brought no Prefect server"
    return [int(trace.split(" ")[0]) for trace in found]
