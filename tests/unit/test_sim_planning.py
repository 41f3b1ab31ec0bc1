"""Sweeps on simulated servers are planned, configured, timed and marked: no engine, no file, a clock of its own."""

from __future__ import annotations

import threading
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tasks.benchmark import follow, open_host
from tasks.clouds.request import LiveServer
from tasks.clouds.sim import SimCloud
from tasks.domain.errors import CleanupError, ConfigError
from tasks.domain.lifecycle import LedgerError, LedgerRow, ResourceState, cost_usd
from tasks.engine import engine_for
from tasks.lake import open_lake, query
from tasks.leaks import leaks
from tasks.maintenance import ensure_heartbeat, heartbeat_is_fresh, pass_of_the_reaper
from tasks.planning import PreparedSweep, configure_vendors, prepare, run_plan
from tasks.presets import Preset
from tasks.provision import Cancelled, Order, ServerKeys, create, tear_down_now
from tasks.publish import RunRecord, land_now
from tasks.remote.spool import Spool
from tasks.settings import Settings
from tasks.wiring import Services

CHANGES: dict[str, Any] = {"seed": 3, "speedup": 3000, "faults": {"capacity": 0.5}}


def preset(**changes: Any) -> Preset:
    values: dict[str, Any] = {
        "name": "mine",
        "vendor": "sim",
        "servers": ("c3a-8",),
        "models": ("smollm-135m", "gemma-2b"),
        "weights": "simulated",
        "pp": (16,),
        "tg": (16,),
        "max_usd": Decimal(100),
        "max_usd_per_server": Decimal(1),
        "deadline_s": 3600,
    }
    return Preset(**{**values, **changes})


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return Services(Settings(home=tmp_path / "home", cache=tmp_path / "cache"))


def planned(services: Services, wanted: Preset) -> PreparedSweep:
    return prepare(wanted, services, engine_for(wanted.weights, services.settings.cache_dir))


def test_planning_builds_and_makes_nothing(services: Services, tmp_path: Path) -> None:
    prepared = planned(services, preset())
    assert [s.offer.name for s in prepared.to_run()] == ["c3a-8"]
    assert not (tmp_path / "home" / "sim").exists() and not (tmp_path / "cache").exists()
    plan = run_plan(prepared, prepared.to_run()[0], "run-1", {})
    assert [m.weights for m in plan.models] == ["simulated", "simulated"]
    assert all(m.bytes > 0 and m.urls[0].startswith("https://models.invalid/") for m in plan.models)


def test_a_count_takes_that_many_spread_over_the_catalogue(services: Services) -> None:
    names = [s.offer.name for s in planned(services, preset(servers=("*:500",))).plan.servers]
    assert len(set(names)) == 500
    assert {name[0] for name in names} >= set("bcgmxz") and any("x" in name.split("-")[0][1:] for name in names)
    assert names == [s.offer.name for s in planned(services, preset(servers=("*:500",))).plan.servers]
    arm = planned(services, preset(servers=("c3r-*:3", "c3a-8"))).plan.servers
    assert [s.offer.name[:4] for s in arm] == ["c3r-", "c3r-", "c3r-", "c3a-"]
    assert len(planned(services, preset(servers=("h200x8-*:1000",))).plan.servers) == 5, "all where there are no more"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": "random"}, "weights: simulated"),
        ({"weights": "real"}, "weights: simulated"),
        ({"vendor": "local", "servers": ()}, "weights: real or random"),
        ({"vendor_options": {"fualts": 0.1}}, "faults"),
        ({"vendor_options": {"faults": {"capcity": 0.1}}}, "capacity"),
        ({"servers": ("c3a-7",)}, "sells no"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    services: Services, changes: dict[str, Any], said: str
) -> None:
    wanted = preset(**changes)
    with pytest.raises(ConfigError) as refused:
        prepare(wanted, services, engine_for("simulated", services.settings.cache_dir))
    assert said in str(refused.value)


def test_options_are_for_vendors_that_take_them(services: Services) -> None:
    wanted = preset(vendor="local", servers=(), weights="real", vendor_options={"seed": 1})
    with pytest.raises(ConfigError, match="takes no vendor_options"):
        prepare(wanted, services, engine_for("simulated", services.settings.cache_dir))


