"""How a server run uses a server: connect, start the agent, follow its events.

Servers answer over SSH (`tasks/benchmark.py`). A vendor whose servers do not brings hosts of its own, and everything
above (spool, lake, gates, views) cannot tell the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from tasks.clouds.base import Resource
from tasks.domain.run_plan import RunPlan

SIMULATED = "simulated"
"""Stands in rows wherever a real server would name what it measured with: weights, engine, build."""


@dataclass(frozen=True)
class Started:
    """When the agent was started (unix seconds by the vendor's clock) and how many bytes had to be sent for it."""

    agent_started_unix_s: float
    bytes_sent: int


class Host(Protocol):
    """One server that runs. Blocking; what is told to end raises out of its sleep."""

    def connect(self) -> None:
        """Wait until it answers, and make sure that it is the one. Raises UnreachableError, HostKeyMismatchError."""
        ...

    def start(self, plan: RunPlan) -> Started:
        """Put agent and plan there and start the agent; raises AgentError when it does not start."""
        ...

    def events(self, after: int, on_lost: Callable[[Exception], None]) -> Iterator[dict[str, Any]]:
        """The agent's events after that number, in order, up to `Finished`, over as many connections as it takes.

        on_lost hears of what is being mended. Raises UnreachableError when that cannot be, AgentError when the agent
        has died.
        """
        ...


@runtime_checkable
class BringsHosts(Protocol):
    """A vendor module whose servers are not reached over SSH and run no engine of ours.

    weights: what rows of such servers say; a preset that measures them says the same.
    """

    weights: str

    def host(
        self,
        server: Resource,
        *,
        host_public_key: str,
        connect_timeout_s: float,
        give_up_s: float,
        sleep: Callable[[float], None],
    ) -> Host:
        """sleep: takes seconds of the vendor's clock, and raises when the server run is told to end."""
        ...


@runtime_checkable
class Configurable(Protocol):
    """A vendor module that takes options of a preset."""

    def check_options(self, options: dict[str, Any]) -> None:
        """As `configure`, but changes nothing."""
        ...

    def configure(self, options: dict[str, Any]) -> None:
        """Take these options instead of the ones before. Raises ConfigError for one that there is not."""
        ...
