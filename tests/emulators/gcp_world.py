"""The emulated project behind Google's own SDK, with a virtual clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from google.oauth2.credentials import Credentials

from tasks.clouds.gcp import GcpCloud
from tests.emulators.emulated import EmulatedWorld, Refusals
from tests.emulators.gcp import TOKEN, GcpEmulator
from tests.emulators.gcp_offers import ZONES
from tests.emulators.gcp_state import Timing
from tests.emulators.serving import served
from tests.memory_cloud import Clock

SERVER_TYPE = "e2-standard-2"


@dataclass
class GcpWorld(EmulatedWorld):
    refusals = Refusals(
        create="instances.insert",
        capacity="ZONE_RESOURCE_POOL_EXHAUSTED",
        quota="QUOTA_EXCEEDED",
        throttle="rateLimitExceeded",
        auth="authError",
    )

    cloud: GcpCloud
    emulator: GcpEmulator
    server_type: str = SERVER_TYPE
    places: tuple[str, ...] = ZONES

    def secrets(self) -> list[str]:
        return [TOKEN]

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
    *,
    read_timeout_s: float = 10.0,
    timing: Timing | None = None,
    cloud: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[GcpWorld]:
    """options: of the emulator. cloud: of the module."""
    clock = Clock()
    emulator = GcpEmulator(now=clock.now, timing=timing or Timing(), **options)
    with served(emulator) as url:
        module = open_cloud(url, clock, **{"timeout_s": read_timeout_s, **(cloud or {})})
        yield GcpWorld(module, emulator, clock, url)
