"""The protocol that every vendor module satisfies: create, get, list_owned, delete, classify, catalog.

Nothing else is vendor-specific. Retries, fallback to another zone, the ledger, the proof of deletion and
SSH are shared code (`lifecycle.py`, `tasks/remote`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Protocol, runtime_checkable

from tasks.domain.errors import (
    AmbiguousError,
    AuthError,
    CapacityError,
    ProviderError,
    QuotaError,
    RateLimitedError,
    UnsupportedError,
)
from tasks.domain.stockouts import DRY_S

OWNER_TAG = "tokensweep-owner"
INTENT_TAG = "tokensweep-intent"
DEADLINE_TAG = "tokensweep-deadline"  # absolute, unix seconds
SWEEP_TAG = "tokensweep-sweep"
OWNER = "tokensweep"


class ErrorKind(StrEnum):
    CAPACITY = "capacity"
    QUOTA = "quota"
    RATE_LIMITED = "rate_limited"
    AUTH = "auth"
    UNSUPPORTED = "unsupported"
    EXISTS = "exists"
    NOT_FOUND = "not_found"
    DELETE_BLOCKED = "delete_blocked"
    UNKNOWN = "unknown"


class Scope(StrEnum):
    """How far an error reaches: what must not be tried again."""

    ZONE = "zone"
    REGION = "region"
    SERVER_TYPE = "server_type"
    VENDOR = "vendor"


NO_CODE = "no_code"
"""Of an error to which neither the vendor nor HTTP gave one: a broken connection, an answer that is no answer."""


def http_code(exc: BaseException) -> str:
    """ "http_502" where an exception knows the status of the answer that it is about, else NO_CODE. Never the name of
    an exception's class: that is the SDK's, says nothing to the vendor's support, and changes with its version."""
    response = getattr(exc, "response", None)
    for status in (getattr(exc, "status_code", None), getattr(response, "status_code", None)):
        if isinstance(status, int):
            return f"http_{status}"
    return NO_CODE


def text_of(exc: BaseException) -> str:
    """What an exception without a code says, after the name of its class, which may be all that it tells."""
    name, text = type(exc).__name__, str(exc)
    return f"{name}: {text}" if text and text != name else name


