"""The emulated project behind Google's own SDK, with a virtual clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from google.oauth2.credentials import Credentials

from tasks.clouds.gcp import GcpCloud
from tests.emulators.base import Existing, Fault
from tests.emulators.gcp import TOKEN, GcpEmulator
from tests.emulators.gcp_offers import ZONES
from tests.emulators.gcp_state import FIREWALL, Timing
from tests.emulators.serving import served
from tests.memory_cloud import Clock

SERVER_TYPE = "e2-standard-2"


@dataclass
class GcpWorld:
    cloud: GcpCloud
    emulator: GcpEmulator
    clock: Clock
    url: str
    server_type: str = SERVER_TYPE
    places: tuple[str, ...] = ZONES

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

    def capacity_fault(self) -> Fault:
        return Fault(operation="instances.insert", how="code", code="ZONE_RESOURCE_POOL_EXHAUSTED")

    def quota_fault(self) -> Fault:
        return Fault(operation="instances.insert", how="code", code="QUOTA_EXCEEDED")

    def throttle_fault(self) -> Fault:
        return Fault(operation="instances.insert", how="code", code="rateLimitExceeded")

    def auth_fault(self) -> Fault:
        return Fault(operation="", how="code", code="authError")

    def calls(self) -> list[str]:
        return list(self.emulator.faults.calls)

    def secrets(self) -> list[str]:
        return [TOKEN]

    def clear_faults(self) -> None:
        """Also the shared firewall rules go, which stay for good: so the next run makes them anew."""
        self.emulator.faults.clear()
        things = self.emulator.project.things
        things[:] = [thing for thing in things if thing.kind != FIREWALL]

    def another_cloud(self, **options: Any) -> GcpCloud:
        """As a process that is started anew sees it: nothing remembered."""
        return open_cloud(self.url, self.clock, **options)


def open_cloud(url: str, clock: Clock, **options: Any) -> GcpCloud:
    settings: dict[str, Any] = {
        "project": "bench-project",
        "credentials": Credentials(token=TOKEN),  # type: ignore[no-untyped-call]
        "endpoint": url,
        "timeout_s": 10.0,
        "now": clock.now,
        "sleep": clock.sleep,
    }
    return GcpCloud(**{**settings, **options})


@contextmanager
def open_world(
    *, timing: Timing | None = None, cloud: dict[str, Any] | None = None, **options: Any
) -> Iterator[GcpWorld]:
    """options: of the emulator. cloud: of the module."""
    clock = Clock()
    emulator = GcpEmulator(now=clock.now, timing=timing or Timing(), **options)
    with served(emulator) as url:
        yield GcpWorld(open_cloud(url, clock, **(cloud or {})), emulator, clock, url)
