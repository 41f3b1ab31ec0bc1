"""Runs whose controller died are landed each for itself: a vendor that refuses keeps nobody else's from the lake."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa

from tasks.clouds.base import ServerType
from tasks.ledger import RunState
from tasks.ledger.schema import server_runs
from tasks.maintenance import Recovered, recover
from tasks.settings import Settings
from tasks.wiring import Services
from tests.chaos.stage import dead_controller
from tests.memory_cloud import MemoryCloud
from tests.plans import make_plan


class SdkError(Exception):
    """As a vendor's SDK raises them: none of ours."""


class Refusing(MemoryCloud):
    def server_type(self, name: str) -> ServerType:
        raise SdkError("the account is suspended")


class Unreadable(MemoryCloud):
    """A module that fails as soon as anything of it is used."""

    @property
    def clock(self) -> object:
        raise SdkError("the key file cannot be read")


def opened(home: Path) -> Services:
    clouds = {cls: cls(time.time, vendor=vendor) for vendor, cls in VENDORS.items()}
    return Services(Settings(home=home), {c.vendor: c for c in clouds.values()})


VENDORS: dict[str, type[MemoryCloud]] = {"aws": Refusing, "azure": Unreadable, "hetzner": MemoryCloud}


def left_by_a_dead_controller(services: Services, run: str, vendor: str, *, began_to_measure: bool = True) -> None:
    spool = services.settings.spool_dir / f"{run}.jsonl"
    spool.parent.mkdir(parents=True, exist_ok=True)
    if began_to_measure:
        plan = replace(make_plan(models=("small",)), server_run_id=run, sweep_id="sweep", server="small")
        spool.with_suffix(".plan.json").write_text(plan.to_json())
    services.ledger.begin_run(run, sweep_id="sweep", server="small", vendor=vendor, spool_path=str(spool))
    with services.ledger._engine.begin() as conn:
        dead = sa.update(server_runs).where(server_runs.c.server_run_id == run)
        conn.execute(dead.values(controller=dead_controller()))


def test_a_vendor_that_refuses_does_not_keep_the_other_runs_from_being_landed(tmp_path: Path) -> None:
    services = opened(tmp_path)
    left_by_a_dead_controller(services, "run-1-refused", "aws")
    left_by_a_dead_controller(services, "run-2-unreadable", "azure", began_to_measure=False)
    left_by_a_dead_controller(services, "run-3-good", "hetzner")
    left_by_a_dead_controller(services, "run-4-of-nobody", "upcloud")
    left_by_a_dead_controller(services, "run-5-good", "hetzner")

    found = {one.run.server_run_id: one for one in recover(services)}

    assert {run for run, one in found.items() if one.landed} == {"run-3-good", "run-5-good"}
    assert "the account is suspended" in found["run-1-refused"].problem and "aws" in found["run-1-refused"].problem
    assert "the key file cannot be read" in found["run-2-unreadable"].problem
    assert "azure" in found["run-2-unreadable"].problem
    assert "upcloud" in found["run-4-of-nobody"].problem, "not set up here"
    states = {run.server_run_id: run.state for run in services.ledger.server_runs()}
    assert [run for run, state in states.items() if state is RunState.LANDED] == ["run-3-good", "run-5-good"]


def test_what_could_not_be_landed_is_tried_again(tmp_path: Path) -> None:
    services = opened(tmp_path)
    left_by_a_dead_controller(services, "run", "aws")
    assert [one.landed for one in recover(services)] == [False]
    services._opened["aws"] = MemoryCloud(time.time, vendor="aws")
    assert [one.landed for one in recover(services)] == [True]
    again: list[Recovered] = recover(services)
    assert again == []
