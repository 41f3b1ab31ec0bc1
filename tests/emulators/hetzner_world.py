"""Hetzner over its emulator, through its SDK, with a clock that tests move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tasks.clouds.base import Cloud
from tasks.clouds.hetzner import HetznerCloud, open_client
from tests.emulators.base import Existing, Fault
from tests.emulators.hetzner import TOKEN, HetznerEmulator
from tests.emulators.serving import served
from tests.memory_cloud import Clock


@dataclass
class HetznerWorld:
    emulator: HetznerEmulator
    cloud: Cloud
    url: str
    clock: Clock
    server_type: str = "cx23"
    places: tuple[str, ...] = ("fsn1", "nbg1", "hel1")
    tokens: list[str] = field(default_factory=list)

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
        return Fault("POST /servers", how="code", code="resource_unavailable")

    def quota_fault(self) -> Fault:
        return Fault("POST /servers", how="code", code="resource_limit_exceeded")

    def throttle_fault(self) -> Fault:
        return Fault("POST /servers", how="code", code="rate_limit_exceeded")

    def auth_fault(self) -> Fault:
        return Fault("", how="code", code="unauthorized")

    def calls(self) -> list[str]:
        return list(self.emulator.faults.calls)

    def cloud_with(self, token: str, **options: Any) -> HetznerCloud:
        """The adapter with other credentials or options, on the same project."""
        client = open_client(token, endpoint=f"{self.url}/v1", connect_timeout_s=20.0, read_timeout_s=20.0)
        return HetznerCloud(client, now=self.clock.now, **options)


@contextmanager
def open_world(**options: Any) -> Iterator[HetznerWorld]:
    """options: of the emulator and its project."""
    clock = Clock()
    emulator = HetznerEmulator(clock.now, **options)
    with served(emulator) as url:
        client = open_client(TOKEN, endpoint=f"{url}/v1", connect_timeout_s=20.0, read_timeout_s=20.0)
        yield HetznerWorld(emulator, HetznerCloud(client, now=clock.now), url, clock)
