"""Who may start a sweep whose server runs count as running: nobody while their controller lives, anybody when it is
dead, and where it cannot be seen anybody once it can have no server any more."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from flows.shards import _busy
from flows.sweep import _claim, _refuse_a_second_start, _release
from tasks.domain.errors import ConfigError
from tasks.ledger import RunState, this_process
from tasks.settings import Settings
from tasks.wiring import Services, open_services

SWEEP = "tiny-0123456789"
ELSEWHERE = f"0-{this_process().boot}-1-4711-1"
"""A process of another process-id namespace: a container's."""


@pytest.fixture
def services(tmp_path: Path) -> Services:
    services = open_services(Settings(home=tmp_path, local_isolation="loopback"))
    services.ledger.begin_run("run", sweep_id=SWEEP, server="cpu1", vendor="local")
    return services


def change(services: Services, **values: object) -> None:
    sets = ", ".join(f"{name} = :{name}" for name in values)
    engine = sa.create_engine(services.settings.ledger)
    with engine.begin() as db:
        db.execute(sa.text(f"UPDATE server_runs SET {sets}"), values)
    engine.dispose()


def test_not_while_this_process_runs_it_however_long_that_takes(services: Services) -> None:
    change(services, started_unix_s=time.time() - 1e6)
    with pytest.raises(ConfigError, match="is running already"):
        _refuse_a_second_start(services, SWEEP)
    _refuse_a_second_start(services, "another-sweep")


def test_at_once_when_its_process_is_dead(services: Services) -> None:
    mine = this_process()
    dead = f"{mine.machine}-{mine.boot}-{mine.pid_namespace}-{2**22 + 1}-1"  # above the highest process id
    change(services, controller=dead)
    _refuse_a_second_start(services, SWEEP)


@pytest.mark.parametrize(("hours_ago", "refused"), [(0, True), (2, False)])
def test_where_it_cannot_be_seen_when_its_deadline_has_passed(
    services: Services, hours_ago: float, refused: bool
) -> None:
    change(services, controller=ELSEWHERE, started_unix_s=time.time() - hours_ago * 3600)
    if refused:
        with pytest.raises(ConfigError, match="deadline"):
            _refuse_a_second_start(services, SWEEP)
    else:
        _refuse_a_second_start(services, SWEEP)


@pytest.mark.parametrize(("hours_ago", "busy"), [(0, {"local/cpu1"}), (2, set())])
def test_a_server_that_a_lost_container_measured_is_measured_again_after_its_deadline(
    services: Services, hours_ago: float, busy: set[str]
) -> None:
    """By the shards of the sweep that is started again then; else by none, ever."""
    change(services, controller=ELSEWHERE, started_unix_s=time.time() - hours_ago * 3600)
    assert _busy(services, SWEEP) == busy


def test_of_two_that_begin_before_either_has_a_server_run_one_does(services: Services) -> None:
    services.ledger.end_run("run", RunState.INTERRUPTED)
    other = open_services(services.settings)
    _claim(services, SWEEP)
    with pytest.raises(ConfigError, match="is running already"):
        _claim(other, SWEEP)
    _release(services, SWEEP)
    _claim(other, SWEEP)


def test_a_start_that_is_refused_claims_nothing(services: Services) -> None:
    with pytest.raises(ConfigError, match="is running already: cpu1"):
        _claim(services, SWEEP)
    services.ledger.end_run("run", RunState.INTERRUPTED)
    _claim(services, SWEEP)
