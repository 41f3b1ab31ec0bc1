"""Azure over its emulator, through its SDK, with a clock that tests move."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from azure.core.credentials import AccessToken, TokenCredential

from tasks.clouds.azure import AzureCloud, Connection
from tasks.clouds.base import DEADLINE_TAG, INTENT_TAG, OWNER, OWNER_TAG, CreateSpec
from tests.emulators.azure import AzureEmulator
from tests.emulators.azure_state import SUBSCRIPTION
from tests.emulators.base import Existing, Fault
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
class AzureWorld:
    emulator: AzureEmulator
    cloud: AzureCloud
    url: str
    clock: Clock
    server_type: str = "Standard_D4as_v5"
    places: tuple[str, ...] = ("westeurope-1", "westeurope-2", "eastus-1", "northcentralus")

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

    def clear_faults(self) -> None:
        self.emulator.faults.clear()

    def capacity_fault(self) -> Fault:
        return Fault("virtualMachines.createOrUpdate", how="code", code="ZonalAllocationFailed")

    def quota_fault(self) -> Fault:
        return Fault("virtualMachines.createOrUpdate", how="code", code="QuotaTotal")

    def throttle_fault(self) -> Fault:
        return Fault("virtualMachines.createOrUpdate", how="code", code="TooManyRequests")

    def auth_fault(self) -> Fault:
        return Fault("", how="code", code="ExpiredAuthenticationToken")

    def calls(self) -> list[str]:
        return list(self.emulator.faults.calls)

    def cloud_with(self, credential: TokenCredential | None = None, **options: Any) -> AzureCloud:
        """The adapter with other credentials or options, on the same subscription."""
        return _cloud(self.url, self.clock, credential or StaticCredential(), **options)


@contextmanager
def open_world(**options: Any) -> Iterator[AzureWorld]:
    """options: of the emulator, its account and its shop."""
    clock = Clock()
    emulator = AzureEmulator(clock.now, **options)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates() / "server.pem")
    with served(emulator, tls=tls) as url:
        yield AzureWorld(emulator, _cloud(url, clock, StaticCredential()), url, clock)


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


def spec_of(world: AzureWorld, number: int = 1, **changes: Any) -> CreateSpec:
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


def ours(world: AzureWorld) -> list[str]:
    return sorted(thing.kind for thing in world.existing() if thing.ours)


def usd_per_hour(world: AzureWorld) -> float:
    return float(sum(thing.usd_per_hour for thing in world.existing() if thing.ours))


def entra(world: AzureWorld) -> dict[str, Any]:
    """Where the emulated Microsoft Entra ID is."""
    return {"authority": world.url, "disable_instance_discovery": True, "connection_verify": ca_file()}
