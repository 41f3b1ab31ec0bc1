"""One cloud, one ledger, one clock, and the oracle that all life-cycle tests share: nothing of ours is left."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from tasks.clouds.base import CreateSpec
from tasks.clouds.lifecycle import CreateLimits, Draft, LiveServer, ServerRequest, create_server
from tasks.domain.lifecycle import ResourceState
from tasks.domain.reaping import DEFAULT_RULES
from tasks.ledger import Ledger
from tasks.reaper import LeakReport, ReapReport, leaks, reap
from tests.memory_cloud import USD_PER_HOUR, Clock, MemoryCloud

TTL_S = 3600.0
FOREIGN = {"owner": "somebody-else"}


def make_spec(draft: Draft) -> CreateSpec:
    return CreateSpec(**vars(draft), client_public_key="client", host_private_key="secret", host_public_key="pinned")


def server_request(run: str, now_unix_s: float, **changes: Any) -> ServerRequest:
    request = ServerRequest(
        sweep_id="sweep",
        server_run_id=run,
        server_type="small",
        places=("north-1a", "north-1b", "south-1a"),
        deadline_unix_s=now_unix_s + TTL_S,
        usd_per_hour=USD_PER_HOUR,
        cap_usd=Decimal(100),
    )
    return replace(request, **changes)


@dataclass
class World:
    """A ledger of its own for every instance, so that a lost one is a new one."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    options: dict[str, Any] = field(default_factory=dict)
    limits: CreateLimits = field(default_factory=CreateLimits)

    def __post_init__(self) -> None:
        self.cloud = MemoryCloud(self.clock.now, **self.options)
        self.ledger = Ledger(f"sqlite:///{self.folder}/ledger.sqlite", now=self.clock.now)
        self.n_ledgers = 1
        self.foreign = self.cloud.add("not-ours", FOREIGN)
        self.reap()

    def create(self, run: str = "run", **changes: Any) -> LiveServer:
        return create_server(
            self.cloud,
            self.ledger,
            make_spec,
            server_request(run, self.clock.now(), **changes),
            now=self.clock.now,
            sleep=self.clock.sleep,
            limits=self.limits,
        )

    def reap(self, **options: Any) -> ReapReport:
        return reap([self.cloud], self.ledger, self.clock.now, self.clock.sleep, **options)

    def leaks(self) -> LeakReport:
        return leaks([self.cloud], self.ledger, self.clock.now)

    def lose_ledger(self) -> None:
        self.n_ledgers += 1
        self.ledger = Ledger(f"sqlite:///{self.folder}/ledger-{self.n_ledgers}.sqlite", now=self.clock.now)

    def pass_deadlines(self) -> None:
        self.clock.sleep(TTL_S + DEFAULT_RULES.skew_s + DEFAULT_RULES.unknown_grace_s + self.cloud.lag_s + 1)

    def mend(self) -> None:
        """Every fault is over."""
        cloud = self.cloud
        cloud.faults.clear()
        cloud.unreachable.clear()
        cloud.stuck.clear()
        cloud.lies, cloud.double = 0, False

    def settle(self) -> None:
        """Mend, pass every deadline, and reap until nothing more happens; then check the oracle."""
        self.mend()
        self.pass_deadlines()
        for _ in range(4):
            report = self.reap(prove_s=4 * self.cloud.lag_s + self.cloud.delete_s + 60)
        assert report.finished, report
        self.check_nothing_left()

    def check_nothing_left(self) -> None:
        assert self.cloud.existing() == [], "something of ours still exists"
        assert self.foreign.exists(self.clock.now()), "somebody else's server was deleted"
        assert self.cloud.things[self.foreign.id] == self.foreign
        assert [row.name for row in self.ledger.rows() if row.state is not ResourceState.GONE] == []
        assert self.leaks().clean
        spent = self.ledger.spent("sweep")
        assert spent.reserved_usd == 0
        assert spent.settled_usd == sum((row.cost_usd or Decimal(0) for row in self.ledger.rows("sweep")), Decimal(0))
