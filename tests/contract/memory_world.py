"""The cloud in memory as a VendorWorld: the same suites run on it as on every vendor's emulator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tasks.clouds.base import OWNER, OWNER_TAG, ErrorKind, Scope
from tests import memory_cloud
from tests.emulators.base import Existing, Fault
from tests.emulators.emulated import Refusals, Refuses
from tests.memory_cloud import LOST, USD_PER_HOUR, Clock, CloudError, MemoryCloud

_CODES = {
    "capacity": CloudError(ErrorKind.CAPACITY),
    "quota": CloudError(ErrorKind.QUOTA, scope=Scope.REGION),
    "throttle": CloudError(ErrorKind.RATE_LIMITED),
    "auth": CloudError(ErrorKind.AUTH, scope=Scope.VENDOR),
}


@dataclass
class MemoryWorld(Refuses):
    refusals = Refusals(create="create", capacity="capacity", quota="quota", throttle="throttle", auth="auth")

    cloud: MemoryCloud
    clock: Clock
    server_type: str = "small"
    places: tuple[str, ...] = ("north-1a", "north-1b", "south-1a")
    _n_foreign: int = field(default=0)

    def now(self) -> float:
        return self.clock.now()

    def sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    def existing(self) -> list[Existing]:
        return [
            Existing(
                kind=thing.kind,
                name=thing.name,
                cloud_id=thing.id,
                place=thing.place,
                ours=thing.tags.get(OWNER_TAG) == OWNER,
                usd_per_hour=USD_PER_HOUR,
            )
            for thing in self.cloud.existing(ours=False)
        ]

    def add_foreign(self) -> None:
        self._n_foreign += 1
        self.cloud.add(f"not-ours-{self._n_foreign}", {"owner": "somebody-else"})

    def plant(self, *faults: Fault) -> None:
        for fault in faults:
            raised: Exception = LOST
            if fault.how == "code":
                raised = _CODES[fault.code]
            elif fault.how in ("html_502", "truncated"):
                raised = ValueError("Expecting value: line 1 column 1 (char 0)")
            self.cloud.plant(fault.operation, *[memory_cloud.Fault(raised, acts=fault.after)] * fault.times)

    def mend(self) -> None:
        """Every fault is over."""
        cloud = self.cloud
        for planted in (cloud.faults, cloud.unreachable, cloud.dark, cloud.stuck):
            planted.clear()
        cloud.lies, cloud.double = 0, False

    def calls(self) -> list[str]:
        return list(self.cloud.history)


@contextmanager
def open_world(**options: Any) -> Iterator[MemoryWorld]:
    clock = Clock()
    yield MemoryWorld(MemoryCloud(clock.now, **options), clock)
