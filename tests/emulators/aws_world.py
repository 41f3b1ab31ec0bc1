"""The emulated AWS on loopback with our module opened on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import boto3

from tasks.clouds.aws import AwsCloud, AwsOptions
from tasks.clouds.base import DEADLINE_TAG, INTENT_TAG, OWNER, OWNER_TAG, CreateSpec
from tests.emulators.aws import ACCESS_KEY, SECRET_KEY, AwsEmulator
from tests.emulators.base import Existing
from tests.emulators.emulated import EmulatedWorld, Refusals
from tests.emulators.serving import served
from tests.memory_cloud import Clock

START_UNIX_S = 1_795_000_000.0


@dataclass
class AwsWorld(EmulatedWorld):
    refusals = Refusals(
        create="RunInstances",
        capacity="InsufficientInstanceCapacity",
        quota="VcpuLimitExceeded",
        throttle="RequestLimitExceeded",
        auth="AuthFailure",
    )

    cloud: AwsCloud
    emulator: AwsEmulator
    server_type: str = "c7i.large"
    places: tuple[str, ...] = ("us-east-1a", "us-east-1b", "eu-west-1a")


@cache
def _session() -> Any:
    """One for all worlds: it keeps the service models, which take most of a second to read."""
    return boto3.Session(aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY)


def make_spec(attempt: int = 0, **changes: Any) -> CreateSpec:
    spec = CreateSpec(
        intent_id=f"intent-{attempt}",
        name=f"tokensweep-{attempt:020x}",
        token=f"{attempt:064x}",
        server_type="c7i.large",
        place="us-east-1a",
        deadline_unix_s=START_UNIX_S + 3600,
        sweep_id="sweep",
        server_run_id="run",
        client_public_key="ssh-ed25519 AAAAclient",
        host_private_key="-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n-----END OPENSSH PRIVATE KEY-----\n",
        host_public_key="ssh-ed25519 AAAAhost",
        disk_bytes=30 * 2**30,
        ssh_sources=("203.0.113.7/32", "2001:db8::/64"),
        tags={OWNER_TAG: OWNER, INTENT_TAG: f"intent-{attempt}", DEADLINE_TAG: "1795003600", "odd": "a:b/c=d @é"},
    )
    return replace(spec, **changes)


def ours(world: AwsWorld, kind: str = "") -> list[Existing]:
    return [thing for thing in world.existing() if thing.ours and kind in ("", thing.kind)]


@contextmanager
def open_world(*, read_timeout_s: float = 20.0, regions: tuple[str, ...] = (), **options: Any) -> Iterator[AwsWorld]:
    """regions: those that our module is to keep to. options: of the emulator."""
    clock = Clock(START_UNIX_S)
    emulator = AwsEmulator(now=clock.now, **options)
    try:
        with served(emulator) as url:
            chosen = AwsOptions(endpoint_url=url, regions=regions, read_timeout_s=read_timeout_s, page_size=5)
            cloud = AwsCloud(_session(), chosen, now=clock.now)
            yield AwsWorld(cloud=cloud, emulator=emulator, clock=clock, url=url)
    finally:
        emulator.close()
