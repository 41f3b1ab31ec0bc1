"""Servers created, lost and reaped in the simulated cloud, one class of faults after the other, by the real life-cycle
code, ledger and reaper: whatever happens, nothing is left, and the meter stays under what the ledger says."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from tasks.clouds.base import CreateSpec
from tasks.clouds.deletion import request_delete
from tasks.clouds.lifecycle import Draft, ServerRequest, create_server
from tasks.clouds.sim import CLOUD_FAULTS, catalog
from tasks.domain.errors import TokensweepError
from tasks.domain.lifecycle import ResourceState
from tasks.ledger import Ledger, RunState
from tasks.reaper import leaks, reap
from tests.emulators.sim_world import SimWorld, StillClock

TTL_S = 3600.0
CAP_USD = Decimal(200)
N_SERVERS = 5
SIDES_SHARE = Decimal("1.25")
"""Disks and addresses bill beside their server, and the ledger keeps only the server's price."""


def make_spec(draft: Draft) -> CreateSpec:
    return CreateSpec(**vars(draft), client_public_key="client", host_private_key="secret", host_public_key="pinned")


def one_life(world: SimWorld, ledger: Ledger, n: int) -> None:
    """A server run as a flow does it; what goes wrong is left to the reaper."""
    kind = catalog.server_type(catalog.all_names()[n * 271 + 40])
    run = f"run-{n}"
    ledger.begin_run(run, sweep_id="sweep", server=kind.name, vendor="sim")
    request = ServerRequest(
        sweep_id="sweep",
        server_run_id=run,
        server_type=kind.name,
        places=kind.places,
        deadline_unix_s=world.now() + TTL_S,
        usd_per_hour=max(kind.prices.values()),
        cap_usd=CAP_USD,
    )
    try:
        create_server(world.cloud, ledger, make_spec, request, now=world.now, sleep=world.sleep)
        world.sleep(300)
    except TokensweepError:
        pass
    finally:
        for row in ledger.rows_of_run(run):
            if row.state is not ResourceState.GONE:
                request_delete(world.cloud, ledger, row)
        ledger.end_run(run, RunState.LANDED)


def passes(world: SimWorld, ledger: Ledger, prove_s: float) -> bool:
    return reap([world.cloud], ledger, world.now, world.sleep, prove_s=prove_s).finished


def quiesce(world: SimWorld, ledger: Ledger) -> None:
    """The faults end, every deadline passes, and the reaper comes by until it has nothing to do."""
    world.cloud.configure({})
    world.sleep(2 * TTL_S)
    for _ in range(10):
        if passes(world, ledger, 300) and not ledger.open_rows():
            return
    raise AssertionError(ledger.open_rows())


def check(world: SimWorld, ledger: Ledger) -> None:
    assert [e for e in world.existing() if e.ours] == []
    assert sum(e.kind == "server" for e in world.existing()) == 1, "what is foreign is there"
    assert leaks([world.cloud], ledger, world.now).clean
    bill, spent = world.cloud.bill(), ledger.spent("sweep")
    assert bill.usd_per_hour == 0 and spent.reserved_usd == 0
    assert spent.settled_usd <= CAP_USD and bill.total_usd <= CAP_USD


def live(world: SimWorld, ledger: Ledger, n_servers: int) -> None:
    """One after the other, each after a pass of the reaper that saw everything: else nothing would be created."""
    for n in range(n_servers):
        while (ledger.last_beat("sim") or 0.0) < world.now() - 600:
            passes(world, ledger, 0)
            world.sleep(30)
        one_life(world, ledger, n)


@pytest.fixture
def world(tmp_path: Path) -> SimWorld:
    made = SimWorld(tmp_path / "sim", StillClock())
    made.add_foreign()
    return made


@pytest.fixture
def ledger(tmp_path: Path, world: SimWorld) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/ledger.sqlite", now=world.now)


def test_without_faults_the_ledger_has_what_the_meter_bills(world: SimWorld, ledger: Ledger) -> None:
    live(world, ledger, N_SERVERS)
    quiesce(world, ledger)
    check(world, ledger)
    bill, spent = world.cloud.bill().total_usd, ledger.spent("sweep").settled_usd
    assert 0 < bill <= spent * SIDES_SHARE


@pytest.mark.parametrize("fault", CLOUD_FAULTS)
def test_one_class_of_faults_in_every_third_place_leaves_nothing(world: SimWorld, ledger: Ledger, fault: str) -> None:
    world.cloud.configure({"faults": {fault: 0.3}, "seed": 11})
    live(world, ledger, N_SERVERS)
    quiesce(world, ledger)
    check(world, ledger)
    rows = ledger.rows("sweep")
    assert {row.server_run_id for row in rows} or fault in ("credentials_expired", "region_outage")
    assert all(row.cost_usd is not None and row.proof for row in rows)


def test_all_classes_at_once_and_a_lost_ledger_leave_nothing(world: SimWorld, ledger: Ledger, tmp_path: Path) -> None:
    world.cloud.configure({"faults": 0.1, "seed": 5})
    live(world, ledger, 2 * N_SERVERS)
    fresh = Ledger(f"sqlite:///{tmp_path}/fresh.sqlite", now=world.now)
    quiesce(world, fresh)
    quiesce(world, ledger)
    check(world, ledger)


def test_the_meter_sees_what_a_reaper_that_believes_too_much_would_leave(world: SimWorld, ledger: Ledger) -> None:
    """The oracle itself: without a reaper a stuck deletion stays, and `check` says so."""
    passes(world, ledger, 0)
    world.cloud.configure({"faults": {"stuck_delete": 1.0}})
    one_life(world, ledger, 0)
    world.sleep(300)
    assert [e.kind for e in world.existing() if e.ours] == [
        "disk",
        "ip",
        "server",
    ] or world.cloud.bill().n_existing == 3
    with pytest.raises(AssertionError):
        check(world, ledger)
    quiesce(world, ledger)
    check(world, ledger)


def test_the_same_sweep_comes_to_the_same_end_again(tmp_path: Path) -> None:
    ends = []
    for n in range(2):
        world = SimWorld(tmp_path / f"sim-{n}", StillClock())
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger-{n}.sqlite", now=world.now)
        world.cloud.configure({"faults": 0.1, "seed": 9})
        live(world, ledger, 6)
        ends.append([(r.server_type, r.place, r.attempt, r.state, r.last_error, r.cost_usd) for r in ledger.rows()])
        world.cloud.close()
    assert ends[0] == ends[1] and len({row[0] for row in ends[0]}) > 3
