"""Requests to Prefect's API that are carried to their end, whoever stops waiting for them.

A request that is cancelled in its middle may leave its connection counted as in use for ever (httpcore cleans up in
awaits of its own, which a second cancellation cuts short). Prefect's client has sixteen of them for all flow runs of a
process: after some, no call of that process is ever sent again, the one that says how a run ended included.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httpx
from prefect.client.orchestration import PrefectClient


class WholeRequests(httpx.AsyncBaseTransport):
    """The same transport; its requests end by themselves or by the client's timeouts, not by a cancellation."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport
        self._under_way: set[asyncio.Task[httpx.Response]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = asyncio.create_task(self._exchange(request))
        self._under_way.add(exchange)
        exchange.add_done_callback(self._ended)
        return await asyncio.shield(exchange)

    async def _exchange(self, request: httpx.Request) -> httpx.Response:
        """With its body: a cancellation while that is read would cost the connection likewise."""
        answer = await self._transport.handle_async_request(request)
        try:
            body = b"".join([part async for part in cast(httpx.AsyncByteStream, answer.stream)])
        finally:
            await answer.aclose()
        return httpx.Response(answer.status_code, headers=answer.headers, content=body, extensions=answer.extensions)

    def _ended(self, exchange: asyncio.Task[httpx.Response]) -> None:
        self._under_way.discard(exchange)
        if not exchange.cancelled():
            exchange.exception()  # taken note of; who waits for it hears it, and perhaps nobody does

    async def aclose(self) -> None:
        await self._transport.aclose()


def carry_to_their_end(client: PrefectClient) -> None:
    """From now on, for all that use this client. A second call changes nothing."""
    http = cast(Any, client)._client
    if isinstance(http._transport, WholeRequests):
        return
    http._transport = WholeRequests(http._transport)
    http._mounts = {where: way and WholeRequests(way) for where, way in http._mounts.items()}  # ways through proxies
