"""Following the event log through cuts, freezes, gaps and ends: every event once, in order."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.domain.errors import AgentError, HostKeyMismatchError, UnreachableError
from tasks.remote.keys import new_host_key
from tasks.remote.spool import Spool
from tasks.remote.ssh import Session, Timeouts, connect
from tasks.remote.tail import follow_events
from tests.sshd import Proxy, Server, any_server, running

# The server's side of the contract in its smallest form: prints lines above --after, an empty line when it has
# nothing to say, 0 after Finished, 3 when the writer is dead.
TAIL = """
import json, os, sys, time
path, after, heartbeat_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
log, said = open(path, "rb"), time.monotonic()
rest = b""
while True:
    dead = os.path.exists(path + ".dead")
    lines = (rest + log.read()).split(b"\\n")
    rest = lines.pop()
    for line in lines:
        event = json.loads(line)
        if event["seq"] > after:
            os.write(1, line + b"\\n")
            after, said = event["seq"], time.monotonic()
        if event["kind"] == "Finished":
            sys.exit(0)
    if dead:
        sys.stderr.write("no process has the lock\\n")
        sys.exit(3)
    if time.monotonic() - said > heartbeat_s:
        os.write(1, b"\\n")
        said = time.monotonic()
    time.sleep(0.01)
"""


class Log:
    """An agent's event log on the server, written by the test."""

    def __init__(self, directory: Path, heartbeat_s: float = 0.1) -> None:
        self.path = directory / "events.jsonl"
        self.path.touch()
        self.script = directory / "tail.py"
        self.script.write_text(TAIL)
        self.heartbeat_s = heartbeat_s
        self.events: list[dict[str, Any]] = []

    def write(self, kind: str, **values: Any) -> None:
        event = {"seq": len(self.events) + 1, "unix_s": 1.5, "kind": kind, **values}
        self.events.append(event)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False) + "\n")

    def write_all(self, n: int, pause_s: float = 0.0) -> None:
        for i in range(n - 1):
            self.write("BenchRow", note="ü" * (i % 90), value=i)
            time.sleep(pause_s)
        self.write("Finished")

    def argv_for(self, after: int) -> list[str]:
        return [sys.executable, "-SE", str(self.script), str(self.path), str(after), str(self.heartbeat_s)]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with running(any_server(tmp_path_factory.mktemp("sshd"))) as server:
        yield server


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def log(tmp_path) -> Log:
    return Log(tmp_path)


class Follow:
    """follow_events with the test's thresholds, remembering what it reported."""

    def __init__(self, server: Server, port: int, log: Log) -> None:
        self.server, self.port, self.log = server, port, log
        self.sessions: list[Session] = []
        self.lost: list[UnreachableError] = []
        self.gaps: list[tuple[int, int]] = []

    def connect(self) -> Session:
        limits = Timeouts(connect_s=1, banner_s=0.5, auth_s=1, channel_s=1)
        session = connect(self.server.endpoint(port=self.port), timeout_s=0.8, timeouts=limits)
        self.sessions.append(session)
        return session

    def __call__(self, argv_for: Callable[[int], list[str]] | None = None, **more: Any) -> Iterator[dict[str, Any]]:
        options = {"give_up_s": 20.0, "silence_s": 5.0, "sleep": lambda s: time.sleep(min(s, 0.1)), **more}
        return follow_events(
            self.connect,
            argv_for or self.log.argv_for,
            on_gap=lambda expected, got: self.gaps.append((expected, got)),
            on_lost=self.lost.append,
            **options,
        )


@pytest.fixture
def follow(server, proxy, log) -> Iterator[Follow]:
    follow = Follow(server, proxy.port, log)
    yield follow
    assert not any(session.alive for session in follow.sessions), "a session was left open"


def printing(*lines: str, rc: int = 0) -> list[str]:
    return ["sh", "-c", 'rc=$0; for l in "$@"; do printf "%s\\n" "$l"; done; exit $rc', str(rc), *lines]


def event_line(seq: int, kind: str = "BenchRow") -> str:
    return json.dumps({"seq": seq, "kind": kind})


# -- without trouble --


def test_all_events_in_order_up_to_finished(follow, log) -> None:
    log.write_all(500)
    assert list(follow()) == log.events
    assert (follow.lost, len(follow.sessions)) == ([], 1)


def test_events_come_while_the_log_is_written(follow, log) -> None:
    writer = threading.Thread(target=log.write_all, args=(20, 0.02))
    writer.start()
    seen = 0
    for event in follow():
        seen += 1
        assert event == log.events[seen - 1]
    writer.join()
    assert seen == 20


def test_resumes_after_what_the_caller_has(follow, log) -> None:
    log.write_all(50)
    assert list(follow(after=30)) == log.events[30:]
    assert list(follow(after=50)) == []  # Finished was the last one


