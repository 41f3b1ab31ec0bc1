"""Middleware that makes a file server misbehave: each function returns a wrapper for `ModelServer(wrap=...)`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Wrapper = Callable[[ASGIApp], ASGIApp]
Filter = Callable[[bytes, int], Awaitable[bytes]]


class CutOff(Exception):
    """Raised inside the server to drop the connection."""


def _filtered(make_filter: Callable[[], Filter]) -> Wrapper:
    """Pass each body chunk, with the offset at which it starts in this response, through a filter."""

    def wrap(app: ASGIApp) -> ASGIApp:
        async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
            change, sent = make_filter(), 0

            async def send_changed(message: Message) -> None:
                nonlocal sent
                if message["type"] == "http.response.body" and message.get("body"):
                    body = message["body"]
                    message = {**message, "body": await change(body, sent)}
                    sent += len(body)
                await send(message)

            await app(scope, receive, send_changed)

        return faulty

    return wrap


def truncate_after(n_bytes: int, first_responses: int = 1 << 30) -> Wrapper:
    """Drop the connection after n_bytes of the body, in the first responses only."""
    left = [first_responses]

    def make() -> Filter:
        cutting = left[0] > 0
        left[0] -= 1

        async def cut(body: bytes, at: int) -> bytes:
            if cutting and at >= n_bytes:
                raise CutOff
            return body[: n_bytes - at] if cutting else body

        return cut

    return _filtered(make)


def corrupt_byte(at_byte: int) -> Wrapper:
    """Turn over the bits of one byte of every response's body."""

    async def flip(body: bytes, at: int) -> bytes:
        if not at <= at_byte < at + len(body):
            return body
        changed = bytearray(body)
        changed[at_byte - at] ^= 0xFF
        return bytes(changed)

    return _filtered(lambda: flip)


def stall_after(n_bytes: int, until: threading.Event) -> Wrapper:
    """Send nothing more after n_bytes until the event is set."""

    async def stall(body: bytes, at: int) -> bytes:
        while at >= n_bytes and not until.is_set():
            await asyncio.sleep(0.01)
        return body

    return _filtered(lambda: stall)


def limit_each_connection(bytes_per_s: float) -> Wrapper:
    """Give every response a speed of its own, however many there are."""

    async def slow(body: bytes, at: int) -> bytes:
        await asyncio.sleep(len(body) / bytes_per_s)
        return body

    return _filtered(lambda: slow)


def fail_first(n_requests: int, status: int = 500) -> Wrapper:
    """Answer the first requests with an error."""
    left = [n_requests]

    def wrap(app: ASGIApp) -> ASGIApp:
        async def failing(scope: Scope, receive: Receive, send: Send) -> None:
            if left[0] <= 0:
                await app(scope, receive, send)
                return
            left[0] -= 1
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

        return failing

    return wrap
