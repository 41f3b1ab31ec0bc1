"""UpCloud over its emulator, through its SDK, with a clock that tests move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tasks.clouds.upcloud import UpCloud, open_manager
from tests.emulators.emulated import EmulatedWorld, Refusals
from tests.emulators.serving import served
from tests.emulators.upcloud import PASSWORD, USERNAME, UpCloudEmulator
from tests.memory_cloud import Clock


@dataclass
class UpCloudWorld(EmulatedWorld):
    refusals = Refusals(
        create="POST /server",
        capacity="SERVER_RESOURCES_UNAVAILABLE",
        quota="SERVER_CORE_LIMIT_REACHED",
        throttle="RATE_LIMITED",
        auth="AUTHENTICATION_FAILED",
    )

    emulator: UpCloudEmulator
    server_type: str = "1xCPU-2GB"
    places: tuple[str, ...] = ("de-fra1", "us-chi1", "fi-hel1")

    def cloud_with(self, *, token: str = "", password: str = PASSWORD, **options: Any) -> UpCloud:
        """The adapter with other credentials or options, on the same account."""
        username = "" if token else USERNAME
        manager = open_manager(
            username, "" if token else password, token, endpoint=f"{self.url}/1.3", read_timeout_s=20.0
        )
        return UpCloud(manager, now=self.clock.now, **options)


@contextmanager
def open_world(*, read_timeout_s: float = 20.0, **options: Any) -> Iterator[UpCloudWorld]:
    """options: of the emulator and its account."""
    clock = Clock()
    emulator = UpCloudEmulator(clock.now, **options)
    with served(emulator) as url:
        manager = open_manager(
            USERNAME, PASSWORD, endpoint=f"{url}/1.3", connect_timeout_s=20.0, read_timeout_s=read_timeout_s
        )
        yield UpCloudWorld(UpCloud(manager, now=clock.now), emulator, clock, url)