@dataclass(frozen=True, kw_only=True)
class Classified:
    """What an exception of a vendor's SDK means. `may_exist`: the resource may have been created all the same.

    code: the vendor's own, else the HTTP status, else NO_CODE.
    """

    kind: ErrorKind
    scope: Scope
    may_exist: bool
    code: str
    message: str

    def to_error(self, subject: str) -> ProviderError:
        cls: type[ProviderError] = {
            ErrorKind.CAPACITY: CapacityError,
            ErrorKind.QUOTA: QuotaError,
            ErrorKind.RATE_LIMITED: RateLimitedError,
            ErrorKind.AUTH: AuthError,
            ErrorKind.UNSUPPORTED: UnsupportedError,
        }.get(self.kind, AmbiguousError if self.may_exist else ProviderError)
        return cls(f"{subject}: {self.message}", reason=self.code or self.kind.value)


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What is always true of a vendor. Sources are in docs/vendors.md.

    dry_s: how long a place that had none of a server type is not asked for it again, by anybody.
    """

    stopped_bills: bool
    billing_minimum_s: int
    billing_increment_s: int
    unique_names: bool
    idempotency_token: bool
    native_ttl: bool
    visibility_lag_s: float
    regions_are_zones: bool = False
    dry_s: float = DRY_S


@dataclass(frozen=True, kw_only=True)
class ServerType:
    """What a vendor sells. `places` are zones or regions, cheapest first; `price_per_hour` is that of the cheapest.

    arch: as `uname -m` says it, x86_64 or aarch64. prices: by place, where they differ. spot_prices: by place, empty
    where the vendor has none. memory_bytes, disk_bytes (0: the boot disk is chosen at the create), gpu_memory_bytes (of
    one GPU).
    """

    vendor: str
    name: str
    vcpus: int
    memory_bytes: int
    disk_bytes: int
    arch: str
    places: tuple[str, ...]
    price_per_hour: Decimal
    currency: str
    price_source: str
    price_read_unix_s: float
    gpus: int = 0
    gpu_model: str = ""
    gpu_memory_bytes: int = 0
    cpu_model: str = ""
    prices: dict[str, Decimal] = field(default_factory=dict)
    spot_prices: dict[str, Decimal] = field(default_factory=dict)
    link_bytes_per_s: float = 0.0
    exclusive: tuple[str, ...] = ()
    """Names of scarce things that it occupies (`local`: CPUs), so that a plan can tell what fits at once."""

    def price_in(self, place: str, *, spot: bool = False) -> Decimal:
        """Per hour in that place, in `currency`; its price on demand where no spot price of it is known."""
        on_demand = self.prices.get(place, self.price_per_hour)
        return self.spot_prices.get(place, on_demand) if spot else on_demand


@dataclass(frozen=True, kw_only=True)
class CreateSpec:
    """Everything a create needs. `name` and `token` derive from the intent, so a second call finds the first.

    disk_bytes: the boot disk, 0 for the vendor's smallest that holds Ubuntu. arch, gpus: choose the image.
    ssh_sources: CIDR networks that may reach port 22; empty for any.
    """

    intent_id: str
    name: str
    token: str
    server_type: str
    place: str
    deadline_unix_s: float
    sweep_id: str
    server_run_id: str
    client_public_key: str
    host_private_key: str
    host_public_key: str
    disk_bytes: int = 0
    arch: str = "x86_64"
    gpus: int = 0
    spot: bool = False
    ssh_sources: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ref:
    """Names one resource. `cloud_id` is the vendor's immutable id, or "" while it is not known."""

    vendor: str
    place: str
    name: str
    cloud_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One resource as the vendor shows it. kind: server, disk, ip, nic, key, group, process, cgroup, …

    server_type: of a server, as `Cloud.server_type` takes it, so that its price can be found where nobody wrote it
    down; "" where the vendor does not show it. usd_per_hour: 0 where the listing itself tells no price.
    """

    vendor: str
    place: str
    name: str
    cloud_id: str
    kind: str
    state: str  # pending | running | stopping | stopped | terminated
    tags: dict[str, str]
    created_unix_s: float
    address: str = ""
    ssh_port: int = 22
    username: str = "root"
    server_type: str = ""
    usd_per_hour: Decimal = Decimal(0)

    def ref(self) -> Ref:
        return Ref(vendor=self.vendor, place=self.place, name=self.name, cloud_id=self.cloud_id)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All that is ours. An incomplete listing proves nothing about what it lacks, and none about other accounts.

    account: as `KnowsAccount` tells it, put in by the shared code.
    """

    vendor: str
    resources: tuple[Resource, ...]
    complete: bool
    read_unix_s: float
    places: tuple[str, ...]
    problems: tuple[str, ...] = ()
    account: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that `tokensweep doctor` looked at without creating anything. ok None: it could not be told."""

    name: str
    ok: bool | None
    detail: str
    next_step: str = ""


@runtime_checkable
class Examinable(Protocol):
    """A vendor module that can look at its account."""

    def doctor(self) -> Sequence[Check]:
        """Identity, permissions, quotas, images and reachability. Creates nothing."""
        ...


class Cloud(Protocol):
    vendor: str
    traits: Traits

    def catalog(self) -> Sequence[ServerType]:
        """Every server type, with its places and price."""
        ...

    def server_type(self, name: str) -> ServerType:
        """One server type. Raises ConfigError for a name that the vendor does not sell."""
        ...

    def default_server_types(self) -> Sequence[str]:
        """Names that a sweep takes when it names none."""
        ...

    def create(self, spec: CreateSpec) -> Resource:
        """Ask for the server and return as soon as the vendor has accepted it; it may still be pending.

        Raises whatever the SDK raises; `classify` says what it means. A second call with the same spec
        returns or finds the first server where the vendor can tell, and never makes a second one there.
        `spec.tags` go onto every resource that it makes.
        """
        ...

    def get(self, ref: Ref) -> Resource | None:
        """The server as it is now, or None when the vendor says that there is none."""
        ...

    def list_owned(self) -> Listing:
        """Every resource of ours in every place, side resources included."""
        ...

    def delete(self, ref: Ref) -> None:
        """Ask for deletion of the server and all that it brought; returns when that is accepted.

        Deleting what is gone already is silent. A second call is harmless. Takes the Ref of whatever `list_owned`
        shows, side resources included; `cloud_id` is the same in create, get and list_owned.
        """
        ...

    def classify(self, exc: BaseException) -> Classified:
        """What an exception of the SDK means. What it does not know is UNKNOWN and may_exist. Never raises."""
        ...


@runtime_checkable
class KnowsCredentialsEnd(Protocol):
    """A vendor module whose credentials may end by themselves. Optional: without it they count as lasting."""

    def credentials_end_unix_s(self) -> float | None:
        """When they end (unix seconds by the vendor's clock); None when they are renewed or do not end."""
        ...


@runtime_checkable
class KnowsAccount(Protocol):
    """A vendor module that can tell whose servers its credentials make and see. Optional: without it one ledger is
    taken to have one account of the vendor."""

    def account(self) -> str:
        """The account, project or subscription: what is listed as a whole. No secret. Raises what the SDK raises."""
        ...