def test_heartbeats_keep_an_idle_connection(follow, log) -> None:
    timer = threading.Timer(2.5, log.write_all, args=(3,))
    timer.start()
    assert list(follow(silence_s=1.5)) == log.events
    assert (follow.lost, len(follow.sessions)) == ([], 1)


# -- lost connections --


@pytest.mark.parametrize("seed", range(3))
def test_cuts_at_any_byte_lose_and_double_nothing(follow, log, proxy, seed) -> None:
    rng = random.Random(seed)
    writer = threading.Thread(target=log.write_all, args=(400, 0.003))
    proxy.cut_after(down_bytes=3000)
    writer.start()
    seen = []
    for event in follow():
        seen.append(event)
        if len(seen) % 60 == 0:
            proxy.cut_after(down_bytes=rng.randrange(1, 4000))
    writer.join()
    assert seen == log.events
    assert len(follow.sessions) >= 3
    assert {error.reason for error in follow.lost} <= {
        "connection_lost",
        "no_answer",
        "timeout",
        "no_banner",
        "handshake_failed",
    }


def test_a_freeze_is_noticed_by_silence_and_nothing_is_lost(follow, log, proxy) -> None:
    writer = threading.Thread(target=log.write_all, args=(150, 0.02))
    writer.start()
    seen = []
    for event in follow(silence_s=0.6):
        seen.append(event)
        if len(seen) == 20:
            proxy.freeze()
            threading.Timer(1.5, proxy.thaw).start()
    writer.join()
    assert seen == log.events
    assert "silent" in {error.reason for error in follow.lost}
    assert len(follow.sessions) >= 2


def test_a_freeze_shorter_than_the_silence_changes_nothing(follow, log, proxy) -> None:
    writer = threading.Thread(target=log.write_all, args=(60, 0.02))
    writer.start()
    seen = []
    for event in follow(silence_s=10.0):
        seen.append(event)
        if len(seen) == 10:
            proxy.freeze()
            threading.Timer(0.5, proxy.thaw).start()
    writer.join()
    assert seen == log.events
    assert (follow.lost, len(follow.sessions)) == ([], 1)


def test_a_network_that_is_away_for_a_while_is_waited_for(follow, log, proxy) -> None:
    log.write("BenchRow")
    events = follow()
    assert next(events) == log.events[0]
    proxy.down()
    log.write_all(30)
    threading.Timer(1.0, proxy.up).start()
    assert list(events) == log.events[1:]
    assert "refused" in {error.reason for error in follow.lost}


def test_gives_up_when_nothing_is_heard_for_too_long(server, log) -> None:
    waited: list[float] = []
    tries: list[int] = []

    def never() -> Session:
        tries.append(1)
        raise UnreachableError("no way there.", reason="no_route")

    events = follow_events(never, log.argv_for, give_up_s=60, sleep=waited.append, now=lambda: sum(waited))
    with pytest.raises(UnreachableError, match=r"60 s.*no way there") as caught:
        next(events)
    assert caught.value.reason == "no_route"
    assert waited[:5] == [0, 0.5, 1, 2, 4]
    assert max(waited) == 10
    assert sum(waited) <= 60
    assert len(tries) == len(waited) + 1


def test_the_patience_begins_anew_with_every_line(follow, log, proxy) -> None:
    """Three losses, each shorter than give_up_s, together longer."""
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += max(seconds, 0.4)
        time.sleep(0.01)

    log.write("BenchRow")
    events = follow(give_up_s=1.0, sleep=sleep, now=lambda: clock[0])
    for i in range(4):
        assert next(events) == log.events[i]
        proxy.cut()
        log.write("BenchRow")
    log.write("Finished")
    assert list(events) == log.events[4:]
    assert clock[0] > 1.0


def test_a_server_that_takes_connections_but_never_speaks_is_given_up(follow) -> None:
    with pytest.raises(UnreachableError, match="Nothing was heard from the agent"):
        list(follow(lambda after: ["sleep", "30"], silence_s=0.2, give_up_s=2.0))
    assert follow.lost[0].reason == "silent"
    assert len(follow.sessions) >= 2


def test_a_tail_that_was_killed_is_started_again(follow, log) -> None:
    log.write_all(10)
    calls: list[int] = []

    def argv_for(after: int) -> list[str]:
        calls.append(after)
        if len(calls) == 1:
            return ["sh", "-c", f"head -n 4 {log.path}; kill -9 $$"]
        return log.argv_for(after)

    assert list(follow(argv_for)) == log.events
    assert calls == [0, 4]
    assert [error.reason for error in follow.lost] == ["tail_killed"]


def test_another_machine_at_the_address_is_not_talked_to(server, log) -> None:
    endpoint = server.endpoint(host_public_key=new_host_key().public)
    with pytest.raises(HostKeyMismatchError):
        list(follow_events(lambda: connect(endpoint, timeout_s=5), log.argv_for))


def test_leaving_early_closes_the_connection(follow, log) -> None:
    log.write_all(10)
    events = follow()
    next(events)
    assert follow.sessions[0].alive
    events.close()  # type: ignore[attr-defined]
    assert not follow.sessions[0].alive


