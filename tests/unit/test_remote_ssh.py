"""Connecting: readiness, the pinned host key, the login, and what is never looked at."""

from __future__ import annotations

import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tasks.domain.errors import ConfigError, HostKeyMismatchError, RemoteError, UnreachableError
from tasks.remote.keys import fingerprint, new_client_key, new_host_key
from tasks.remote.ssh import Session, Timeouts, connect
from tests.sshd import SSHD, AsyncsshServer, Server, Sshd, any_server, free_port, running, write_private

QUICK = Timeouts(connect_s=1, banner_s=0.3, auth_s=5, channel_s=5)
needs_sshd = pytest.mark.skipif(SSHD is None, reason="sshd is not installed")


class VirtualClock:
    """Time passes only by sleeping (and a little by every look at the clock)."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.sleeps: list[float] = []

    def now(self) -> float:
        self.now_s += 0.001
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_s += seconds


def must_not_sleep(seconds: float) -> None:
    raise AssertionError(f"tried again after {seconds} s")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(any_server(tmp_path_factory.mktemp("sshd"))) as server:
        yield server


@pytest.mark.parametrize("kind", [pytest.param(Sshd, marks=needs_sshd), AsyncsshServer])
def test_connects_runs_and_copies_on_either_server(tmp_path, kind) -> None:
    with running(kind(tmp_path)) as server, connect(server.endpoint(), timeout_s=10) as session:
        assert session.run(["echo", "grüße, 世界"], timeout_s=10).stdout == "grüße, 世界\n"
        session.put(b"x" * 100_000, str(tmp_path / "copied"), 0o600)
        assert (tmp_path / "copied").read_bytes() == b"x" * 100_000
        assert session.run(["sh", "-c", "wc -c; exit 3"], timeout_s=10, check=False, stdin=b"12345").rc == 3
        assert session.alive
    assert not session.alive


def test_a_wrong_host_key_ends_at_once_and_before_any_login(tmp_path) -> None:
    with running(any_server(tmp_path)) as server:
        wrong = new_host_key()
        with pytest.raises(HostKeyMismatchError) as caught:
            connect(server.endpoint(host_public_key=wrong.public), timeout_s=30, sleep=must_not_sleep)
        message = str(caught.value)
        assert fingerprint(wrong.public) in message
        assert fingerprint(server.host_key.public) in message
        assert "delete the server" in message
        if isinstance(server, Sshd):
            assert "publickey" not in server.log.read_text()  # no user name, no key was offered


@needs_sshd
def test_a_server_without_a_key_of_our_type_is_another_machine(tmp_path) -> None:
    other = tmp_path / "ecdsa"
    write_private(other, ecdsa_key())
    with (
        running(Sshd(tmp_path, host_key_files=(other,))) as server,
        pytest.raises(HostKeyMismatchError, match="no host key of type ssh-ed25519"),
    ):
        connect(server.endpoint(), timeout_s=30, sleep=must_not_sleep)


@needs_sshd
def test_keys_of_other_types_beside_ours_are_not_chosen(tmp_path) -> None:
    server = Sshd(tmp_path, host_key_files=(tmp_path / "ecdsa", tmp_path / "ed25519"))
    write_private(tmp_path / "ecdsa", ecdsa_key())
    write_private(tmp_path / "ed25519", server.host_key.private)
    with running(server), connect(server.endpoint(), timeout_s=10) as session:
        assert session.run(["echo", "ok"], timeout_s=10).stdout == "ok\n"


def ecdsa_key() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()


def test_a_server_that_comes_up_late_is_waited_for(tmp_path) -> None:
    server = any_server(tmp_path)
    tries: list[float] = []

    def sleep(seconds: float) -> None:
        tries.append(seconds)
        if len(tries) == 3:
            server.start()
        time.sleep(seconds)

    try:
        with connect(server.endpoint(), timeout_s=30, sleep=sleep) as session:
            assert session.run(["true"], timeout_s=10).rc == 0
        assert len(tries) >= 3
    finally:
        server.stop()


def test_a_closed_port_is_given_up_at_the_deadline() -> None:
    clock = VirtualClock()
    endpoint = Server.endpoint(dead_server())
    with pytest.raises(UnreachableError) as caught:
        connect(endpoint, timeout_s=60, sleep=clock.sleep, now=clock.now)
    assert caught.value.reason == "refused"
    assert endpoint.label in str(caught.value)
    assert "60 s" in str(caught.value)
    assert len(clock.sleeps) > 50
    assert clock.now_s <= 60.5


def dead_server() -> Server:
    server = Server.__new__(Server)
    server.port = free_port()
    server.host_key, server.client_key = new_host_key(), new_client_key()
    return server


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.0 400 Bad Request\r\n\r\n", None])
def test_an_open_port_that_is_no_ssh_server_is_tried_again_and_named(greeting: bytes | None) -> None:
    """Silent, talking something else, or hanging up at once, as a port does while its server boots."""
    server = dead_server()
    held: list[socket.socket] = []

    def answer(listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            held.append(sock)
            if greeting is None:
                sock.close()
            else:
                sock.sendall(greeting)

    with socket.create_server(("127.0.0.1", server.port)) as listener:
        thread = threading.Thread(target=answer, args=(listener,), daemon=True)
        thread.start()
        with pytest.raises(UnreachableError) as caught:
            connect(Server.endpoint(server), timeout_s=1.5, timeouts=QUICK)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert caught.value.reason == "no_banner"
    assert len(held) >= 2
    for sock in held:
        sock.close()


def test_a_refused_login_is_named_and_not_tried_for_ever(server) -> None:
    stranger = new_client_key()
    endpoint = server.endpoint(client_private_key=stranger.private)
    with pytest.raises(RemoteError) as caught:
        connect(endpoint, timeout_s=60, sleep=must_not_sleep, login_grace_s=0)
    assert not isinstance(caught.value, UnreachableError)
    assert caught.value.reason == "login_refused"
    assert repr(endpoint.username) in str(caught.value)


def test_a_key_that_is_installed_after_sshd_is_up_gets_in(server) -> None:
    late = new_client_key()

    def install(seconds: float) -> None:
        with server.authorized_keys.open("a") as file:
            file.write(late.public + "\n")

    with connect(server.endpoint(client_private_key=late.private), timeout_s=60, sleep=install) as session:
        assert session.alive


@needs_sshd
def test_nothing_of_the_users_own_setup_is_read(server, tmp_path, monkeypatch) -> None:
    """A known_hosts that contradicts us does not matter, and a key of the home directory does not let us in."""
    home = tmp_path / "user"
    (home / ".ssh").mkdir(parents=True)
    write_private(home / ".ssh" / "id_ed25519", server.client_key.private)
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {new_host_key().public}\n")
    monkeypatch.setenv("HOME", str(home))
    with connect(server.endpoint(), timeout_s=10) as session:
        assert session.alive
    with pytest.raises(RemoteError, match="does not let"):
        connect(server.endpoint(client_private_key=new_client_key().private), timeout_s=10, login_grace_s=0)


@pytest.mark.parametrize("changes", [{"host_public_key": "ssh-ed25519 AAAA"}, {"client_private_key": "no key"}])
def test_keys_that_are_none_are_refused_before_anything_is_sent(server, changes) -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
        connect(server.endpoint(**changes), timeout_s=10, sleep=must_not_sleep)


def test_waiting_ends_when_sleep_raises() -> None:
    class Cancelled(Exception):
        pass

    def cancelled(seconds: float) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        connect(Server.endpoint(dead_server()), timeout_s=60, sleep=cancelled)


def test_an_endpoint_does_not_print_its_private_key(server) -> None:
    assert server.client_key.private.splitlines()[1] not in repr(server.endpoint())


@needs_sshd
def test_thirty_connections_at_once(server, record_property) -> None:
    process = psutil.Process()
    connect(server.endpoint(), timeout_s=10).close()
    before, cpu = process.memory_info().rss, sum(process.cpu_times()[:2])
    started = time.perf_counter()
    with ThreadPoolExecutor(10) as pool:
        sessions: list[Session] = list(pool.map(lambda _: connect(server.endpoint(), timeout_s=30), range(30)))
    opened_s, cpu = time.perf_counter() - started, sum(process.cpu_times()[:2]) - cpu
    rss_kib = (process.memory_info().rss - before) / len(sessions) / 1024
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda s: s.run(["echo", "here"], timeout_s=30).stdout, sessions))
    for session in sessions:
        session.close()
    record_property("rss_kib_per_connection", round(rss_kib))
    sys.stdout.write(
        f"\n30 connections: {opened_s:.2f} s, {cpu / 30 * 1000:.1f} ms CPU and {rss_kib:.0f} KiB of memory each\n"
    )
    assert answers == ["here\n"] * 30
    assert not any(session.alive for session in sessions)


def test_closing_leaves_no_thread_behind(server) -> None:
    before = {t.ident for t in threading.enumerate()}
    with connect(server.endpoint(), timeout_s=10) as session:
        session.run(["true"], timeout_s=10)
    for _ in range(100):
        left = [t for t in threading.enumerate() if t.ident not in before]
        if not left:
            break
        time.sleep(0.05)
    assert left == []