def test_the_presets_options_hold_for_every_process(services: Services) -> None:
    prepared = planned(services, preset(vendor_options=CHANGES))
    configure_vendors(prepared, services)
    other = Services(services.settings).cloud("sim")
    assert isinstance(other, SimCloud)
    assert (other.options.seed, other.options.faults) == (3, {"capacity": 0.5})
    assert other.clock.real_s(3000.0) == 1.0
    configure_vendors(planned(services, preset(vendor_options={"speedup": 3000})), services)
    assert other.options.faults == {}, "a preset without faults has none, whatever was before"


def test_environment_variables_are_beneath_the_preset(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENSWEEP_SIM_SEED", "77")
    monkeypatch.setenv("TOKENSWEEP_SIM_FAULTS", "0.25")
    cloud = services.cloud("sim")
    assert isinstance(cloud, SimCloud)
    cloud.configure({"seed": 5})
    assert cloud.options.seed == 5 and cloud.options.faults["quota"] == 0.25


def test_the_simulated_cloud_is_listed_once_it_was_used(services: Services) -> None:
    assert [cloud.vendor for cloud in services.clouds() if cloud.vendor == "sim"] == []
    pass_of_the_reaper(services, vendors=("sim",), prove_s=0)
    assert [cloud.vendor for cloud in Services(services.settings).clouds() if cloud.vendor == "sim"] == ["sim"]


def test_ledger_heartbeat_and_deadlines_go_by_the_vendors_clock(services: Services) -> None:
    configure_vendors(planned(services, preset(vendor_options={"speedup": 10_000})), services)
    clock = services.clock("sim")
    clock.sleep(5000.0)
    ahead_s = clock.now() - time.time()
    assert ahead_s > 4000
    ensure_heartbeat(services, "sim")
    beat_unix_s = services.ledger.last_beat("sim")
    assert beat_unix_s is not None and beat_unix_s - time.time() > 3000
    clock.sleep(200.0)
    assert not heartbeat_is_fresh(services, "sim")
    timed = services.ledger_of("sim")
    assert timed.now() - time.time() > 4000 and abs(services.ledger.now() - time.time()) < 60
    assert abs(services.ledger_of("local").now() - time.time()) < 60


def order_of(services: Services, run: str, server: str = "c3a-8") -> Order:
    kind = services.cloud("sim").server_type(server)
    deadline_unix_s = services.clock("sim").now() + 3600
    return Order("sweep", run, kind, deadline_unix_s, Decimal(50), max(kind.prices.values()))


async def created(services: Services, run: str, faults: dict[str, float] | None = None) -> LedgerRow:
    cloud = services.cloud("sim")
    assert isinstance(cloud, SimCloud)
    cloud.configure({"speedup": 200, "faults": faults or {}})
    return (await live_server(services, run)).row


async def live_server(
    services: Services, run: str, keys: ServerKeys | None = None, cancel: threading.Event | None = None
) -> LiveServer:
    ensure_heartbeat(services, "sim")
    return await create(order_of(services, run), services, keys or ServerKeys(), cancel or threading.Event())


async def test_a_teardown_sends_the_delete_and_leaves_the_proof_to_the_reaper(services: Services) -> None:
    row = await created(services, "run-1")
    (left,) = tear_down_now("run-1", services)
    assert left.intent_id == row.intent_id and left.state is ResourceState.DELETING and left.delete_attempts == 1
    assert left.deadline_unix_s - (left.sent_unix_s or 0.0) > 3000, "both by the simulated clock"
    assert pass_of_the_reaper(services, vendors=("sim",)).finished
    (gone,) = services.ledger.rows_of_run("run-1")
    assert gone.state is ResourceState.GONE and gone.cost_usd is not None and gone.cost_usd > 0
    report = leaks([services.cloud("sim")], services.ledger, time.time)
    assert report.clean and report.listed[0].listed_unix_s > time.time() + 60, "listed by the vendor's clock"


async def test_a_delete_that_is_not_taken_is_an_error_and_stays_the_reapers(services: Services) -> None:
    await created(services, "run-1", {"delete_blocked": 1.0})
    with pytest.raises(CleanupError, match="locked"):
        tear_down_now("run-1", services)
    assert pass_of_the_reaper(services, vendors=("sim",)).finished


def wait_until_nothing_is_left(services: Services) -> None:
    cloud, clock = services.cloud("sim"), services.clock("sim")
    assert isinstance(cloud, SimCloud)
    for _ in range(100):
        if not [thing for thing in cloud.existing() if thing.ours]:
            return
        clock.sleep(10.0)
    raise AssertionError("the server is still there")


async def test_a_server_is_ended_although_the_ledger_cannot_be_read(services: Services) -> None:
    """To every reaper it would be in use for as long as this process lives, until its deadline."""
    row = await created(services, "run-1")
    for leftover in services.settings.home.glob("ledger.sqlite-*"):
        leftover.unlink()
    (services.settings.home / "ledger.sqlite").write_bytes(b"this is no database" * 1000)
    with pytest.raises(LedgerError):
        tear_down_now("run-1", services, row)
    wait_until_nothing_is_left(services)


async def test_a_server_is_ended_although_the_ledger_no_longer_knows_it(services: Services) -> None:
    row = await created(services, "run-1")
    with services.ledger._engine.begin() as conn:
        conn.execute(sa.text("DELETE FROM resources"))
    assert tear_down_now("run-1", services, row) == ()
    wait_until_nothing_is_left(services)


async def test_a_refused_delete_of_what_the_ledger_does_not_know_is_an_error(services: Services) -> None:
    row = await created(services, "run-1", {"delete_blocked": 1.0})
    with services.ledger._engine.begin() as conn:
        conn.execute(sa.text("DELETE FROM resources"))
    with pytest.raises(CleanupError, match=row.name):
        tear_down_now("run-1", services, row)


async def test_a_server_run_uses_the_host_that_its_vendor_brings(services: Services, tmp_path: Path) -> None:
    keys, cancel = ServerKeys(), threading.Event()
    await created(services, "run-0")
    live = await live_server(services, "run-1", keys, cancel)
    prepared = planned(services, preset())
    host = open_host(live, keys, services, engine_for("simulated", tmp_path), cancel)
    host.connect()
    plan = run_plan(prepared, prepared.to_run()[0], "run-1", {})
    started = host.start(plan)
    seen: list[str] = []
    with Spool(tmp_path / "spool.jsonl") as spool:
        follow(host, spool, lambda e: seen.append(e["kind"]), cancel=cancel, on_lost=lambda _: None)
        events = spool.read_all()
    assert seen[0] == "AgentStarted" and seen[-1] == "Finished" and len(events) == len(seen)
    assert services.clock("sim").now() - started.agent_started_unix_s >= events[-1]["t_s"]
    tear_down_now("run-1", services)

    services.ledger_of("sim").begin_run("run-1", sweep_id="sweep", server="c3a-8", vendor="sim")
    record = RunRecord(started_unix_s=started.agent_started_unix_s, engine="simulated")
    landing = land_now(plan, tmp_path / "spool.jsonl", record, services.cloud("sim").server_type("c3a-8"), services)
    assert landing.outcome == "completed"
    lake = open_lake(services.settings.lake_root)
    assert query(lake, "SELECT DISTINCT weights FROM v_speed").to_dicts() == [{"weights": "simulated"}]
    assert query(lake, "SELECT * FROM v_latest").height == 0, "what is known about servers leaves them out"
    (run,) = query(lake, "SELECT engine, cost_usd, billed_s FROM server_runs").to_dicts()
    (row,) = services.ledger.rows_of_run("run-1")
    assert run["engine"] == "simulated" and row.cost_usd is None, "landed before the proof"
    assert run["billed_s"] > events[-1]["t_s"] and run["cost_usd"] == cost_usd(row, 0.0) > 0


async def test_a_run_that_is_told_to_end_leaves_its_host_at_once(services: Services, tmp_path: Path) -> None:
    keys, cancel = ServerKeys(), threading.Event()
    await created(services, "run-0")
    live = await live_server(services, "run-1", keys, cancel)
    host = open_host(live, keys, services, engine_for("simulated", tmp_path), cancel)
    cancel.set()
    with pytest.raises(Cancelled):
        host.connect()


def test_one_listing_that_fails_does_not_cost_the_proof(services: Services) -> None:
    """Of a hundred proofs a third of whose listings fail: three tries each give nearly all of them."""
    cloud = services.cloud("sim")
    assert isinstance(cloud, SimCloud)
    cloud.configure({"faults": {"lost_request": 0.3}})
    proven = [leaks([cloud], services.ledger, time.time).clean for _ in range(100)]
    assert proven.count(True) > 90
    cloud.configure({"faults": {"lost_request": 1.0}})
    assert not leaks([cloud], services.ledger, time.time).clean