# -- a log that breaks its contract --


def test_a_gap_is_asked_for_again(follow) -> None:
    calls: list[int] = []

    def argv_for(after: int) -> list[str]:
        calls.append(after)
        seqs = [1, 2, 5, 6] if len(calls) == 1 else range(after + 1, 6)
        return printing(*(event_line(i) for i in seqs), event_line(7 if len(calls) == 1 else 6, "Finished"))

    assert [event["seq"] for event in follow(argv_for)] == [1, 2, 3, 4, 5, 6]
    assert (calls, follow.gaps) == ([0, 2], [(3, 5)])
    assert len(follow.sessions) == 1


def test_a_gap_that_stays_is_an_error_after_what_was_whole(follow) -> None:
    seen: list[int] = []
    with pytest.raises(AgentError, match="from 2 to 5, also when asked again: 2 event") as caught:
        collect(follow(lambda after: printing(*map(event_line, (1, 2, 5)))), seen)
    assert caught.value.reason == "gap"
    assert seen == [1, 2]


def collect(events: Iterator[dict[str, Any]], seen: list[int]) -> None:
    for event in events:
        seen.append(event["seq"])


def test_duplicates_are_dropped(follow) -> None:
    lines = [event_line(i) for i in (1, 2, 2, 1, 3)]
    events = follow(lambda after: printing(*lines, event_line(4, "Finished")))
    assert [event["seq"] for event in events] == [1, 2, 3, 4]


def test_a_dead_agent_is_told_after_its_last_event(follow, log) -> None:
    log.write("BenchRow")
    log.write("BenchRow")
    Path(f"{log.path}.dead").touch()
    seen: list[int] = []
    with pytest.raises(AgentError, match=r"agent died on .* after event 2 .*no process has the lock") as caught:
        collect(follow(), seen)
    assert caught.value.reason == "agent_died"
    assert seen == [1, 2]
    assert follow.lost == []


@pytest.mark.parametrize(
    "line", ["Welcome to Ubuntu!", '{"seq": 2', "[]", '{"kind": "BenchRow"}', '{"seq": "2", "kind": "X"}', '{"seq": 2}']
)
def test_a_line_that_is_no_event_is_named(follow, line) -> None:
    seen: list[int] = []
    with pytest.raises(AgentError) as caught:
        collect(follow(lambda after: printing(event_line(1), line)), seen)
    assert caught.value.reason == "bad_line"
    assert repr(line) in str(caught.value)
    assert seen == [1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (printing(event_line(1)), "ended at event 1 without"),
        (printing(), "ended at event 0 without"),
        (["sh", "-c", "echo 'no module agent' >&2; exit 1"], r"status 1\): no module agent"),
        (["/no/such/python"], "status 127"),
    ],
)
def test_a_tail_that_fails_is_an_error_and_is_not_tried_for_ever(follow, argv, message) -> None:
    with pytest.raises(AgentError, match=message) as caught:
        list(follow(lambda after: argv))
    assert caught.value.reason == "tail_failed"


# -- the controller itself dies --

CONTROLLER = """
import sys
from pathlib import Path
from tasks.remote.ssh import Endpoint, connect
from tasks.remote.spool import Spool
from tasks.remote.tail import follow_events
port, user, host, key, spool, script, log = sys.argv[1:]
endpoint = Endpoint(address="127.0.0.1", port=int(port), username=user, host_public_key=host,
                    client_private_key=Path(key).read_text())
with Spool(Path(spool)) as spool:
    argv_for = lambda after: [sys.executable, "-SE", script, log, str(after), "0.1"]
    for event in follow_events(lambda: connect(endpoint, timeout_s=10), argv_for, after=spool.last_seq):
        spool.append(event)
"""


def test_a_controller_that_is_killed_again_and_again_loses_nothing(server, log, tmp_path) -> None:
    key, spool_path = tmp_path / "client", tmp_path / "spool" / "events.jsonl"
    key.write_text(server.client_key.private)
    endpoint = server.endpoint()
    argv = [sys.executable, "-c", CONTROLLER, str(server.port), endpoint.username, endpoint.host_public_key, str(key)]
    argv += [str(spool_path), str(log.script), str(log.path)]
    writer = threading.Thread(target=log.write_all, args=(600, 0.005))
    writer.start()
    kept = [0]
    for _ in range(3):
        controller = subprocess.Popen(argv)
        while controller.poll() is None and n_lines(spool_path) < kept[-1] + 20:
            time.sleep(0.01)
        os.kill(controller.pid, signal.SIGKILL)
        controller.wait()
        kept.append(n_lines(spool_path))
    subprocess.run(argv, check=True, timeout=60)
    writer.join()
    with Spool(spool_path) as spool:
        assert spool.read_all() == log.events
    assert kept == sorted(set(kept))
    assert n_lines(spool_path) == len(log.events)  # and none was written twice


def n_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
