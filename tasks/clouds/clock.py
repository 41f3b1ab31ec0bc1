"""The clock by which a vendor's deadlines, ages and bills go: this machine's, unless the vendor brings its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tasks.clouds.base import Cloud


class Clock(Protocol):
    """Unix seconds, the same in every process that asks."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None:
        """Return when so many seconds of this clock have gone by."""
        ...

    def real_s(self, seconds: float) -> float:
        """How long so many seconds of this clock take on the wall."""
        ...


@dataclass(frozen=True)
class WallClock:
    """A clock made of two functions, by default this machine's own."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep

    def real_s(self, seconds: float) -> float:
        return seconds


WALL = WallClock()


def clock_of(cloud: Cloud, default: Clock = WALL) -> Clock:
    """The vendor's own clock, its attribute `clock`, where it has one."""
    clock: Clock = getattr(cloud, "clock", default)
    return clock
