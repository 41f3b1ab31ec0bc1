"""One vendor with a stage around it (ledger, reaper, oracle), and short ways to do what the conformance tests do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from tasks.clouds.accounts import account_of
from tasks.clouds.base import Classified, Cloud, CreateSpec, Resource
from tasks.clouds.deletion import list_owned
from tasks.clouds.lifecycle import create_server
from tasks.clouds.request import Draft
from tasks.clouds.sending import CreateLimits
from tasks.clouds.tags import with_tags
from tasks.domain.lifecycle import intent_id, server_name, token
from tasks.domain.reaping import SERVER, TERMINATED
from tests.chaos.stage import Stage, make_spec
from tests.contract.world import VendorWorld

PATIENCE = CreateLimits(resolve_s=120.0, throttled_s=300.0, boot_s=600.0)


@dataclass
class Recorder:
    """The vendor module, with everything that it was asked to create and everything that it classified."""

    cloud: Cloud
    places: list[str] = field(default_factory=list)
    found: list[Classified] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cloud, name)

    def account(self) -> str:
        return account_of(self.cloud)

    def create(self, spec: CreateSpec) -> Resource:
        self.places.append(spec.place)
        return self.cloud.create(spec)

    def classify(self, exc: BaseException) -> Classified:
        found = self.cloud.classify(exc)
        self.found.append(found)
        return found


@dataclass
class Bench:
    """One vendor, its stage (ledger, reaper, oracle), and short ways to do what the tests do."""

    world: VendorWorld
    stage: Stage

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.world.cloud)

    @property
    def cloud(self) -> Cloud:
        return self.world.cloud

    def create(self, run: str = "run", **changes: Any) -> Any:
        return create_server(
            cast("Cloud", self.recorder),
            self.stage.ledger,
            make_spec,
            self.stage.request(run, **changes),
            now=self.world.now,
            sleep=self.world.sleep,
            limits=PATIENCE,
        )

    def spec(self, run: str = "run", place: str = "") -> CreateSpec:
        """A spec as the life cycle makes them, to talk to the module directly."""
        place, intent = place or self.world.places[0], intent_id(run, 0)
        draft = Draft(
            intent_id=intent,
            name=server_name(intent),
            token=token(intent, 0, place),
            place=place,
            server_type=self.world.server_type,
            sweep_id="sweep",
            server_run_id=run,
            deadline_unix_s=self.world.now() + 3600,
        )
        return with_tags(make_spec(draft), ledger_id=self.stage.ledger.ledger_id, controller="0-0-1-1-1")

    def until(self, condition: Any, what: str, patience_s: float = 900.0) -> Any:
        """Let the world's time pass until it holds."""
        give_up_unix_s = self.world.now() + patience_s
        while True:
            found = condition()
            if found:
                return found
            assert self.world.now() < give_up_unix_s, f"in {patience_s:.0f} s: {what}"
            self.world.sleep(2.0)

    def listed(self, intent_id: str) -> list[Resource]:
        listing = list_owned(self.cloud, self.world.now)
        assert listing.complete, listing.problems
        return [r for r in listing.resources if r.tags.get("tokensweep-intent") == intent_id and r.state != TERMINATED]

    def servers(self) -> list[str]:
        return [x.cloud_id for x in self.world.existing() if x.ours and x.kind == SERVER]

    def running(self, created: Resource) -> Resource | None:
        found = self.cloud.get(created.ref())
        return found if found is not None and found.state == "running" and found.address else None

    def drain(self) -> None:
        """Use up the planted faults."""
        for _ in range(200):
            if list_owned(self.cloud, self.world.now).complete:
                return
            self.world.sleep(1)
        pytest.fail("the listing never became complete again")
