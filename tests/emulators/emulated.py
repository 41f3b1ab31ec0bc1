"""What the worlds of all emulated vendors share: a clock that tests move, faults in the vendor's words, and specs.

A world is a vendor's module over its own SDK, opened on its emulator (`tests/contract/world.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tasks.clouds.base import DEADLINE_TAG, INTENT_TAG, OWNER, OWNER_TAG, Cloud, CreateSpec
from tests.contract.world import VendorWorld
from tests.emulators.base import Emulator, Existing, Fault
from tests.memory_cloud import Clock


@dataclass(frozen=True, kw_only=True)
class Refusals:
    """How a vendor says no. create: its name of the call that makes a server; the rest are codes that its emulator
    answers with. auth may come at any call, the others at a create."""

    create: str
    capacity: str
    quota: str
    throttle: str
    auth: str

    def no_capacity(self) -> Fault:
        return Fault(self.create, how="code", code=self.capacity)

    def no_quota(self) -> Fault:
        return Fault(self.create, how="code", code=self.quota)

    def too_many(self) -> Fault:
        return Fault(self.create, how="code", code=self.throttle)

    def no_entry(self) -> Fault:
        return Fault("", how="code", code=self.auth)


class Refuses:
    """The faults that a `VendorWorld` can plant in its vendor's words."""

    refusals: ClassVar[Refusals]

    def capacity_fault(self) -> Fault:
        return self.refusals.no_capacity()

    def quota_fault(self) -> Fault:
        return self.refusals.no_quota()

    def throttle_fault(self) -> Fault:
        return self.refusals.too_many()

    def auth_fault(self) -> Fault:
        return self.refusals.no_entry()


@dataclass
class EmulatedWorld(Refuses):
    """A vendor over HTTP. url: where its emulator is served."""

    cloud: Cloud
    emulator: Emulator
    clock: Clock
    url: str

    def now(self) -> float:
        return self.clock.now()

    def sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    def existing(self) -> list[Existing]:
        return self.emulator.existing()

    def add_foreign(self) -> None:
        self.emulator.add_foreign()

    def plant(self, *faults: Fault) -> None:
        self.emulator.faults.plant(*faults)

    def calls(self) -> list[str]:
        return list(self.emulator.faults.calls)


def spec_of(world: VendorWorld, number: int = 1, **changes: Any) -> CreateSpec:
    """The spec of a create in the world's first place; another number is another server."""
    intent = f"intent-{number}"
    deadline_unix_s = world.now() + 3600
    spec = CreateSpec(
        intent_id=intent,
        name=f"tokensweep-{number:020d}",
        token=f"{number:064x}",
        server_type=world.server_type,
        place=world.places[0],
        deadline_unix_s=deadline_unix_s,
        sweep_id="sweep-1",
        server_run_id="run-1",
        client_public_key="ssh-ed25519 AAAAclient",
        host_private_key="-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n-----END OPENSSH PRIVATE KEY-----\n",
        host_public_key="ssh-ed25519 AAAAhost",
        ssh_sources=("198.51.100.7/32",),
        tags={OWNER_TAG: OWNER, INTENT_TAG: intent, DEADLINE_TAG: str(int(deadline_unix_s))},
    )
    return replace(spec, **changes)
