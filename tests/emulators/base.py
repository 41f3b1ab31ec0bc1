"""What all emulators of vendors share: servers that may be real machines, what exists and bills, and faults.

An emulator is a WSGI application that speaks the vendor's protocol to the vendor's own SDK. It keeps state, takes
time, bills, refuses what the vendor's schema does not allow, and fails on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from threading import Lock
from typing import Any, Literal, Protocol

StartResponse = Callable[..., Any]
WsgiApp = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]

How = Literal["drop", "html_502", "truncated", "hang", "code"]


@dataclass(frozen=True, kw_only=True)
class Existing:
    """One resource that the emulated vendor really has, whatever its API shows. usd_per_hour: what it bills now."""

    kind: str
    name: str
    cloud_id: str
    place: str
    ours: bool
    usd_per_hour: Decimal


@dataclass
class Fault:
    """Happens to the next `times` calls whose operation contains `operation`.

    after: the call has had its effect already (its response is lost); else it has none. how: the connection is
    dropped; a gateway answers HTML; JSON (or XML) is cut in the middle; nothing comes until the client hangs up, or for
    `seconds`; or the vendor's own error `code`, which only the emulator knows how to say.
    """

    operation: str
    how: How = "drop"
    after: bool = False
    times: int = 1
    code: str = ""
    seconds: float = 0.0


@dataclass
class Faults:
    """Planted by tests, taken by calls; and the count of all calls by operation."""

    planted: list[Fault] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    def plant(self, *faults: Fault) -> None:
        with self._lock:
            self.planted.extend(faults)

    def clear(self) -> None:
        with self._lock:
            self.planted.clear()

    def take(self, operation: str) -> Fault | None:
        """The fault that this call meets, once per planted time."""
        with self._lock:
            self.calls.append(operation)
            for fault in self.planted:
                if fault.times > 0 and fault.operation in operation:
                    fault.times -= 1
                    return fault
        return None


@dataclass(frozen=True, kw_only=True)
class Guest:
    """What a server was created with: its user data decides who may log in and which host key it shows."""

    cloud_id: str
    name: str
    user_data: str
    vcpus: int
    memory_bytes: int


class Machines(Protocol):
    """Where emulated servers run."""

    def start(self, guest: Guest) -> None:
        """Begin to boot; returns at once."""
        ...

    def address(self, cloud_id: str) -> str:
        """Its address once it runs, "" before that and after its end."""
        ...

    def stop(self, cloud_id: str) -> None:
        """End it at once; silent for one that has ended."""
        ...


@dataclass
class NoMachines:
    """Servers that run at once and answer nothing, for everything that is tested without SSH."""

    running: dict[str, str] = field(default_factory=dict)

    def start(self, guest: Guest) -> None:
        self.running[guest.cloud_id] = f"192.0.2.{len(self.running) % 250 + 1}"

    def address(self, cloud_id: str) -> str:
        return self.running.get(cloud_id, "")

    def stop(self, cloud_id: str) -> None:
        self.running.pop(cloud_id, None)


class Emulator(Protocol):
    """hosts: the DNS names that the SDK talks to by default. `app` is served under all of them.

    Construct with `(now=time.time, machines=NoMachines())`; everything timed goes by `now`.
    """

    vendor: str
    hosts: tuple[str, ...]
    faults: Faults
    app: WsgiApp

    def operation(self, environ: dict[str, Any]) -> str:
        """The vendor's name of the call: "RunInstances", "POST /v1/servers", "instances.insert"."""
        ...

    def error(self, code: str, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer as the vendor does when it refuses with this code."""
        ...

    def existing(self) -> list[Existing]:
        """All that exists and may bill, ours and foreign."""
        ...

    def add_foreign(self) -> None:
        """A server (with its disk and address) that somebody else made in the same account."""
        ...
