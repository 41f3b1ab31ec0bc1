"""Commands, floods, timeouts, files and archives over a real connection, whole and broken."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import stat
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.domain.errors import CommandFailedError, ConfigError, RemoteError, UnreachableError
from tasks.remote.lines import LineStream
from tasks.remote.ssh import Session, Timeouts, connect
from tests.sshd import SSHD, Proxy, Server, any_server, running

NASTY = [
    "",
    " ",
    "a b",
    "$HOME",
    "`id`",
    "'",
    '"',
    "\\",
    "*",
    "a\nb",
    "-n",
    "~",
    "ünï 世界",
    "; exit 9",
    "#",
    "!!",
    "\t",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with running(any_server(tmp_path_factory.mktemp("sshd"))) as server:
        yield server


@pytest.fixture
def session(server) -> Iterator[Session]:
    with connect(server.endpoint(), timeout_s=10) as session:
        yield session


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


def over(proxy: Proxy, server: Server, **limits: float) -> Session:
    return connect(server.endpoint(port=proxy.port), timeout_s=10, timeouts=Timeouts(**limits))


# -- commands --


def test_every_argument_arrives_as_it_was_given(session) -> None:
    script = 'for a in "$@"; do printf "%s\\0" "$a"; done'
    assert session.run(["sh", "-c", script, "sh", *NASTY], timeout_s=10).stdout.split("\0") == [*NASTY, ""]


def test_a_failure_names_command_status_and_what_it_said(session) -> None:
    argv = ["sh", "-c", "echo out; echo 'no such türe' >&2; exit 7"]
    with pytest.raises(CommandFailedError) as caught:
        session.run(argv, timeout_s=10)
    assert caught.value.reason == "exit_7"
    assert all(part in str(caught.value) for part in ("exit 7", "no such türe", session.label))
    completed = session.run(argv, timeout_s=10, check=False)
    assert (completed.rc, completed.stdout, completed.stderr) == (7, "out\n", "no such türe\n")


def test_a_command_that_a_signal_ends_is_no_lost_connection(session) -> None:
    """A login shell that does not become the command (dash) tells of the signal by its own exit status."""
    with pytest.raises(CommandFailedError) as caught:
        session.run(["sh", "-c", "kill -9 $$"], timeout_s=10)
    assert caught.value.reason in ("signal", "exit_137")
    rc = session.run(["sh", "-c", "kill -9 $$"], timeout_s=10, check=False).rc
    assert rc == (-1 if caught.value.reason == "signal" else 137)
    assert session.alive


def test_a_flood_on_stderr_does_not_stall_and_its_tail_is_kept(session) -> None:
    script = "yes error | head -c 12000000 >&2; echo last words >&2; echo done"
    completed = session.run(["sh", "-c", script], timeout_s=60)
    assert completed.stdout == "done\n"
    assert completed.stderr.endswith("error\nlast words\n")
    assert len(completed.stderr) <= 65536


def test_both_outputs_flooded_in_turn_arrive_whole(session) -> None:
    script = "for i in 1 2 3; do head -c 3000000 /dev/zero | tr '\\0' o; head -c 3000000 /dev/zero >&2; done"
    assert session.run(["sh", "-c", script], timeout_s=60).stdout == "o" * 9_000_000


def test_eight_mebibytes_of_stdout_are_whole(session, tmp_path) -> None:
    text = os.urandom(4 << 20).hex()
    (tmp_path / "big").write_text(text)
    assert session.run(["cat", str(tmp_path / "big")], timeout_s=60).stdout == text


def test_bytes_that_are_no_text_are_replaced_not_fatal(session) -> None:
    assert session.run(["printf", "a\\377b"], timeout_s=10).stdout == "a\ufffdb"


def test_endless_output_is_stopped(session, monkeypatch) -> None:
    monkeypatch.setattr("tasks.remote.session.STDOUT_MAX_BYTES", 1 << 20)
    with pytest.raises(CommandFailedError) as caught:
        session.run(["yes"], timeout_s=60)
    assert caught.value.reason == "output_too_large"
    assert session.run(["echo", "still here"], timeout_s=10).stdout == "still here\n"


def test_a_timeout_leaves_the_session_usable(session) -> None:
    with pytest.raises(CommandFailedError, match=r"had not ended after 0\.3 s") as caught:
        session.run(["sh", "-c", "echo working >&2; sleep 20"], timeout_s=0.3)
    assert caught.value.reason == "timeout"
    assert "working" in str(caught.value)
    with pytest.raises(CommandFailedError):  # one that never stops printing
        session.run(["sh", "-c", "while :; do echo x; sleep 0.01; done"], timeout_s=0.3)
    assert session.run(["echo", "still here"], timeout_s=10).stdout == "still here\n"


@pytest.mark.parametrize("target", ["1", "2"])
def test_a_flood_without_end_does_not_put_off_the_timeout(session, target, monkeypatch) -> None:
    monkeypatch.setattr("tasks.remote.session.STDOUT_MAX_BYTES", 1 << 40)
    with pytest.raises(CommandFailedError) as caught:
        session.run(["sh", "-c", f"yes >&{target}"], timeout_s=0.3)
    assert caught.value.reason == "timeout"


@pytest.mark.skipif(SSHD is None, reason="sshd is not installed")
def test_more_commands_at_once_than_sshd_allows_is_no_lost_connection(session) -> None:
    talking = ["sh", "-c", "while :; do echo; sleep 0.1; done"]
    waiting: list[LineStream] = []
    with pytest.raises(RemoteError) as caught:
        for _ in range(15):  # OpenSSH's own limit is ten
            waiting.append(session.stream(talking))
    assert caught.value.reason == "not_started"
    assert session.alive
    waiting.pop().close()
    for _ in range(50):  # the place is free when the command has met its closed pipe
        with contextlib.suppress(RemoteError):
            assert session.run(["echo", "room again"], timeout_s=10).stdout == "room again\n"
            return
        time.sleep(0.1)
    raise AssertionError("no command runs any more")


# -- input --


def test_input_arrives_whole_while_output_floods_first(session) -> None:
    data = os.urandom(5_000_000)
    script = "head -c 5000000 /dev/zero | tr '\\0' x; sha256sum"
    stdout = session.run(["sh", "-c", script], timeout_s=60, stdin=data).stdout
    assert stdout[:5_000_000] == "x" * 5_000_000
    assert stdout[5_000_000:].split()[0] == hashlib.sha256(data).hexdigest()


def test_without_input_a_reading_command_ends(session) -> None:
    assert session.run(["cat"], timeout_s=10).stdout == ""
    assert session.run(["wc", "-c"], timeout_s=10, stdin=b"").stdout.strip() == "0"


def test_a_command_that_ignores_its_input_does_not_cost_the_session(session) -> None:
    assert session.run(["true"], timeout_s=10, stdin=b"x" * 12_000_000).rc == 0
    assert session.run(["head", "-c", "3"], timeout_s=10, stdin=b"abcdef" * 2_000_000).stdout == "abc"
    assert session.run(["echo", "still here"], timeout_s=10).stdout == "still here\n"


class EndlessFile(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        return b"z" * size


class BrokenFile(io.RawIOBase):
    def __init__(self) -> None:
        self.reads = 0

    def read(self, size: int = -1) -> bytes:
        self.reads += 1
        if self.reads > 3:
            raise OSError(5, "Input/output error")
        return b"z" * size


def test_input_that_cannot_be_read_is_never_taken_for_whole(session, tmp_path) -> None:
    target = tmp_path / "done"
    with pytest.raises(ConfigError, match="Input/output error"):
        session.run(["sh", "-c", f"cat >/dev/null && touch {target}"], timeout_s=10, stdin=BrokenFile())
    assert session.run(["echo", "still here"], timeout_s=10).stdout == "still here\n"


# -- lost and frozen connections --


def test_a_cut_connection_is_an_error_and_not_a_short_answer(server, proxy) -> None:
    session = over(proxy, server)
    proxy.cut_after(down_bytes=2_000_000)
    with pytest.raises(UnreachableError) as caught:
        session.run(["sh", "-c", "head -c 9000000 /dev/zero"], timeout_s=30)
    assert caught.value.reason == "connection_lost"
    assert session.label in str(caught.value)
    assert not session.alive
    with pytest.raises(UnreachableError):
        session.run(["true"], timeout_s=5)
    session.close()


def test_a_server_that_freezes_before_it_answers_costs_no_more_than_the_limit(server, proxy) -> None:
    session = over(proxy, server, channel_s=0.5)
    proxy.freeze()
    with pytest.raises(UnreachableError):
        session.run(["true"], timeout_s=60)
    session.close()


def test_a_server_that_freezes_while_it_is_sent_input_does_not_hold_the_caller(server) -> None:
    with Proxy(server.port, narrow=True) as proxy:
        session = over(proxy, server, dead_after_s=3600)
        session._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)  # the sender stops in the kernel, too
        threading.Timer(0.5, proxy.freeze).start()
        with pytest.raises((CommandFailedError, UnreachableError)):
            session.run(["sh", "-c", "cat >/dev/null"], timeout_s=2, stdin=EndlessFile())
        session.close()


def test_a_server_that_freezes_while_a_file_is_copied_does_not_hold_the_caller(server, proxy, tmp_path) -> None:
    session = over(proxy, server)
    assert session.put(b"1", str(tmp_path / "small")) == 1
    proxy.freeze()
    with pytest.raises(UnreachableError, match="took more than"):
        session.put(b"x" * 60_000_000, str(tmp_path / "large"), timeout_s=1)
    assert not (tmp_path / "large").exists()


def test_close_ends_what_other_threads_wait_for_and_may_be_called_again(session) -> None:
    with ThreadPoolExecutor(2) as pool:
        running_command = pool.submit(session.run, ["sleep", "30"], timeout_s=60)
        lines = session.stream(["sleep", "30"], silence_s=60)
        following = pool.submit(next, lines)
        time.sleep(0.3)
        session.close()
        for waiting in (running_command, following):
            with pytest.raises(UnreachableError) as caught:
                waiting.result(timeout=10)
            assert caught.value.reason == "closed"
    session.close()
    with pytest.raises(UnreachableError, match="closed here"):
        session.run(["true"], timeout_s=5)


# -- lines --


def test_lines_come_one_by_one_and_then_the_status(session) -> None:
    lines = session.stream(["sh", "-c", "echo one; echo; printf 'zwei ü\\r\\nlast'; echo why >&2; exit 3"])
    assert list(lines) == ["one", "", "zwei ü", "last"]
    assert lines.rc == 3
    assert lines.stderr == "why\n"


def test_a_line_is_given_out_while_the_command_still_runs(session) -> None:
    with session.stream(["sh", "-c", "echo now; sleep 30"], silence_s=20) as lines:
        assert next(lines) == "now"
        assert lines.rc is None
    assert session.run(["echo", "still here"], timeout_s=10).stdout == "still here\n"


def test_silence_is_told_from_an_end(session) -> None:
    lines = session.stream(["sh", "-c", "echo one; sleep 30"], silence_s=0.4)
    assert next(lines) == "one"
    with pytest.raises(UnreachableError) as caught:
        next(lines)
    assert caught.value.reason == "silent"


def test_stderr_alone_does_not_break_silence_but_does_not_stall(session) -> None:
    lines = session.stream(["sh", "-c", "yes | head -c 9000000 >&2; echo through"], silence_s=20)
    assert list(lines) == ["through"]


def test_a_line_cut_by_a_lost_connection_is_not_given_out(server, proxy) -> None:
    with over(proxy, server) as session:
        lines = session.stream(["sh", "-c", "echo whole; printf half; sleep 30"], silence_s=20)
        assert next(lines) == "whole"
        proxy.cut()
        with pytest.raises(UnreachableError) as caught:
            next(lines)
        assert caught.value.reason == "connection_lost"


def test_a_line_without_end_is_stopped(session, monkeypatch) -> None:
    monkeypatch.setattr("tasks.remote.lines.LINE_MAX_BYTES", 1 << 20)
    with pytest.raises(CommandFailedError, match="a line of more than"):
        next(session.stream(["cat", "/dev/zero"], silence_s=20))


# -- files --


def test_put_writes_content_and_mode_and_leaves_nothing_else(session, tmp_path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "source").write_bytes(data)
    target = tmp_path / "there" / "größe 1"
    target.parent.mkdir()
    assert session.put(tmp_path / "source", str(target), 0o755) == len(data)
    assert target.read_bytes() == data
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert session.put(b"", str(target), 0o600) == 0
    assert target.read_bytes() == b""
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(target.parent) == [target.name]


def test_a_copy_that_is_cut_leaves_the_old_file_as_it_was(server, proxy, tmp_path) -> None:
    target = tmp_path / "plan.json"
    target.write_text("old")
    with over(proxy, server) as session:
        proxy.cut_after(up_bytes=1_000_000)
        with pytest.raises(UnreachableError):
            session.put(b"n" * 9_000_000, str(target))
    assert target.read_text() == "old"


def test_what_the_server_refuses_is_named_and_the_session_goes_on(session, tmp_path) -> None:
    with pytest.raises(RemoteError) as caught:
        session.put(b"x", str(tmp_path / "missing" / "file"))
    assert caught.value.reason == "put_refused"
    assert str(tmp_path / "missing" / "file") in str(caught.value)
    (tmp_path / "directory").mkdir()
    with pytest.raises(RemoteError):
        session.put(b"x", str(tmp_path / "directory"))  # a directory of that name is in the way
    assert os.listdir(tmp_path) == ["directory"]
    assert session.put(b"x", str(tmp_path / "file")) == 1


def test_a_local_file_that_is_missing_is_a_plain_error(session, tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        session.put(tmp_path / "missing", "/nowhere")


def test_put_many_and_the_count_of_bytes_sent(session, tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 1000)
    before = session.bytes_sent
    files: list[tuple[Path | bytes, str, int]] = [
        (tmp_path / "a", str(tmp_path / "b"), 0o644),
        (b"c" * 500, str(tmp_path / "c"), 0o600),
    ]
    assert session.put_many(files) == 1500
    assert session.bytes_sent - before == 1500
    session.run(["cat"], timeout_s=10, stdin=b"d" * 700)
    assert session.bytes_sent - before == 1500 + 700 + len("cat")
    assert (tmp_path / "b").read_bytes() == b"a" * 1000


def test_many_threads_share_one_session(session, tmp_path) -> None:
    def work(i: int) -> str:
        session.put(str(i).encode() * 10_000, str(tmp_path / f"file{i}"))
        return session.run(["cat", str(tmp_path / f"file{i}")], timeout_s=30).stdout

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(18))) == [str(i) * 10_000 for i in range(18)]


# -- archives --


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid = len(data), 0o755, 12345
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("kind", [bytes, io.BytesIO, Path])
def test_an_archive_is_unpacked_and_its_command_started_in_one_go(session, tmp_path, kind) -> None:
    archive = packed({"agent/run": b"#!/bin/sh\necho agent $1; cat\n", "agent/data": os.urandom(100_000)})
    source = archive
    if kind is Path:
        source = tmp_path / "archive.tar.gz"
        source.write_bytes(archive)
    elif kind is io.BytesIO:
        source = io.BytesIO(archive)
    directory = tmp_path / "new ünd deep"
    before = session.bytes_sent
    completed = session.put_tar(source, str(directory), then=[str(directory / "agent" / "run"), "a b"])
    assert completed.stdout == "agent a b\n"
    assert (directory / "agent" / "data").stat().st_size == 100_000
    assert (directory / "agent" / "data").stat().st_uid == os.getuid()
    assert session.bytes_sent - before >= len(archive)


def test_a_truncated_archive_starts_nothing(session, tmp_path) -> None:
    archive = packed({"x": os.urandom(500_000)})
    started = tmp_path / "started"
    for length in (1000, len(archive) // 2, len(archive) - 4):
        with pytest.raises(CommandFailedError):
            session.put_tar(archive[:length], str(tmp_path / "d"), then=["touch", str(started)])
    assert not started.exists()


def test_an_archive_cut_by_a_lost_connection_starts_nothing(server, proxy, tmp_path) -> None:
    archive = packed({"x": os.urandom(3_000_000)})
    started = tmp_path / "started"
    with over(proxy, server) as session:
        proxy.cut_after(up_bytes=1_500_000)
        with pytest.raises(UnreachableError):
            session.put_tar(archive, str(tmp_path / "d"), then=["touch", str(started)])
    with connect(server.endpoint(), timeout_s=10) as session:
        session.run(["sleep", "0.3"], timeout_s=10)
    assert not started.exists()


def test_what_is_no_gzip_is_refused_before_it_is_sent(session, tmp_path) -> None:
    before = session.bytes_sent
    with pytest.raises(ConfigError, match="no gzip file"):
        session.put_tar(b"PK\x03\x04", str(tmp_path))
    assert session.bytes_sent == before


def test_how_long_twelve_megabytes_take(server, tmp_path, record_property) -> None:
    """Reported, not judged: SFTP against one exec that unpacks from its input, each on a fresh connection."""
    runtime = packed({"llama-bench": os.urandom(12_000_000)})
    (tmp_path / "u").mkdir()
    with connect(server.endpoint(), timeout_s=10) as session:
        t0 = time.perf_counter()
        assert session.put(runtime, str(tmp_path / "runtime.tar.gz")) == len(runtime)
        put_s = time.perf_counter() - t0
        session.run(["tar", "-xzf", str(tmp_path / "runtime.tar.gz"), "-C", str(tmp_path / "u")], timeout_s=60)
        both_s = time.perf_counter() - t0
    with connect(server.endpoint(), timeout_s=10) as session:
        t0 = time.perf_counter()
        session.put_tar(io.BytesIO(runtime), str(tmp_path / "t"), then=["true"])
        tar_s = time.perf_counter() - t0
    record_property("put_s", put_s)
    record_property("put_tar_s", tar_s)
    sys.stdout.write(f"\n12 MB: SFTP put {put_s:.3f} s, with unpacking {both_s:.3f} s; put_tar {tar_s:.3f} s\n")
    assert (tmp_path / "t" / "llama-bench").read_bytes() == (tmp_path / "u" / "llama-bench").read_bytes()
