"""A cloud in memory that behaves as badly as real ones do, for tests of everything above the vendor protocol.

It is deterministic: a virtual clock, and faults that a test plants. What exists, and so bills, is one thing; what
`get` and `list_owned` show of it is another, behind by the visibility lag. With a `Folder` in place of the dict its
servers outlive the process, for tests that kill one.
"""

from __future__ import annotations

import pickle
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from tasks.clouds.base import (
    OWNER,
    OWNER_TAG,
    Classified,
    CreateSpec,
    ErrorKind,
    Listing,
    Ref,
    Resource,
    Scope,
    ServerType,
    Traits,
)
from tasks.domain.errors import ConfigError

T = TypeVar("T")
USD_PER_HOUR = Decimal("0.36")


@dataclass
class Clock:
    unix_s: float = 1_800_000_000.0

    def now(self) -> float:
        return self.unix_s

    def sleep(self, seconds: float) -> None:
        self.unix_s += max(seconds, 0.001)


class CloudError(Exception):
    def __init__(self, kind: ErrorKind, *, scope: Scope = Scope.ZONE, may_exist: bool = False) -> None:
        super().__init__(f"the cloud says {kind.value}")
        self.kind, self.scope, self.may_exist = kind, scope, may_exist


LOST = CloudError(ErrorKind.UNKNOWN, may_exist=True)


@dataclass(frozen=True)
class Fault:
    """raised before the call has its effect, or after it (`acts`: the response is lost)."""

    raised: BaseException
    acts: bool = False


@dataclass(frozen=True)
class Thing:
    id: str
    kind: str
    name: str
    place: str
    token: str
    tags: dict[str, str]
    created_unix_s: float
    parent: str = ""
    ends_unix_s: float | None = None
    dies_unix_s: float | None = None

    def exists(self, now_unix_s: float) -> bool:
        return self.ends_unix_s is None or now_unix_s < self.ends_unix_s


