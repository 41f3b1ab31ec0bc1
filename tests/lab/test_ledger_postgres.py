"""The ledger on a real PostgreSQL server: the same rows, guards and caps as on SQLite."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tasks.clouds.lifecycle import create_server, delete_and_prove
from tasks.domain.lifecycle import BudgetError, LedgerError, ResourceState, StaleRowError
from tasks.ledger import Ledger, RunState, this_process
from tasks.ledger.server_runs import LANDS_WITHIN_S
from tasks.reaper import leaks, reap
from tests.lifecycle_world import make_spec, server_request
from tests.memory_cloud import Clock, MemoryCloud
from tests.unit.test_ledger import intent

pytestmark = pytest.mark.lab
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server of our own, on a socket in a folder of our own."""
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")
    programs = {name: shutil.which(name) for name in ("initdb", "pg_ctl", "setpriv")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        pytest.skip(f"PostgreSQL cannot be started without {', '.join(missing)}")
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        if nobody:
            os.chown(folder, 65534, 65534)
            os.chown(data, 65534, 65534)

        def run(*command: str) -> None:
            subprocess.run([*nobody, *command], check=True, stdout=subprocess.DEVNULL, cwd=folder)

        run("initdb", "-D", str(data), "-U", "ledger", "--auth=trust", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder}"
        run("pg_ctl", "-D", str(data), "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            yield f"postgresql+psycopg://ledger@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")


def test_create_reap_and_prove(server: str) -> None:
    clock = Clock()
    ledger = Ledger(server, now=clock.now)
    assert Ledger(server, now=clock.now).ledger_id == ledger.ledger_id
    cloud = MemoryCloud(clock.now, lag_s=10)
    reap([cloud], ledger, clock.now, clock.sleep)
    ledger.begin_run("run", sweep_id="sweep", server="small", vendor="memory")
    request = server_request("run", clock.now())
    live = create_server(cloud, ledger, make_spec, request, now=clock.now, sleep=clock.sleep)
    clock.sleep(600)
    with pytest.raises(StaleRowError):
        ledger.deleting(ledger.record_error(live.row, "changed") and live.row)
    row = ledger.row(live.row.intent_id)
    assert row is not None
    row = delete_and_prove(cloud, ledger, row, now=clock.now, sleep=clock.sleep)
    assert row.state is ResourceState.GONE
    assert ledger.spent("sweep").committed_usd == row.cost_usd
    ledger.end_run("run", RunState.LANDED)
    assert leaks([cloud], ledger, clock.now).clean
    assert cloud.existing() == []


def _reserve(url: str, names: list[str], won: Any) -> None:
    ledger = Ledger(url)
    for name in names:
        try:
            ledger.intend(intent(name, sweep_id="capped", reserved_usd=Decimal("0.1")), cap_usd=Decimal("1.5"))
            won.put(name)
        except BudgetError:
            pass


def test_processes_that_reserve_at_once_never_pass_the_cap(server: str) -> None:
    won = FORK.Queue()
    processes = [FORK.Process(target=_reserve, args=(server, [f"{p}-{n}" for n in range(8)], won)) for p in range(4)]
    for process in processes:
        process.start()
    names = [won.get(timeout=60) for _ in range(15)]
    for process in processes:
        process.join(60)
    assert won.empty()
    ledger = Ledger(server)
    assert sorted(row.intent_id for row in ledger.rows("capped")) == sorted(names)
    spent = ledger.spent("capped")
    assert spent.reserved_usd == Decimal("1.5")
    assert spent.settled_usd == 0


def _claim(url: str, at_once: Any, answers: Any) -> None:
    ledger = Ledger(url)
    at_once.wait()
    try:
        ledger.claim_sweep("claimed")
        answers.put("claimed")
    except LedgerError as exc:
        answers.put(exc.reason)
    time.sleep(600)


def test_of_processes_that_begin_a_sweep_at_once_one_does(server: str) -> None:
    at_once, answers = FORK.Barrier(4), FORK.Queue()
    processes = [FORK.Process(target=_claim, args=(server, at_once, answers), daemon=True) for _ in range(4)]
    for process in processes:
        process.start()
    try:
        assert sorted(answers.get(timeout=120) for _ in processes) == ["claimed", *["sweep_is_running"] * 3]
    finally:
        for process in processes:
            process.kill()
            process.join()
    ledger = Ledger(server)
    ledger.claim_sweep("claimed")
    ledger.release_sweep("claimed")
    ledger.claim_sweep("claimed")


def test_a_run_that_cannot_be_seen_from_here_counts_until_its_deadline(server: str) -> None:
    clock = Clock()
    ledger = Ledger(server, now=clock.now)
    run = ledger.begin_run("unseen", sweep_id="unseen", server="small", vendor="memory")
    assert ledger.may_still_run(run)
    unseen = replace(run, controller=f"0-{this_process().boot}-1-4711-1")
    ledger.intend(replace(intent("unseen"), server_run_id="unseen", deadline_unix_s=clock.now() + 3600))
    assert ledger.may_still_run(unseen)
    clock.sleep(3600 + LANDS_WITHIN_S)
    assert not ledger.may_still_run(unseen)
    assert ledger.last_beat("nobody") is None


def test_a_server_that_is_away_is_a_clear_error(server: str) -> None:
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger(server.replace("host=", "host=/nowhere"))
