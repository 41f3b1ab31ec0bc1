"""Hetzner over its emulator, through its SDK, with a clock that tests move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tasks.clouds.hetzner import HetznerCloud, open_client
from tests.emulators.emulated import EmulatedWorld, Refusals
from tests.emulators.hetzner import TOKEN, HetznerEmulator
from tests.emulators.serving import served
from tests.memory_cloud import Clock


@dataclass
class HetznerWorld(EmulatedWorld):
    refusals = Refusals(
        create="POST /servers",
        capacity="resource_unavailable",
        quota="resource_limit_exceeded",
        throttle="rate_limit_exceeded",
        auth="unauthorized",
    )

    emulator: HetznerEmulator
    server_type: str = "cx23"
    places: tuple[str, ...] = ("fsn1", "nbg1", "hel1")

    def cloud_with(self, token: str, **options: Any) -> HetznerCloud:
        """The adapter with other credentials or options, on the same project."""
        client = open_client(token, endpoint=f"{self.url}/v1", connect_timeout_s=20.0, read_timeout_s=20.0)
        return HetznerCloud(client, now=self.clock.now, **options)


@contextmanager
def open_world(*, read_timeout_s: float = 20.0, **options: Any) -> Iterator[HetznerWorld]:
    """options: of the emulator and its project."""
    clock = Clock()
    emulator = HetznerEmulator(clock.now, **options)
    with served(emulator) as url:
        client = open_client(TOKEN, endpoint=f"{url}/v1", connect_timeout_s=20.0, read_timeout_s=read_timeout_s)
        yield HetznerWorld(HetznerCloud(client, now=clock.now), emulator, clock, url)
