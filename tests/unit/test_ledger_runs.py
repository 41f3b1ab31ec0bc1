"""Server runs, and whether the process that owns one still lives."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tasks.domain.lifecycle import LedgerError
from tasks.domain.reaping import Liveness
from tasks.ledger import Ledger, RunState, liveness, this_process
from tasks.ledger.controller import parse
from tasks.ledger.server_runs import BEGINS_WITHIN_S

FORK = multiprocessing.get_context("fork")
BEGIN = """
import sys, time
from tasks.ledger import Ledger
ledger = Ledger(sys.argv[1])
ledger.begin_run(sys.argv[2], sweep_id="sweep", server="small", vendor="v", spool_path="/spool")
print("begun", flush=True)
time.sleep(60)
"""


def opened(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")


def elsewhere(tmp_path: Path, run: str) -> subprocess.Popen[str]:
    """A real process that has begun the run and holds it."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, f"sqlite:///{tmp_path}/ledger.sqlite", run],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_a_living_controllers_run_is_its_own_and_a_killed_ones_is_taken_over(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    process = elsewhere(tmp_path, "run")
    with process:
        try:
            assert ledger.abandoned_runs() == ()
            with pytest.raises(LedgerError, match=str(process.pid)):
                ledger.begin_run("run", sweep_id="sweep", server="small", vendor="v")
        finally:
            process.kill()
        process.wait()
    (run,) = ledger.abandoned_runs("sweep")
    assert (run.server_run_id, run.pid, run.spool_path) == ("run", process.pid, "/spool")
    assert ledger.abandoned_runs("other") == ()
    taken = ledger.begin_run("run", sweep_id="sweep", server="small", vendor="v")
    assert taken.pid == os.getpid()
    assert ledger.abandoned_runs() == ()


def test_runs_end_and_a_landed_one_stays_landed(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.begin_run("a", sweep_id="s", server="small", vendor="v")
    ledger.begin_run("a", sweep_id="s", server="small", vendor="v")
    assert ledger.end_run("a", RunState.INTERRUPTED).state is RunState.INTERRUPTED
    assert ledger.begin_run("a", sweep_id="s", server="small", vendor="v").state is RunState.RUNNING
    assert ledger.ended_runs() == frozenset()
    ledger.end_run("a", RunState.LANDED)
    assert ledger.end_run("a", RunState.INTERRUPTED).state is RunState.LANDED
    assert ledger.ended_runs() == {"a"}
    with pytest.raises(LedgerError, match="landed"):
        ledger.begin_run("a", sweep_id="s", server="small", vendor="v")
    with pytest.raises(LedgerError, match="no server run"):
        ledger.end_run("b", RunState.LANDED)
    assert [run.server_run_id for run in ledger.server_runs("s")] == ["a"]
    assert ledger.server_run("b") is None


def test_this_process_lives() -> None:
    here = this_process()
    assert parse(here.tag()) == here
    assert len(here.tag()) <= 63
    assert set(here.tag()) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert liveness(here.tag()) is Liveness.ALIVE


def test_a_forked_child_is_another_controller() -> None:
    there, here = FORK.Pipe()
    process = FORK.Process(target=lambda: here.send(this_process().tag()))
    process.start()
    assert there.recv() != this_process().tag()
    process.join()


def test_a_killed_process_is_dead_as_a_zombie_and_after() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    ticks = int(stat[stat.rindex(")") + 2 :].split()[19])
    tag = replace(this_process(), pid=process.pid, start_ticks=ticks).tag()
    assert liveness(tag) is Liveness.ALIVE
    process.kill()
    deadline_s = time.monotonic() + 10
    while "Z" not in Path(f"/proc/{process.pid}/stat").read_text().split()[2] and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert liveness(tag) is Liveness.DEAD
    process.wait()
    assert liveness(tag) is Liveness.DEAD


def test_a_process_id_that_is_used_again_is_another_process() -> None:
    here = this_process()
    assert liveness(replace(here, start_ticks=here.start_ticks - 1).tag()) is Liveness.DEAD


def test_what_cannot_be_seen_from_here_is_unknown() -> None:
    here = this_process()
    another_host = replace(here, machine="a" * 12, boot="b" * 12, pid=1, start_ticks=1)
    another_container = replace(here, pid_namespace=here.pid_namespace + 1, start_ticks=1)
    no_boot_id = replace(here, boot="0", start_ticks=1)
    for tag in (another_host.tag(), another_container.tag(), no_boot_id.tag(), "", "nonsense", "a-b-c-d-e", "a-b-1-2"):
        assert liveness(tag) is Liveness.UNKNOWN


def test_after_a_reboot_every_controller_of_this_machine_is_dead() -> None:
    here = this_process()
    if here.machine == "0":
        pytest.skip("inside a container the machine has no name of its own")
    assert liveness(replace(here, boot="b" * 12).tag()) is Liveness.DEAD
    assert liveness(replace(here, machine="0", boot="b" * 12).tag()) is Liveness.UNKNOWN


def _claims(url: str, at_once: Any, answers: Any) -> None:
    ledger = Ledger(url)
    at_once.wait()
    try:
        ledger.claim_sweep("sweep")
        answers.put("claimed")
    except LedgerError as exc:
        answers.put(exc.reason)
    time.sleep(600)


def test_of_processes_that_begin_a_sweep_at_once_one_does(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    ledger = Ledger(url)
    at_once, answers = FORK.Barrier(4), FORK.Queue()
    processes = [FORK.Process(target=_claims, args=(url, at_once, answers), daemon=True) for _ in range(4)]
    for process in processes:
        process.start()
    try:
        assert sorted(answers.get(timeout=120) for _ in processes) == ["claimed", *["sweep_is_running"] * 3]
        with pytest.raises(LedgerError, match="is running already"):
            ledger.claim_sweep("sweep")
        ledger.claim_sweep("another")
    finally:
        for process in processes:
            process.kill()
            process.join()
    ledger.claim_sweep("sweep")
    with pytest.raises(LedgerError, match="is running already"):
        Ledger(url).claim_sweep("sweep")
    ledger.release_sweep("sweep")
    ledger.release_sweep("sweep")
    ledger.claim_sweep("sweep")


def test_a_claim_that_cannot_be_seen_from_here_holds_until_its_runs_must_show(tmp_path: Path) -> None:
    now = [1_800_000_000.0]
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite", now=lambda: now[0])
    ledger.claim_sweep("sweep")
    with ledger._engine.begin() as conn:
        conn.execute(sa.text("UPDATE sweep_claims SET controller = :it"), {"it": f"0-{this_process().boot}-1-4711-1"})
    with pytest.raises(LedgerError, match="is running already"):
        ledger.claim_sweep("sweep")
    now[0] += BEGINS_WITHIN_S
    ledger.claim_sweep("sweep")