class Folder(MutableMapping[str, Thing]):
    """Things as files, so that several processes share them and none takes them along when it is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, key: str) -> Thing:
        try:
            found = pickle.loads((self.path / key).read_bytes())
        except FileNotFoundError:
            raise KeyError(key) from None
        assert isinstance(found, Thing)
        return found

    def __setitem__(self, key: str, thing: Thing) -> None:
        part = self.path / f".{key}.{uuid.uuid4().hex}"
        part.write_bytes(pickle.dumps(thing))
        part.replace(self.path / key)

    def __delitem__(self, key: str) -> None:
        (self.path / key).unlink()

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in sorted(self.path.iterdir()) if not entry.name.startswith("."))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass
class MemoryCloud:
    """list_lag_s: how far listings are behind `get`, which is itself behind by lag_s. stock: servers left per place
    (absent: no end). faults: per method ("": any), one taken by each call. lies: how often `get` denies what exists.
    unreachable: places whose listing fails. dark: places that answer that there is nothing, and whose listing fails.
    stuck: names whose delete is accepted and ignored. surviving: kinds that outlive their server. double: a create
    makes two servers, as an SDK that sends again does."""

    now: Callable[[], float]
    vendor: str = "memory"
    things: MutableMapping[str, Thing] = field(default_factory=dict)
    places: tuple[str, ...] = ("north-1a", "north-1b", "south-1a")
    lag_s: float = 0.0
    list_lag_s: float = 0.0
    boot_s: float = 0.0
    delete_s: float = 0.0
    unique_names: bool = False
    idempotency_token: bool = False
    side_kinds: tuple[str, ...] = ("disk", "ip")
    stock: dict[str, int] = field(default_factory=dict)
    faults: dict[str, deque[Fault]] = field(default_factory=dict)
    lies: int = 0
    unreachable: set[str] = field(default_factory=set)
    dark: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)
    surviving: set[str] = field(default_factory=set)
    double: bool = False
    account_id: str = ""
    dies_after_s: float | None = None
    calls: Counter[str] = field(default_factory=Counter)
    history: list[str] = field(default_factory=list)
    on_call: Callable[[str], None] = lambda point: None

    def __post_init__(self) -> None:
        self.traits = Traits(
            stopped_bills=True,
            billing_minimum_s=60,
            billing_increment_s=1,
            unique_names=self.unique_names,
            idempotency_token=self.idempotency_token,
            native_ttl=False,
            visibility_lag_s=self.lag_s + self.list_lag_s,
        )

    def plant(self, method: str, *faults: Fault) -> None:
        self.faults.setdefault(method, deque()).extend(faults)

    def existing(self, kind: str | None = None, *, ours: bool = True) -> list[Thing]:
        """What really exists, and bills."""
        return [
            thing
            for thing in list(self.things.values())
            if thing.exists(self.now())
            and (kind is None or thing.kind == kind)
            and (not ours or thing.tags.get(OWNER_TAG) == OWNER)
        ]

    def usd_per_hour(self) -> Decimal:
        """The meter: what everything together costs now."""
        return sum((USD_PER_HOUR for thing in self.existing(ours=False) if thing.kind == "server"), Decimal(0))

    def add(self, name: str, tags: dict[str, str], kind: str = "server", place: str = "north-1a") -> Thing:
        """Something that somebody made without us."""
        made = Thing(
            id=uuid.uuid4().hex,
            kind=kind,
            name=name,
            place=place,
            token="",
            tags=tags,
            created_unix_s=self.now(),
        )
        self.things[made.id] = made
        return made

    def account(self) -> str:
        return self.account_id

    def catalog(self) -> Sequence[ServerType]:
        return [self.server_type(name) for name in self.default_server_types()]

    def default_server_types(self) -> Sequence[str]:
        return ("small",)

    def server_type(self, name: str) -> ServerType:
        if name != "small":
            raise ConfigError(f"{self.vendor} sells no {name}.")
        return ServerType(
            vendor=self.vendor,
            name=name,
            vcpus=2,
            memory_bytes=2**32,
            disk_bytes=2**34,
            arch="x86_64",
            places=self.places,
            price_per_hour=USD_PER_HOUR,
            currency="USD",
            price_source="test",
            price_read_unix_s=self.now(),
        )

    def create(self, spec: CreateSpec) -> Resource:
        fault = self._begin("create")
        if self.idempotency_token:
            for thing in list(self.things.values()):
                if thing.kind == "server" and thing.token == spec.token:
                    return self._end("create", fault, self._resource(thing))
        if self.unique_names and any(t.name == spec.name for t in self.existing("server", ours=False)):
            raise CloudError(ErrorKind.EXISTS, may_exist=True)
        if self.stock.get(spec.place, 1) <= 0:
            raise CloudError(ErrorKind.CAPACITY)
        if spec.place in self.stock:
            self.stock[spec.place] -= 1
        made = [self._make(spec) for _ in range(2 if self.double else 1)]
        return self._end("create", fault, self._resource(made[-1]))

    def get(self, ref: Ref) -> Resource | None:
        fault = self._begin("get")
        for thing in list(self.things.values()):
            by_id = ref.cloud_id and thing.id == ref.cloud_id
            by_name = not ref.cloud_id and thing.kind == "server" and (thing.name, thing.place) == (ref.name, ref.place)
            if (by_id or by_name) and thing.place not in self.dark and self._shown(thing, behind=False):
                if self.lies:
                    self.lies -= 1
                    return self._end("get", fault, None)
                return self._end("get", fault, self._resource(thing))
        return self._end("get", fault, None)

    def list_owned(self) -> Listing:
        fault = self._begin("list_owned")
        failing = self.unreachable | self.dark
        shown = [
            self._resource(thing)
            for thing in list(self.things.values())
            if thing.tags.get(OWNER_TAG) == OWNER and thing.place not in failing and self._shown(thing, behind=True)
        ]
        listing = Listing(
            vendor=self.vendor,
            resources=tuple(shown),
            complete=not failing,
            read_unix_s=self.now(),
            places=tuple(place for place in self.places if place not in failing),
            problems=tuple(f"{place} cannot be reached" for place in sorted(failing)),
        )
        return self._end("list_owned", fault, listing)

    def delete(self, ref: Ref) -> None:
        fault = self._begin("delete")
        thing = self.things.get(ref.cloud_id)
        deaf = thing is None or thing.name in self.stuck or thing.place in self.dark
        if thing is not None and thing.exists(self.now()) and not deaf:
            ends_unix_s = self.now() + self.delete_s
            for other in list(self.things.values()):
                goes_along = other.parent == thing.id and other.kind not in self.surviving
                if (other.id == thing.id or goes_along) and other.ends_unix_s is None:
                    self.things[other.id] = replace(other, ends_unix_s=ends_unix_s)
        self._end("delete", fault, None)

    def classify(self, exc: BaseException) -> Classified:
        if isinstance(exc, CloudError):
            return Classified(
                kind=exc.kind, scope=exc.scope, may_exist=exc.may_exist, code=exc.kind.value, message=str(exc)
            )
        return Classified(
            kind=ErrorKind.UNKNOWN, scope=Scope.ZONE, may_exist=True, code=type(exc).__name__, message=str(exc)
        )

    def _begin(self, method: str) -> Fault | None:
        self.calls[method] += 1
        self.history.append(method)
        self.on_call(f"{method} before")
        waiting = self.faults.get(method) or self.faults.get("")
        fault = waiting.popleft() if waiting else None
        if fault is not None and not fault.acts:
            raise fault.raised
        return fault

    def _end(self, method: str, fault: Fault | None, result: T) -> T:
        self.on_call(f"{method} after")
        if fault is not None:
            raise fault.raised
        return result

    def _make(self, spec: CreateSpec) -> Thing:
        server = Thing(
            id=uuid.uuid4().hex,
            kind="server",
            name=spec.name,
            place=spec.place,
            token=spec.token,
            tags=dict(spec.tags),
            created_unix_s=self.now(),
            dies_unix_s=None if self.dies_after_s is None else self.now() + self.dies_after_s,
        )
        self.things[server.id] = server
        for kind in self.side_kinds:
            side = replace(server, id=uuid.uuid4().hex, kind=kind, parent=server.id, dies_unix_s=None)
            self.things[side.id] = side
        return server

    def _shown(self, thing: Thing, *, behind: bool) -> bool:
        """Whether the API shows it: late to appear everywhere, and in listings also late to go."""
        now_unix_s = self.now()
        lag_s = self.lag_s + (self.list_lag_s if behind else 0.0)
        if now_unix_s < thing.created_unix_s + lag_s:
            return False
        return thing.exists(now_unix_s - (lag_s if behind else 0.0))

    def _resource(self, thing: Thing) -> Resource:
        now_unix_s = self.now()
        state = "running" if now_unix_s >= thing.created_unix_s + self.boot_s else "pending"
        if thing.ends_unix_s is not None:
            state = "stopping" if thing.exists(now_unix_s - self.lag_s) else "terminated"
        elif thing.dies_unix_s is not None and now_unix_s >= thing.dies_unix_s:
            state = "stopped"
        return Resource(
            vendor=self.vendor,
            place=thing.place,
            name=thing.name,
            cloud_id=thing.id,
            kind=thing.kind,
            state=state,
            tags=dict(thing.tags),
            created_unix_s=thing.created_unix_s,
            address="192.0.2.1" if state == "running" and thing.kind == "server" else "",
            usd_per_hour=USD_PER_HOUR if thing.kind == "server" else Decimal(0),
        )
