"""Connecting to a fresh server: wait until it answers, take no key but the one we gave it, log in.

Readiness is a banner, then a login; an open port alone proves nothing. Nothing of the user's own SSH set-up is
read: no agent, no keys of the home directory, no known_hosts.
"""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import paramiko
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential

from tasks.domain.errors import ConfigError, HostKeyMismatchError, RemoteError, UnreachableError
from tasks.remote.keys import KEY_TYPE, fingerprint_of_blob, key_blob
from tasks.remote.session import Completed, Session

__all__ = ["Completed", "Endpoint", "Session", "Timeouts", "connect"]

# AES-GCM needs no second pass for a MAC: about half of the CPU time of paramiko's first choice, aes128-ctr.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
LOG_CHANNEL = "tasks.remote.paramiko"
IDLE_WAKE_S = 1.0

# Every failure is raised with its reason; paramiko would also log each refused try with a traceback.
logging.getLogger(LOG_CHANNEL).setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a server answers and the keys both sides prove themselves with. `host_public_key`: a public line."""

    address: str
    port: int = 22
    username: str = "root"
    host_public_key: str
    client_private_key: str = field(repr=False)

    @property
    def label(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """connect_s is short because a SYN that a booting server dropped is sent again sooner by a new try.

    dead_after_s: what was sent and is not acknowledged for so long ends the connection (Linux).
    """

    connect_s: float = 2.0
    banner_s: float = 10.0
    auth_s: float = 15.0
    channel_s: float = 15.0
    keepalive_s: float = 5.0
    dead_after_s: float = 20.0


class _NotReadyError(UnreachableError):
    """This try failed in a way that time may mend."""


class _LoginRefusedError(RemoteError):
    """The server is ours and answers, but does not take the client key (yet)."""

    usual_reason = "login_refused"


def connect(
    endpoint: Endpoint,
    *,
    timeout_s: float,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
    timeouts: Timeouts | None = None,
    login_grace_s: float = 15.0,
) -> Session:
    """Connect, trying again until `timeout_s` has passed. `sleep` may raise to give up early.

    login_grace_s: how long a refused login is tried again, since some images create the user and its key only
    after sshd is up. Raises HostKeyMismatchError at once, RemoteError (`login_refused`) and UnreachableError
    (`refused`, `timeout`, `no_banner`, `no_route`, …).
    """
    limits = timeouts or Timeouts()
    host_key, client_key = _host_key(endpoint), _client_key(endpoint)
    deadline = now() + timeout_s
    refused_since: list[float] = []

    def attempt() -> Session:
        left_s = max(deadline - now(), 0.1)
        return _connect_once(endpoint, host_key, client_key, _capped(limits, left_s))

    def enough(state: RetryCallState) -> bool:
        if isinstance(_failure(state), _LoginRefusedError):
            refused_since.append(now())
            if now() - refused_since[0] >= login_grace_s:
                return True
        return now() + state.upcoming_sleep >= deadline

    retrying = Retrying(
        retry=retry_if_exception_type((_NotReadyError, _LoginRefusedError)),
        wait=_wait,
        stop=enough,
        sleep=sleep,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except _NotReadyError as exc:
        raise UnreachableError(
            f"{endpoint.label} could not be reached by SSH within {timeout_s:g} s. The last try: {exc.message}",
            reason=exc.reason,
            next_step="See that the server runs, that its firewall lets port "
            f"{endpoint.port} in, and what its console says about sshd.",
        ) from exc
    except _LoginRefusedError as exc:
        raise RemoteError(exc.message, reason=exc.reason, next_step=exc.next_step) from exc


def _connect_once(endpoint: Endpoint, host_key: paramiko.PKey, client_key: paramiko.PKey, limits: Timeouts) -> Session:
    client = paramiko.SSHClient()
    client.set_log_channel(LOG_CHANNEL)
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    name = endpoint.address if endpoint.port == 22 else f"[{endpoint.address}]:{endpoint.port}"
    client.get_host_keys().add(name, KEY_TYPE, host_key)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(client.close)
        sock = _tcp(endpoint, limits)
        on_failure.callback(sock.close)
        try:
            client.connect(
                endpoint.address,
                endpoint.port,
                endpoint.username,
                pkey=client_key,
                sock=sock,
                timeout=2 * limits.banner_s,  # banner and key exchange together
                banner_timeout=limits.banner_s,
                auth_timeout=limits.auth_s,
                channel_timeout=limits.channel_s,
                allow_agent=False,
                look_for_keys=False,
                transport_factory=_transport,
            )
            session = Session(client, sock, label=endpoint.label, answer_s=limits.channel_s)
        except (OSError, EOFError, paramiko.SSHException) as exc:
            raise _meaning(exc, client.get_transport(), endpoint, host_key) from exc
        on_failure.pop_all()
    _keep_watch(client, sock, limits)
    return session


def _transport(sock: Any, /, **options: Any) -> paramiko.Transport:
    transport = paramiko.Transport(sock, **options)
    security = transport.get_security_options()
    security.key_types = (KEY_TYPE,)  # a server that has other keys besides must not choose one of them
    security.ciphers = CIPHERS
    return transport


def _tcp(endpoint: Endpoint, limits: Timeouts) -> socket.socket:
    try:
        sock = socket.create_connection((endpoint.address, endpoint.port), timeout=limits.connect_s)
    except TimeoutError as exc:
        raise _NotReadyError(f"no answer within {limits.connect_s:.1f} s.", reason="timeout") from exc
    except ConnectionRefusedError as exc:
        raise _NotReadyError("the connection was refused; sshd does not listen yet.", reason="refused") from exc
    except OSError as exc:
        raise _NotReadyError(f"no connection: {exc}.", reason="no_route") from exc
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # SSH's keepalive asks for no answer, so only its missing acknowledgement shows that the server is gone.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limits.dead_after_s * 1000))
    return sock


def _keep_watch(client: paramiko.SSHClient, sock: socket.socket, limits: Timeouts) -> None:
    transport = client.get_transport()
    if transport is not None:
        transport.set_keepalive(limits.keepalive_s)
        # paramiko wakes ten times a second for each connection; once costs a quarter of the CPU time when idle.
        sock.settimeout(min(IDLE_WAKE_S, limits.keepalive_s))


def _meaning(
    exc: Exception, transport: paramiko.Transport | None, endpoint: Endpoint, host_key: paramiko.PKey
) -> RemoteError:
    label, text = endpoint.label, str(exc) or type(exc).__name__
    if isinstance(exc, paramiko.BadHostKeyException):
        shown = fingerprint_of_blob(exc.key.asbytes())
        return _mismatch(label, f"shows the host key {shown}", host_key)
    if isinstance(exc, paramiko.ssh_exception.IncompatiblePeer) and "host key" in text:
        return _mismatch(label, f"has no host key of type {KEY_TYPE}", host_key)
    if isinstance(exc, paramiko.AuthenticationException) and "timeout" not in text and "EOF" not in text:
        return _LoginRefusedError(
            f"{label} does not let {endpoint.username!r} in: {text}",
            reason="login_refused",
            next_step="See that the server was created with this client key and that its image has this user.",
        )
    if transport is None or not transport.remote_version:
        return _NotReadyError("the port is open, but nothing there speaks SSH yet.", reason="no_banner")
    return _NotReadyError(f"{transport.remote_version} answers, but not to the end: {text}.", reason="handshake_failed")


def _mismatch(label: str, what: str, host_key: paramiko.PKey) -> HostKeyMismatchError:
    return HostKeyMismatchError(
        f"{label} {what}, but the key that we gave to our server is {fingerprint_of_blob(host_key.asbytes())}: "
        "another machine answers there, or the image did not take our key. No login was tried.",
        reason="host_key_mismatch",
        next_step="Compare the address with the vendor's console; then delete the server and create it again.",
    )


def _host_key(endpoint: Endpoint) -> paramiko.PKey:
    try:
        return paramiko.Ed25519Key(data=key_blob(endpoint.host_public_key))
    except (paramiko.SSHException, ValueError, IndexError) as exc:
        raise ConfigError(f"The host key for {endpoint.label} is no {KEY_TYPE} key: {exc}.") from exc


def _client_key(endpoint: Endpoint) -> paramiko.PKey:
    try:
        return paramiko.Ed25519Key.from_private_key(io.StringIO(endpoint.client_private_key))
    except (paramiko.SSHException, ValueError, IndexError) as exc:
        raise ConfigError(f"The client key for {endpoint.label} is no OpenSSH {KEY_TYPE} private key: {exc}.") from exc


def _capped(limits: Timeouts, left_s: float) -> Timeouts:
    return Timeouts(
        connect_s=min(limits.connect_s, left_s),
        banner_s=min(limits.banner_s, left_s),
        auth_s=min(limits.auth_s, left_s),
        channel_s=limits.channel_s,
        keepalive_s=limits.keepalive_s,
        dead_after_s=limits.dead_after_s,
    )


_wait_for_boot = wait_exponential(multiplier=0.1, max=0.5)
# OpenSSH >= 9.8 shuts an address out for a while when three logins fail within seconds (PerSourcePenalties).
_wait_for_login = wait_exponential(multiplier=1, max=5)


def _wait(state: RetryCallState) -> float:
    refused = isinstance(_failure(state), _LoginRefusedError)
    return (_wait_for_login if refused else _wait_for_boot)(state)


def _failure(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
