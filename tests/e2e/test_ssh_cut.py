"""The SSH connection is gone for 20 s in the middle of the benchmarks: no row is lost, nothing is measured twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks.clouds.local import microvm, network, processes
from tests.e2e.product import SERVER, Product, Running

CUT_S = 20.0
LADDER: dict[str, Any] = {"pp": [16, 128, 512], "tg": [16, 128, 512]}
N_CELLS = 6


@contextmanager
def link_down(product: Product) -> Iterator[None]:
    """Pull the cable of the micro-VM."""
    (veth,) = (i.name for i in network.interfaces(product.tag) if not i.is_bridge)
    subprocess.run(["ip", "link", "set", veth, "down"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "link", "set", veth, "up"], check=True)


@contextmanager
def sshd_killed(product: Product) -> Iterator[None]:
    """Kill the processes that hold the server's connections, and freeze the one that would accept new ones."""
    found = processes.find(product.tag)
    children = {p.pid: parent_of(p.pid) for p in found}
    init = next(pid for pid, parent in children.items() if parent not in children)
    os.kill(init, signal.SIGSTOP)
    try:
        for process in found:
            if process.command.startswith("sshd") or "ssh_server.py" in command_line(process.pid):
                os.kill(process.pid, signal.SIGKILL)
        yield
    finally:
        os.kill(init, signal.SIGCONT)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


CUTS: dict[str, Callable[[Product], Any]] = {"microvm": link_down, "loopback": sshd_killed}


@pytest.mark.lab
def test_no_row_is_lost_when_ssh_is_cut_for_20_s(product: Product, tmp_path: Path) -> None:
    """On both kinds of servers at once, so that the wait is waited once."""
    if why_not := microvm.why_not():
        pytest.skip(f"a cable to pull takes a micro-VM: {why_not}")
    homes = {"microvm": product, "loopback": Product(tmp_path / "loopback", product.cache, dict(product.environment))}
    running: dict[str, Running] = {}
    for isolation, home in homes.items():
        home.environment["TOKENSWEEP_LOCAL_ISOLATION"] = isolation
        running[isolation] = home.start("run", "--yes", "-v", home.preset(isolation, **LADDER))
    with ExitStack() as cut:
        for isolation, home in homes.items():
            running[isolation].wait_for(": run tiny-15m pp16")
            cut.enter_context(CUTS[isolation](home))
        time.sleep(CUT_S)
    for isolation, home in homes.items():
        done = running[isolation].end()
        assert done.rc == 0, str(done)
        assert_whole(home)
        home.assert_nothing_is_left()
    assert "connection lost" in running["loopback"].err


def assert_whole(product: Product) -> None:
    """Every cell once and measured, with the samples of llama-bench's own row."""
    cells = product.cells()
    assert len(cells) == N_CELLS and {outcome for outcome, _ in cells.values()} == {"measured"}
    (run,) = product.query("SELECT n_events_missing, n_events_unreadable, n_measured FROM server_runs")
    assert run == {"n_events_missing": 0, "n_events_unreadable": 0, "n_measured": N_CELLS}
    rows = product.query("SELECT server, model, task, n_tokens, detail, bench_row_json FROM cells")
    samples = product.samples()
    for row in rows:
        seconds = samples[SERVER, row["model"], row["task"], row["n_tokens"]]
        if row["bench_row_json"] is None:  # stopped once its interval was narrow enough: llama-bench gives no row then
            assert "ci_half_width_ratio" in row["detail"] and len(seconds) >= 3
        else:
            assert [round(s * 1e9) for s in seconds] == json.loads(row["bench_row_json"])["samples_ns"]
