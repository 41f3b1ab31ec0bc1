"""UpCloud over its emulator, through its SDK, with a clock that tests move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tasks.clouds.base import Cloud
from tasks.clouds.upcloud import UpCloud, open_manager
from tests.emulators.base import Existing, Fault
from tests.emulators.serving import served
from tests.emulators.upcloud import PASSWORD, USERNAME, UpCloudEmulator
from tests.memory_cloud import Clock


@dataclass
class UpCloudWorld:
    emulator: UpCloudEmulator
    cloud: Cloud
    url: str
    clock: Clock
    server_type: str = "1xCPU-2GB"
    places: tuple[str, ...] = ("de-fra1", "us-chi1", "fi-hel1")

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
        return Fault("POST /server", how="code", code="SERVER_RESOURCES_UNAVAILABLE")

    def quota_fault(self) -> Fault:
        return Fault("POST /server", how="code", code="SERVER_CORE_LIMIT_REACHED")

    def throttle_fault(self) -> Fault:
        return Fault("POST /server", how="code", code="RATE_LIMITED")

    def auth_fault(self) -> Fault:
        return Fault("", how="code", code="AUTHENTICATION_FAILED")

    def calls(self) -> list[str]:
        return list(self.emulator.faults.calls)

    def cloud_with(self, *, token: str = "", password: str = PASSWORD, **options: Any) -> UpCloud:
        """The adapter with other credentials or options, on the same account."""
        username = "" if token else USERNAME
        manager = open_manager(
            username, "" if token else password, token, endpoint=f"{self.url}/1.3", read_timeout_s=20.0
        )
        return UpCloud(manager, now=self.clock.now, **options)


@contextmanager
def open_world(**options: Any) -> Iterator[UpCloudWorld]:
    """options: of the emulator and its account."""
    clock = Clock()
    emulator = UpCloudEmulator(clock.now, **options)
    with served(emulator) as url:
        manager = open_manager(USERNAME, PASSWORD, endpoint=f"{url}/1.3", connect_timeout_s=20.0, read_timeout_s=20.0)
        yield UpCloudWorld(emulator, UpCloud(manager, now=clock.now), url, clock)
