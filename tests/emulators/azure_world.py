"""Azure over its emulator, through its SDK, with a clock that tests move."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from azure.core.credentials import AccessToken, TokenCredential

from tasks.clouds.azure import AzureCloud, Connection
from tests.emulators.azure import AzureEmulator
from tests.emulators.azure_state import SUBSCRIPTION
from tests.emulators.emulated import EmulatedWorld, Refusals
from tests.emulators.private_net import make_certificates
from tests.emulators.serving import served
from tests.memory_cloud import Clock

TOKEN = "a-token-of-a-test"
EXPIRES_UNIX_S = 4_000_000_000  # by the real clock


@cache
def certificates() -> Path:
    """The folder of a throw-away authority and of a server's certificate: the SDK sends tokens over TLS only. Made once
    per process."""
    folder = Path(mkdtemp(prefix="tokensweep-ca-"))
    make_certificates(folder, ("localhost",))
    return folder


def ca_file() -> str:
    return str(certificates() / "ca.pem")


@dataclass
class StaticCredential:
    """A token that somebody else has got."""

    token: str = TOKEN

    def get_token(self, *scopes: str, **kwargs: Any) -> AccessToken:
        return AccessToken(self.token, EXPIRES_UNIX_S)


@dataclass
class AzureWorld(EmulatedWorld):
    refusals = Refusals(
        create="virtualMachines.createOrUpdate",
        capacity="ZonalAllocationFailed",
        quota="QuotaTotal",
        throttle="TooManyRequests",
        auth="ExpiredAuthenticationToken",
    )

    cloud: AzureCloud
    emulator: AzureEmulator
    server_type: str = "Standard_D4as_v5"
    places: tuple[str, ...] = ("westeurope-1", "westeurope-2", "eastus-1", "northcentralus")

    def cloud_with(self, credential: TokenCredential | None = None, **options: Any) -> AzureCloud:
        """The adapter with other credentials or options, on the same subscription."""
        return _cloud(self.url, self.clock, credential or StaticCredential(), **options)


@contextmanager
def open_world(*, read_timeout_s: float = 30.0, **options: Any) -> Iterator[AzureWorld]:
    """options: of the emulator, its account and its shop."""
    clock = Clock()
    emulator = AzureEmulator(clock.now, **options)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates() / "server.pem")
    with served(emulator, tls=tls) as url:
        cloud = _cloud(url, clock, StaticCredential(), read_timeout_s=read_timeout_s)
        yield AzureWorld(cloud, emulator, clock, url)


def _cloud(url: str, clock: Clock, credential: TokenCredential, **options: Any) -> AzureCloud:
    connection = Connection(
        subscription_id=options.pop("subscription_id", SUBSCRIPTION),
        credential=credential,
        endpoint=url,
        prices_endpoint=url,
        ca_file=ca_file(),
        connect_timeout_s=30.0,
        read_timeout_s=options.pop("read_timeout_s", 30.0),
    )
    return AzureCloud(connection, now=clock.now, sleep=clock.sleep, poll_s=1.0, **options)


def ours(world: AzureWorld) -> list[str]:
    return sorted(thing.kind for thing in world.existing() if thing.ours)


def usd_per_hour(world: AzureWorld) -> float:
    return float(sum(thing.usd_per_hour for thing in world.existing() if thing.ours))


def entra(world: AzureWorld) -> dict[str, Any]:
    """Where the emulated Microsoft Entra ID is."""
    return {"authority": world.url, "disable_instance_discovery": True, "connection_verify": ca_file()}
