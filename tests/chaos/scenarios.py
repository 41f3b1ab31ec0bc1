"""What the controller goes through while it is killed at every point of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tasks.clouds.base import INTENT_TAG, Scope
from tasks.clouds.deletion import request_delete
from tests.chaos.stage import Aftermath, Stage, dead_controller, ended
from tests.chaos.trap import How, Point, Trap
from tests.contract.memory_world import MemoryWorld
from tests.memory_cloud import LOST, CloudError, ErrorKind, Fault, MemoryCloud

Program = Callable[[Stage, str, Trap, str], None]


def one_run(stage: Stage, run: str, trap: Trap, tag: str) -> None:
    stage.server_run(run, trap, tag)


def cancelled_run(stage: Stage, run: str, trap: Trap, tag: str) -> None:
    """Told to end as soon as its create has been sent."""
    stage.server_run(run, trap, tag, cancelled=lambda: any(point.what == "create" for point in trap.points))


def run_again(stage: Stage, run: str, trap: Trap, tag: str) -> None:
    """The same server run a second time, after a first try that left a server behind."""
    stage.create(run, Trap(), tag)
    stage.server_run(run, trap, tag)


def reaper_pass(stage: Stage, run: str, trap: Trap, tag: str) -> None:
    """The one that dies is the reaper, in the middle of all that it can meet."""
    stage.create(run, Trap(), tag, deadline_unix_s=stage.world.now() + 60)
    cloud = stage.world.cloud
    if isinstance(cloud, MemoryCloud):
        unanswered = Trap({Point("create", 0): How.DIES_AFTER})
        ended(lambda: stage.create(f"{run}-unanswered", unanswered))  # its controller seems to live: to be adopted
        (tags, *_) = [thing.tags for thing in cloud.existing("server")]
        cloud.add("unknown", {**tags, INTENT_TAG: f"nobody-knows-{run}"})
        cloud.add("left-alone", {**tags, INTENT_TAG: f"disk-of-nobody-{run}"}, kind="disk")
        cloud.add("twin", dict(tags))
        cloud.plant("delete", Fault(CloudError(ErrorKind.DELETE_BLOCKED)))
    stage.world.sleep(900)
    stage.reap(trap=trap, prove_s=60)


def second_try_of_an_unanswered_create(stage: Stage, run: str, trap: Trap, tag: str) -> None:
    """The first try died before it was told what its create had made."""
    ended(lambda: stage.create(run, Trap({Point("create", 0): How.DIES_AFTER}), tag))
    stage.server_run(run, trap, tag)


def reaper_of_an_unanswered_create(stage: Stage, run: str, trap: Trap, tag: str) -> None:
    """Listings do not show its server yet, nor another one whose answer came; `get` fails once and denies one of them
    once, and the deletes are refused."""
    ended(lambda: stage.create(f"{run}-known", Trap({Point("commit live", 0): How.DIES_AFTER}), dead_controller()))
    ended(lambda: stage.create(run, Trap({Point("create", 0): How.DIES_AFTER}), dead_controller()))
    cloud = _memory_of(stage)
    cloud.plant("get", Fault(LOST))
    cloud.plant("delete", *[Fault(CloudError(ErrorKind.DELETE_BLOCKED))] * 16)
    cloud.lies = 1
    stage.reap(trap=trap, prove_s=120)


def run_with_a_full_ledger(stage: Stage, run: str, trap: Trap, tag: str) -> None:
    """The disk under it is full just when the create has been answered."""
    trap.fates = {Point("commit live", 0): How.REFUSED, **trap.fates}
    stage.server_run(run, trap, tag)


def reaper_of_a_server_that_does_not_go(stage: Stage, run: str, trap: Trap, tag: str) -> None:
    """Its tags have been taken off, its deletes do nothing, and once it is denied. Another one is stuck too."""
    cloud = _memory_of(stage)
    stuck = stage.create(f"{run}-stuck", Trap(), tag)
    live = stage.create(run, Trap(), tag)
    thing = cloud.things[live.resource.cloud_id]
    cloud.things[thing.id] = replace(thing, tags={})
    stage.foreign = [x for x in stage.foreign_now() if x[1] != thing.id]
    cloud.stuck = {thing.name, stuck.row.name}
    request_delete(cloud, stage.ledger, live.row)
    request_delete(cloud, stage.ledger, stuck.row)
    cloud.lies = 1
    stage.world.sleep(1000)
    stage.reap(trap=trap, prove_s=0)
    stage.world.sleep(60)
    stage.reap(trap=trap, prove_s=0)
    cloud.stuck.clear()
    stage.reap(trap=trap, prove_s=60)


def _memory_of(stage: Stage) -> MemoryCloud:
    assert isinstance(stage.world, MemoryWorld)
    return stage.world.cloud


WITH_THE_LEDGER = (Aftermath.SAME_HOST, Aftermath.ELSEWHERE, Aftermath.TWO_REAPERS)


@dataclass(frozen=True)
class Scenario:
    """options: of the cloud in memory. prepare: what is planted before it begins. aftermaths: after which something can
    be left at all: without ledger and without tags nobody could know a server. The rest runs on every vendor."""

    name: str
    program: Program = one_run
    options: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Stage], None] = lambda stage: None
    aftermaths: tuple[Aftermath, ...] = tuple(Aftermath)


def _memory(plan: Callable[[MemoryCloud], None]) -> Callable[[Stage], None]:
    def prepare(stage: Stage) -> None:
        plan(_memory_of(stage))

    return prepare


def _lost_create(cloud: MemoryCloud) -> None:
    cloud.plant("create", Fault(LOST, acts=True))


IN_MEMORY = (
    Scenario("plain", options={"boot_s": 3}),
    Scenario("slow to show, slow to go", options={"lag_s": 45, "delete_s": 20, "boot_s": 10}),
    Scenario("lost answer, unique names", options={"unique_names": True}, prepare=_memory(_lost_create)),
    Scenario("lost answer, token", options={"idempotency_token": True, "lag_s": 30}, prepare=_memory(_lost_create)),
    Scenario("lost answer, nothing unique", options={"lag_s": 10}, prepare=_memory(_lost_create)),
    Scenario(
        "lost request, then no capacity",
        options={"unique_names": True, "stock": {"north-1a": 0}},
        prepare=_memory(lambda cloud: cloud.plant("create", Fault(LOST))),
    ),
    Scenario("two zones are full", options={"stock": {"north-1a": 0, "north-1b": 0}}),
    Scenario(
        "no quota in the region",
        prepare=_memory(lambda cloud: cloud.plant("create", Fault(CloudError(ErrorKind.QUOTA, scope=Scope.REGION)))),
    ),
    Scenario("no place has one", options={"stock": {"north-1a": 0, "north-1b": 0, "south-1a": 0}}),
    Scenario("it dies while it boots", options={"boot_s": 30, "dies_after_s": 5}),
    Scenario(
        "rate limited",
        prepare=_memory(lambda cloud: cloud.plant("create", *[Fault(CloudError(ErrorKind.RATE_LIMITED))] * 2)),
    ),
    Scenario("the SDK sends twice", options={"double": True, "delete_s": 5}),
    Scenario("its disk outlives it", options={"surviving": {"disk"}}),
    Scenario(
        "the first delete is refused",
        prepare=_memory(lambda cloud: cloud.plant("delete", Fault(CloudError(ErrorKind.DELETE_BLOCKED)))),
    ),
    Scenario("cancelled during the create", program=cancelled_run, options={"boot_s": 30}),
    Scenario("the same run a second time", program=run_again),
    Scenario("the ledger is full for a moment", program=run_with_a_full_ledger),
    Scenario("a second try after no answer", program=second_try_of_an_unanswered_create),
    Scenario("a reaper's pass", program=reaper_pass, options={"delete_s": 3, "surviving": {"ip"}}),
    Scenario(
        "a reaper where listings are behind",
        program=reaper_of_an_unanswered_create,
        options={"list_lag_s": 40, "unique_names": True},
    ),
    Scenario(
        "a reaper of what does not go",
        program=reaper_of_a_server_that_does_not_go,
        aftermaths=WITH_THE_LEDGER,
    ),
)

AT_EVERY_VENDOR = (
    Scenario("plain"),
    Scenario("the first place is full", prepare=lambda stage: stage.world.plant(stage.world.capacity_fault())),
    Scenario("rate limited", prepare=lambda stage: stage.world.plant(stage.world.throttle_fault())),
    Scenario("the same run a second time", program=run_again),
    Scenario("a reaper's pass", program=reaper_pass),
)
