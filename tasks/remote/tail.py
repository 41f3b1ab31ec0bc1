"""Follow the agent's event log over SSH: every event once, in order, however often the connection is lost.

The tail command prints the events after a number as JSON lines with `seq` (1, 2, 3, …) and an empty line every few
seconds, so that silence means loss. It exits 0 after the line of kind `Finished` and 3 when the agent is dead.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.domain.errors import AgentError, UnreachableError
from tasks.remote.lines import LineStream
from tasks.remote.session import Session

FINISHED = "Finished"
EXIT_AGENT_DIED = 3
SILENCE_S = 20.0  # four heartbeats of the agent
BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 10.0


def follow_events(
    connect: Callable[[], Session],
    argv_for: Callable[[int], Sequence[str]],
    *,
    after: int = 0,
    give_up_s: float = 600.0,
    silence_s: float = SILENCE_S,
    on_gap: Callable[[int, int], None] | None = None,
    on_lost: Callable[[UnreachableError], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[dict[str, Any]]:
    """Yield the events after number `after`, up to and with `Finished`.

    argv_for(seq): the command that prints what comes after seq. Sessions from `connect` are closed here.
    give_up_s counts from when a loss was noticed to the next line. on_gap(expected, got) and on_lost(error) are told
    of what is being mended. Raises UnreachableError after give_up_s, and AgentError (`agent_died`, `bad_line`,
    `gap`, `tail_failed`) at once; other errors of `connect`, such as a wrong host key, pass through.
    """
    follower = _Follower(after, on_gap)
    loss = _Loss(give_up_s, on_lost, sleep, now)
    session: Session | None = None
    try:
        while not follower.finished:
            try:
                session = session or connect()
                with session.stream(argv_for(follower.last_seq), silence_s=silence_s) as lines:
                    for line in lines:
                        loss.over()
                        event = follower.take(line, session.label)
                        if event is not None:
                            yield event
                        if follower.finished or follower.must_ask_again:
                            break
                follower.stream_ended(lines)
            except UnreachableError as exc:
                if session is not None:
                    session.close()
                    session = None
                loss.wait(exc)
    finally:
        if session is not None:
            session.close()


@dataclass
class _Follower:
    """What has been seen, and what a line or the end of a stream means."""

    last_seq: int
    on_gap: Callable[[int, int], None] | None
    finished: bool = False
    must_ask_again: bool = False
    saw_lines: bool = False
    gap_at: int = -1

    def take(self, line: str, label: str) -> dict[str, Any] | None:
        """The event of a line, None for a heartbeat and for what was seen before."""
        if not line.strip():
            return None
        event = _parse(line, label)
        seq: int = event["seq"]
        if seq <= self.last_seq:
            return None
        if seq > self.last_seq + 1:
            self._gap(seq, label)
            return None
        self.last_seq = seq
        self.saw_lines = True
        self.finished = event["kind"] == FINISHED
        return event

    def _gap(self, seq: int, label: str) -> None:
        expected = self.last_seq + 1
        if self.gap_at == expected:
            raise AgentError(
                f"The event log on {label} goes from {self.last_seq} to {seq}, also when asked again: "
                f"{seq - expected} event(s) are lost.",
                reason="gap",
                next_step="What came before is kept; the cells after it are measured again in the next sweep.",
            )
        self.gap_at, self.must_ask_again = expected, True
        if self.on_gap is not None:
            self.on_gap(expected, seq)

    def stream_ended(self, lines: LineStream) -> None:
        """Decide by the exit status. Raises UnreachableError when asking again makes sense."""
        if self.finished:
            return
        if self.must_ask_again:
            self.must_ask_again = False
            return
        rc, label, said = lines.rc, lines.label, lines.stderr.strip()[-2000:]
        if rc == 0 and not self.saw_lines and self.last_seq > 0:
            self.finished = True  # `Finished` is among what the caller had already
        elif rc == 0:
            raise AgentError(
                f"The event log on {label} ended at event {self.last_seq} without `{FINISHED}`.", reason="tail_failed"
            )
        elif rc == EXIT_AGENT_DIED:
            raise AgentError(
                f"The agent died on {label} after event {self.last_seq} without finishing. {said}".strip(),
                reason="agent_died",
                next_step="What was measured before is kept. Its own output is beside its event log.",
            )
        elif rc is None or rc < 0 or rc > 128:
            raise UnreachableError(f"Reading the event log on {label} was ended by a signal.", reason="tail_killed")
        else:
            raise AgentError(
                f"The event log on {label} cannot be read (status {rc}): {said or 'it said nothing'}.",
                reason="tail_failed",
            )


@dataclass
class _Loss:
    """Waits between tries, longer each time, and gives up when nothing came for too long."""

    give_up_s: float
    on_lost: Callable[[UnreachableError], None] | None
    sleep: Callable[[float], None]
    now: Callable[[], float]
    since: float | None = None
    tries: int = field(default=0)

    def over(self) -> None:
        self.since, self.tries = None, 0

    def wait(self, error: UnreachableError) -> None:
        """The first try comes at once, since most losses are short. Raises UnreachableError in the end."""
        if self.on_lost is not None:
            self.on_lost(error)
        if self.since is None:
            self.since = self.now()
        backoff_s = min(BACKOFF_FIRST_S * 2 ** (self.tries - 1), BACKOFF_MOST_S) if self.tries else 0.0
        self.tries += 1
        if self.now() + backoff_s - self.since >= self.give_up_s:
            raise UnreachableError(
                f"Nothing was heard from the agent for {self.give_up_s:g} s, {self.tries} tries to connect later. "
                f"The last one: {error.message}",
                reason=error.reason,
                next_step="What was measured before is kept; the server is deleted like any other.",
            ) from error
        self.sleep(backoff_s)


def _parse(line: str, label: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError as exc:
        raise _bad_line(line, label, str(exc)) from exc
    if not isinstance(event, dict) or type(event.get("seq")) is not int or not isinstance(event.get("kind"), str):
        raise _bad_line(line, label, "it has no number `seq` or no `kind`")
    return event


def _bad_line(line: str, label: str, why: str) -> AgentError:
    return AgentError(
        f"The event log on {label} has a line that is no event ({why}): {line[:200]!r}.",
        reason="bad_line",
        next_step="If it is not the agent's, something there prints when a shell starts (see its .bashrc).",
    )
