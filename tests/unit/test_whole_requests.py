"""A cancelled request to Prefect's API gives its connection back. Real HTTP, one connection for all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from prefect.client.orchestration import PrefectClient

from flows.whole_requests import WholeRequests, carry_to_their_end

SLOW_S = 0.3


@pytest.fixture
async def slow_url() -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof() and await reader.readline():
            while (await reader.readline()).strip():
                pass
            await asyncio.sleep(SLOW_S)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\ntrue")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    server.close()


@pytest.mark.parametrize("waited_s", [0.0, SLOW_S / 2])
async def test_the_next_request_is_sent_after_others_were_cancelled(slow_url: str, waited_s: float) -> None:
    transport = WholeRequests(httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=1)))
    async with httpx.AsyncClient(transport=transport, timeout=30) as client:
        asking = [asyncio.create_task(client.get(slow_url)) for _ in range(3)]
        await asyncio.sleep(waited_s)
        for _ in range(2):
            for one in asking:
                one.cancel()
            await asyncio.sleep(0)
        assert all(one.cancelled() for one in asking), "who waited for it does not wait for its end"
        assert (await client.get(slow_url)).json() is True


async def test_what_fails_is_raised_as_it_was() -> None:
    async with httpx.AsyncClient(transport=WholeRequests(httpx.AsyncHTTPTransport())) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://127.0.0.1:9/")


async def test_prefects_client_is_changed_once() -> None:
    async with PrefectClient("http://127.0.0.1:9/api") as client:
        carry_to_their_end(client)
        changed = client._client._transport
        carry_to_their_end(client)
        assert client._client._transport is changed
