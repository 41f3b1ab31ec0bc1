"""A client of Hetzner's SDK that sends every request once and never waits without end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hcloud import Client

from tasks.domain.errors import ConfigError

ENDPOINT = "https://api.hetzner.cloud/v1"
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0


def open_client(
    token: str,
    *,
    endpoint: str = ENDPOINT,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    read_timeout_s: float = READ_TIMEOUT_S,
) -> Client:
    """A ready client of one project; talks to nobody yet."""
    client = Client(
        token, api_endpoint=endpoint, application_name="tokensweep", timeout=(connect_timeout_s, read_timeout_s)
    )
    return without_retries(client)


def without_retries(client: Client) -> Client:
    """Left alone the SDK posts a create again after a timeout or a 502, and sleeps through rate limits for minutes.

    Both are for the shared code to decide, which knows what was sent and what else waits. The SDK has no public
    switch for it (2.27), hence the check that the private one is still there.
    """
    for base in (client._client, client._client_hetzner):
        if not hasattr(base, "_retry_max_retries"):
            raise ConfigError("This version of hcloud retries in a way that cannot be turned off.", reason="hcloud")
        base._retry_max_retries = 0
    return client


@dataclass
class RateLimit:
    """What the last answer said of the project's requests per hour; None before there was one."""

    limit: int | None = None
    left: int | None = None

    def read(self, response: Any, *args: Any, **kwargs: Any) -> None:
        limit, left = (response.headers.get(f"RateLimit-{name}", "") for name in ("Limit", "Remaining"))
        if limit.isdigit() and left.isdigit():
            self.limit, self.left = int(limit), int(left)


@contextmanager
def watched(client: Client) -> Iterator[RateLimit]:
    """The SDK shows no headers of what it answers; its session does (2.27)."""
    seen = RateLimit()
    hooks = client._client._session.hooks["response"]
    hooks.append(seen.read)
    try:
        yield seen
    finally:
        hooks.remove(seen.read)
