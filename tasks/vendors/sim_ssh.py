"""A share of the simulated servers over real SSH: a controller is tried with real connections before a fleet is.

What happens on such a server is simulated as on the others; how its events arrive is not. An sshd of this machine
stands for all of them: the controller connects with the code that it always uses, and each server's agent is a process
there that prints events when they are due, as `agent.pyz tail` does.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from tasks.clouds.base import Resource
from tasks.clouds.hosts import Host, Started
from tasks.clouds.sim import SimCloud, SimHost, SimOptions
from tasks.domain.errors import AgentError, ConfigError, UnreachableError
from tasks.domain.run_plan import RunPlan
from tasks.remote.session import Session
from tasks.remote.ssh import Endpoint, connect
from tasks.remote.tail import EXIT_AGENT_DIED, follow_events

MODULE = "tasks.vendors.sim_ssh"
CHECKOUT = Path(__file__).resolve().parents[2]
HEARTBEAT_S = 5.0
EXIT_LOST = 255
"""As ssh itself exits when its connection is lost."""


def read_endpoint(path: Path) -> Endpoint:
    """A JSON file with the fields of Endpoint. Raises ConfigError that names the file."""
    try:
        return Endpoint(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as exc:
        raise ConfigError(
            f"TOKENSWEEP_SIM_SSH: {path} does not say where simulated servers answer: {exc}.",
            next_step="It is a JSON object of address, port, username, host_public_key and client_private_key.",
        ) from exc


class SshSimCloud(SimCloud):
    """A simulated cloud that reaches some of its servers over SSH. share: of the server types, 0 to 1."""

    def __init__(self, folder: Path, options: SimOptions, endpoint: Endpoint, share: float) -> None:
        super().__init__(folder, options)
        self._endpoint, self._share = endpoint, share

    def host(
        self,
        server: Resource,
        *,
        host_public_key: str,
        connect_timeout_s: float,
        give_up_s: float,
        sleep: Callable[[float], None],
    ) -> Host:
        simulated = SimHost(
            self,
            server.cloud_id,
            host_public_key,
            connect_timeout_s=connect_timeout_s,
            give_up_s=give_up_s,
            sleep=sleep,
        )
        if self.draws().uniform("ssh", server.server_type) >= self._share:
            return simulated
        return SshSimHost(self, simulated, self._endpoint, connect_timeout_s, give_up_s, sleep)


class SshSimHost:
    """One connection from `connect` to `start`, then as many as following takes, as with any server over SSH."""

    def __init__(
        self,
        cloud: SimCloud,
        simulated: SimHost,
        endpoint: Endpoint,
        connect_timeout_s: float,
        give_up_s: float,
        sleep: Callable[[float], None],
    ) -> None:
        self._cloud, self._simulated, self._endpoint = cloud, simulated, endpoint
        self._connect_timeout_s, self._give_up_s, self._sleep = connect_timeout_s, give_up_s, sleep
        self._session: Session | None = None

    def connect(self) -> None:
        self._simulated.connect()
        self._session = self._reach()

    def start(self, plan: RunPlan) -> Started:
        session, self._session = self._session or self._reach(), None
        with session:
            return self._simulated.start(plan)

    def events(self, after: int, on_lost: Callable[[Exception], None]) -> Iterator[dict[str, Any]]:
        agent = ["env", f"PYTHONPATH={CHECKOUT}", sys.executable, "-m", MODULE]

        def argv_for(seq: int) -> list[str]:
            return [*agent, str(self._cloud.folder), self._simulated.cloud_id, str(seq)]

        return follow_events(
            self._reach,
            argv_for,
            after=after,
            give_up_s=self._give_up_s,
            on_lost=on_lost,
            sleep=self._sleep,
            now=self._cloud.clock.now,
        )

    def _reach(self) -> Session:
        """A server that the vendor has ended answers no more, whatever answers in its place."""
        self._simulated.must_run()
        return connect(self._endpoint, timeout_s=self._connect_timeout_s, sleep=self._sleep)


# ---- on the server's side ---------------------------------------------------------------------------


def tell(line: str = "") -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def print_events(folder: Path, cloud_id: str, after: int) -> int:
    """What the tail of an agent prints: events as JSON lines when they are due, and an empty line while none is."""
    cloud = SimCloud(folder)

    def sleep(seconds: float) -> None:
        left_s = cloud.clock.real_s(seconds)
        while left_s > 0:
            time.sleep(min(left_s, HEARTBEAT_S))
            left_s -= HEARTBEAT_S
            tell()

    def lost(error: Exception) -> NoReturn:
        raise error

    server = SimHost(cloud, cloud_id, "", connect_timeout_s=0.0, give_up_s=0.0, sleep=sleep)
    try:
        for event in server.events(after, lost):
            tell(json.dumps(event))
    except UnreachableError:
        return EXIT_LOST
    except AgentError as exc:
        sys.stderr.write(exc.message)
        return EXIT_AGENT_DIED
    return 0


if __name__ == "__main__":
    sys.exit(print_events(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
