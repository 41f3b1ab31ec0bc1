"""Simulated time: it began when the state was made, and goes `speedup` times as fast as the wall clock.

It is a function of the wall clock and of three numbers in the state, so every process reads the same time.
"""

from __future__ import annotations

import time

from tasks.clouds.sim.state import SimState
from tasks.domain.errors import ConfigError

EPOCH = "epoch"


class SimClock:
    """See `tasks/clouds/clock.py`. Opening a new state makes its epoch: now, by the wall clock."""

    def __init__(self, state: SimState, speedup: float) -> None:
        self._state = state
        epoch = state.value(EPOCH)
        if epoch is None:
            with state.transaction():
                epoch = state.value(EPOCH)
                if epoch is None:
                    wall_unix_s = time.time()
                    epoch = [wall_unix_s, wall_unix_s, speedup]
                    state.put_value(EPOCH, epoch)
        self._wall_unix_s, self._sim_unix_s, self.speedup = map(float, epoch)

    def now(self) -> float:
        return self._sim_unix_s + (time.time() - self._wall_unix_s) * self.speedup

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds) / self.speedup)

    def real_s(self, seconds: float) -> float:
        return seconds / self.speedup

    def set_speedup(self, speedup: float) -> None:
        """From now on; the time itself does not jump. Raises ConfigError while anything exists, because another
        process may be going by the clock as it was."""
        if speedup == self.speedup:
            return
        with self._state.transaction():
            now_unix_s = self.now()
            if self._state.existing(now_unix_s):
                raise ConfigError(
                    f"The simulated cloud runs at {self.speedup:g} times the speed of the wall clock, and has servers: "
                    f"its speedup cannot become {speedup:g} now.",
                    next_step="End them first (`tokensweep reap`), or take another TOKENSWEEP_HOME.",
                )
            epoch = [time.time(), now_unix_s, speedup]
            self._state.put_value(EPOCH, epoch)
        self._wall_unix_s, self._sim_unix_s, self.speedup = epoch
