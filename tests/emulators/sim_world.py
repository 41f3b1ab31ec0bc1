"""The simulated vendor as a world for the conformance suite: calm, on a clock that stands still until one sleeps."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.clouds.sim import SimCloud, parse_options
from tasks.clouds.sim.errors import SimApiError
from tests.emulators.base import Existing, Fault, Faults
from tests.emulators.emulated import Refusals, Refuses
from tests.memory_cloud import Clock

SERVER_TYPE = "g3i-4"


class StillClock(Clock):
    """Moves when somebody sleeps."""

    def real_s(self, seconds: float) -> float:
        return seconds


class SimWorld(Refuses):
    """See `tests/contract/world.py`. One account in `folder`; another world on the same folder and clock is another
    process that looks at the same account."""

    refusals = Refusals(
        create="create",
        capacity="NoCapacity",
        quota="QuotaExceeded",
        throttle="TooManyRequests",
        auth="ExpiredToken",
    )

    def __init__(self, folder: Path, clock: StillClock, **options: Any) -> None:
        self.clock = clock
        self.faults = Faults()
        self._lost: list[Fault] = []
        self.cloud = SimCloud(folder, parse_options(options), clock=clock, hook=self._meet)
        self.server_type = SERVER_TYPE
        self.places = self.cloud.server_type(SERVER_TYPE).places
        self._n_foreign = 0

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
                ours=thing.ours,
                usd_per_hour=thing.usd_per_hour,
            )
            for thing in self.cloud.existing()
        ]

    def add_foreign(self) -> None:
        self._n_foreign += 1
        self.cloud.add_foreign(f"not-ours-{self._n_foreign}", self.places[0])

    def plant(self, *faults: Fault) -> None:
        self.faults.plant(*faults)

    def calls(self) -> list[str]:
        return list(self.faults.calls)

    def _meet(self, operation: str, done: bool) -> None:
        """The planted fault of this call, before its effect or after it."""
        if done:
            if self._lost:
                self._raise(self._lost.pop(), operation)
            return
        self._lost.clear()
        fault = self.faults.take(operation)
        if fault is not None and fault.after:
            self._lost.append(fault)
        elif fault is not None:
            self._raise(fault, operation)

    def _raise(self, fault: Fault, operation: str) -> None:
        if fault.how == "code":
            raise SimApiError(fault.code)
        if fault.how == "html_502":
            json.loads("<html>502</html>")
        if fault.how == "truncated":
            json.loads('{"server": {"id": "')
        if fault.how == "hang":
            self.clock.sleep(fault.seconds)
            raise TimeoutError(f"{operation}: timed out")
        raise ConnectionResetError(f"{operation}: connection reset by peer")


@contextmanager
def open_world(**options: Any) -> Iterator[SimWorld]:
    """A new account. options: of `SimOptions`; no faults unless asked for."""
    with tempfile.TemporaryDirectory(prefix="tokensweep-sim-") as folder:
        world = SimWorld(Path(folder), StillClock(), **options)
        try:
            yield world
        finally:
            world.cloud.close()
