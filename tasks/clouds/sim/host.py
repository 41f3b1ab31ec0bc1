"""How a server run uses a simulated server: it connects, starts an agent and follows its events, all without SSH."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tasks.clouds.hosts import Started
from tasks.clouds.sim import catalog
from tasks.clouds.sim.machine import Machine
from tasks.clouds.sim.play import Line, Play
from tasks.domain.errors import AgentError, HostKeyMismatchError, UnreachableError
from tasks.domain.run_plan import RunPlan

if TYPE_CHECKING:
    from tasks.clouds.sim.cloud import SimCloud
    from tasks.clouds.sim.state import Thing

SENT_BYTES = 24_000_000
LOST_CONNECTION_S = 40.0
RETRY_S = 10.0
SHORTEST_WAIT_S = 0.05
"""On the wall. What is due within it is handed out together, so that a run costs few wake-ups."""


class SimHost:
    """See `tasks/clouds/hosts.py`. What happens was decided by seed, server type and number of the start, so another
    process that asks for the events of a running agent gets the same ones."""

    def __init__(
        self,
        cloud: SimCloud,
        cloud_id: str,
        host_public_key: str,
        *,
        connect_timeout_s: float,
        give_up_s: float,
        sleep: Callable[[float], None],
    ) -> None:
        self._cloud, self.cloud_id, self._host_public_key = cloud, cloud_id, host_public_key
        self._connect_timeout_s, self._give_up_s, self._sleep = connect_timeout_s, give_up_s, sleep

    def connect(self) -> None:
        clock, draws = self._cloud.clock, self._cloud.draws()
        give_up_unix_s = clock.now() + self._connect_timeout_s
        server = self._server()
        subject = ("" if server is None else server.server_type, "connect", self._count("connect"))
        answers = not draws.happens("ssh_never", *subject)
        self._sleep(draws.between(4.0, 20.0, "sshd", *subject))
        while (server := self._running()) is None or not answers:
            if clock.now() >= give_up_unix_s:
                raise self._unreachable(f"did not answer within {self._connect_timeout_s:.0f} s.", "ssh_timeout")
            self._sleep(RETRY_S)
        if server.host_public_key != self._host_public_key or draws.happens("host_key_mismatch", *subject):
            raise HostKeyMismatchError(
                f"The simulated server {self.cloud_id} showed another host key than the one that it was created with.",
                reason="host_key_mismatch",
                next_step="Nothing was sent to it; it is deleted like any other.",
            )

    def start(self, plan: RunPlan) -> Started:
        """A second start finds the agent running."""
        server = self._server()
        if server is None:
            raise AgentError(f"The simulated server {self.cloud_id} has gone.", reason="server_gone")
        if server.plan:
            return Started(server.agent_started_unix_s, 0)
        kind = catalog.server_type(server.server_type)
        self._sleep(1.0 + SENT_BYTES / kind.link_bytes_per_s)
        n_agent = self._count("agent")
        started_unix_s = self._cloud.clock.now()
        with self._cloud.state.transaction():
            self._cloud.state.change(
                self.cloud_id, plan=plan.to_json(), agent_started_unix_s=started_unix_s, n_agent=n_agent
            )
        return Started(started_unix_s, SENT_BYTES)

    def events(self, after: int, on_lost: Callable[[Exception], None]) -> Iterator[dict[str, Any]]:
        server = self._server()
        if server is None or not server.plan:
            raise AgentError(f"No agent was started on the simulated server {self.cloud_id}.", reason="agent_died")
        machine, lines = self._lines(server)
        clock = self._cloud.clock
        shortest_s = SHORTEST_WAIT_S / clock.real_s(1.0)
        breaks_at = int(len(lines) * machine.between(0.1, 0.9, "breaks")) if machine.happens("connection_lost") else -1
        until_unix_s = server.agent_started_unix_s
        for line in lines[after:]:
            due_unix_s = server.agent_started_unix_s + line["t_s"]
            if due_unix_s > until_unix_s:
                if due_unix_s > clock.now():
                    self._sleep(max(due_unix_s - clock.now(), shortest_s))
                self._await_running(on_lost)
                until_unix_s = clock.now()
            if line["seq"] == breaks_at != after + 1:  # who takes up there has met it
                on_lost(
                    UnreachableError(f"The connection to the simulated server {self.cloud_id} broke.", reason="reset")
                )
                self._sleep(LOST_CONNECTION_S)
            yield line
        if not lines or lines[-1]["kind"] != "Finished":
            raise AgentError(
                f"The agent died on the simulated server {self.cloud_id} after event {len(lines)} without finishing.",
                reason="agent_died",
                next_step="What was measured before is kept.",
            )

    def _lines(self, server: Thing) -> tuple[Machine, list[Line]]:
        kind = catalog.server_type(server.server_type)
        machine = Machine(kind, catalog.silicon(kind.name), self._cloud.draws(), server.n_agent)
        play = Play(
            RunPlan.from_json(server.plan),
            machine,
            started_unix_s=server.agent_started_unix_s,
            telemetry_s=self._cloud.options.telemetry_s,
        )
        return machine, play.play()

    def must_run(self) -> None:
        """Raises UnreachableError for a server that the vendor has ended: it answers no more."""
        if self._running() is None:
            raise UnreachableError(
                f"The simulated server {self.cloud_id} does not answer any more.", reason="server_gone"
            )

    def _await_running(self, on_lost: Callable[[Exception], None]) -> None:
        """Raises UnreachableError after the usual patience."""
        try:
            self.must_run()
        except UnreachableError as lost:
            on_lost(lost)
            give_up_unix_s = self._cloud.clock.now() + self._give_up_s
            while self._running() is None:
                if self._cloud.clock.now() >= give_up_unix_s:
                    raise
                self._sleep(RETRY_S)

    def _unreachable(self, what: str, reason: str) -> UnreachableError:
        return UnreachableError(f"The simulated server {self.cloud_id} {what}", reason=reason)

    def _server(self) -> Thing | None:
        return self._cloud.state.thing(self.cloud_id)

    def _running(self) -> Thing | None:
        server = self._server()
        return server if server is not None and self._cloud.is_running(server) else None

    def _count(self, what: str) -> int:
        server = self._server()
        with self._cloud.state.transaction():
            return self._cloud.state.count("" if server is None else server.server_type, what)
