"""Two land at once what a dead controller left: a reaper and a sweep that begins, say. Nothing measured is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from tasks.clouds.base import ServerType
from tasks.lake import open_lake
from tasks.ledger import RunState
from tasks.ledger.schema import server_runs
from tasks.maintenance import Recovered, _land_spool, recover
from tasks.settings import Settings
from tasks.wiring import Services
from tests.chaos.stage import dead_controller
from tests.memory_cloud import MemoryCloud
from tests.unit.lake_runs import finished_run

RUN = "run-a"


class Meanwhile(MemoryCloud):
    """Somebody else acts between the reading of a run's plan, and its landing."""

    act: Callable[[], object] | None = None

    def server_type(self, name: str) -> ServerType:
        act, self.act = self.act, None
        if act is not None:
            act()
        return super().server_type(name)


def opened(home: Path) -> tuple[Services, Meanwhile]:
    cloud = Meanwhile(time.time, vendor="hetzner")
    return Services(Settings(home=home), {"hetzner": cloud}), cloud


def left_by_a_dead_controller(services: Services) -> None:
    plan, events, _ = finished_run()
    assert plan.server_run_id == RUN
    spool = services.settings.spool_dir / f"{RUN}.jsonl"
    spool.parent.mkdir(parents=True, exist_ok=True)
    spool.write_text("".join(json.dumps(event) + "\n" for event in events))
    spool.with_suffix(".plan.json").write_text(plan.to_json())
    services.ledger.begin_run(RUN, sweep_id=plan.sweep_id, server="small", vendor="hetzner", spool_path=str(spool))
    with services.ledger._engine.begin() as conn:
        conn.execute(sa.update(server_runs).values(controller=dead_controller()))


def n_samples(services: Services) -> int:
    with open_lake(services.settings.lake_root) as lake:
        found: int = lake.con.execute("SELECT count(*) FROM samples").fetchall()[0][0]
    return found


def test_a_run_that_two_land_at_once_keeps_what_it_had_measured(tmp_path: Path) -> None:
    one, in_between = opened(tmp_path)
    other, _ = opened(tmp_path)
    left_by_a_dead_controller(one)
    by_the_other: list[Recovered] = []
    in_between.act = lambda: by_the_other.extend(recover(other))

    found = recover(one)

    assert n_samples(one) > 0
    assert sorted(recovered.landed for recovered in (*found, *by_the_other)) == [False, True]
    (run,) = one.ledger.server_runs()
    assert run.state is RunState.LANDED
    assert list(one.settings.spool_dir.iterdir()) == []
    assert recover(one) == [] and recover(other) == []


def test_what_was_landed_since_the_runs_were_listed_is_left_alone(tmp_path: Path) -> None:
    """The first is killed when its rows are in the lake and the spool is gone, but not yet the plan beside it."""
    one, _ = opened(tmp_path)
    left_by_a_dead_controller(one)
    plan_path = one.settings.spool_dir / f"{RUN}.plan.json"
    plan = plan_path.read_text()
    (stale,) = one.ledger.abandoned_runs()
    assert [recovered.landed for recovered in recover(one)] == [True]
    plan_path.write_text(plan)

    assert not _land_spool(one, stale).landed
    assert n_samples(one) > 0
