"""The model server, over real HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import os
import selectors
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.domain.errors import ConfigError
from tasks.models.ranged_file import BURST_S, CHUNK_BYTES, Link
from tasks.models.serve import ModelServer
from tests.unit.faulty_apps import (
    corrupt_byte,
    fail_first,
    limit_each_connection,
    stall_after,
    truncate_after,
)

CONTENT = hashlib.shake_128(b"model").digest(3 * CHUNK_BYTES + 12_345)
FILE = "a model.gguf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    served = tmp_path / "served"
    served.mkdir()
    (served / FILE).write_bytes(CONTENT)
    (served / ".hidden").write_bytes(b"secret")
    (served / "empty").write_bytes(b"")
    (served / "sub").mkdir()
    (tmp_path / "outside").write_bytes(b"secret")
    return served


@pytest.fixture
def server(folder: Path) -> Iterator[ModelServer]:
    with ModelServer(folder, links={"fast": 1e9, "slow": 20e6}) as running:
        yield running


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, headers={k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


def test_serves_the_whole_file_and_says_how_long_it_is(server: ModelServer) -> None:
    for url in (server.url(FILE), server.url(FILE, "fast"), server.url(FILE, "slow")):
        status, headers, body = get(url)
        assert (status, body) == (200, CONTENT)
        assert headers["content-length"] == str(len(CONTENT)) and headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-65535", 0, 65536),
        ("bytes=1000000-", 1_000_000, len(CONTENT)),
        ("bytes=1048570-2097160", 1_048_570, 2_097_161),
        ("bytes=-10", len(CONTENT) - 10, len(CONTENT)),
        ("bytes=5-99999999999", 5, len(CONTENT)),
        ("bytes=-99999999999", 0, len(CONTENT)),
    ],
)
def test_serves_ranges(server: ModelServer, wanted: str, start: int, end: int) -> None:
    for url in (server.url(FILE), server.url(FILE, "fast")):
        status, headers, body = get(url, Range=wanted)
        assert (status, body) == (206, CONTENT[start:end])
        assert headers["content-range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"


@pytest.mark.parametrize("wanted", [f"bytes={len(CONTENT)}-", "bytes=99999999999-", "bytes=-0"])
def test_a_range_outside_the_file_is_refused_with_its_size(server: ModelServer, wanted: str) -> None:
    status, headers, body = get(server.url(FILE), Range=wanted)
    assert (status, headers["content-range"], body) == (416, f"bytes */{len(CONTENT)}", b"")


@pytest.mark.parametrize("wanted", ["bytes=9-3", "lines=1-2", "bytes=a-b", "bytes=-", "bytes=0-1,5-6"])
def test_a_range_that_is_none_gets_the_whole_file(server: ModelServer, wanted: str) -> None:
    status, _, body = get(server.url(FILE), Range=wanted)
    assert (status, len(body)) == (200, len(CONTENT))


def test_a_resumed_download_notices_that_the_file_changed(server: ModelServer, folder: Path) -> None:
    etag = get(server.url(FILE), Range="bytes=0-9")[1]["etag"]
    assert get(server.url(FILE), Range="bytes=10-19", If_Range=etag)[0] == 206
    (folder / FILE).write_bytes(CONTENT[::-1] + b"longer")
    status, _, body = get(server.url(FILE), Range="bytes=10-19", If_Range=etag)
    assert (status, body) == (200, CONTENT[::-1] + b"longer")


def test_head_sends_no_body(server: ModelServer) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    connection.request("HEAD", "/a%20model.gguf")
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("content-length"), answer.read()) == (200, str(len(CONTENT)), b"")
    connection.request("GET", "/empty")
    assert connection.getresponse().read() == b"", "the connection is still usable"
    connection.close()


@pytest.mark.parametrize(
    "path",
    ["/none", "/.hidden", "/sub", "/../outside", "/%2e%2e/outside", "/..%2foutside", "/link/slow/..%2foutside", "/%00"],
)
def test_serves_only_plain_files_of_its_folder(server: ModelServer, path: str) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 404 and b"secret" not in answer.read()
    connection.close()


def test_an_unknown_link_is_an_error_on_both_sides(server: ModelServer) -> None:
    with pytest.raises(ConfigError, match="fast, slow"):
        server.url(FILE, "dsl")
    status, _, body = get(server.url(FILE).replace("/a%20", "/link/dsl/a%20"))
    assert status == 404 and b"fast, slow" in body


def test_many_connections_at_once(server: ModelServer) -> None:
    size, parts = len(CONTENT), 8
    bounds = [(i * size // parts, (i + 1) * size // parts - 1) for i in range(parts)]
    got: dict[int, bytes] = {}

    def fetch(i: int) -> None:
        got[i] = get(server.url(FILE, "fast"), Range=f"bytes={bounds[i][0]}-{bounds[i][1]}")[2]

    threads = [threading.Thread(target=fetch, args=(i,)) for i in range(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b"".join(got[i] for i in range(parts)) == CONTENT


def open_files_in(folder: Path) -> int:
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    targets = (os.readlink(link) for link in links if os.path.lexists(link))
    return sum(target.startswith(str(folder)) for target in targets)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_client_that_leaves_frees_its_file(folder: Path) -> None:
    (folder / "large").write_bytes(b"")
    os.truncate(folder / "large", 4 << 30)
    with ModelServer(folder, links={"slow": 1e6}) as server:
        for path in ("/large", "/link/slow/large"):
            connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.read(1000) == bytes(1000)
            assert open_files_in(folder) == 1
            answer.close()
            connection.close()
            give_up = time.monotonic() + 30
            while open_files_in(folder) and time.monotonic() < give_up:
                time.sleep(0.02)
            assert open_files_in(folder) == 0
        assert get(server.url(FILE))[2] == CONTENT


def test_stopping_cuts_open_downloads_and_frees_the_port(folder: Path) -> None:
    os.truncate(folder / FILE, 1 << 30)
    server = ModelServer(folder, links={"slow": 1e6}).start()
    port = server.port
    connection = http.client.HTTPConnection(server.host, port, timeout=30)
    connection.request("GET", "/link/slow/a%20model.gguf")
    answer = connection.getresponse()
    server.stop()
    server.stop()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        answer.read()
    with ModelServer(folder, port=port) as again:
        assert again.port == port
    with server.start():
        assert get(server.url(FILE), Range="bytes=0-0")[0] == 206


def test_an_address_in_use_is_a_clear_error(server: ModelServer, folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1:{server.port}"):
        ModelServer(folder, port=server.port).start()


def test_a_link_without_speed_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="carries nothing"):
        ModelServer(folder, links={"dead": 0})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="IP_FREEBIND is Linux")
def test_binds_an_address_that_does_not_exist_yet(folder: Path) -> None:
    address = "192.0.2.77"  # of the block reserved for documentation: no machine has it
    with pytest.raises(OSError), socket.socket() as plain:
        plain.bind((address, 0))
    with ModelServer(folder, host=address) as server:
        assert server.url(FILE).startswith(f"http://{address}:{server.port}/")


# The speed of a link, on a clock that jumps ahead whenever everything waits.


class _JumpingSelector(selectors.DefaultSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout:
            self.now_s += timeout
        return ready


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = _JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now_s


def virtual_seconds(work: Coroutine[Any, Any, None]) -> float:
    loop = _JumpingLoop()
    try:
        loop.run_until_complete(work)
        return loop.time()
    finally:
        loop.close()


async def carry_all(link: Link, n_bytes: int, piece: int) -> None:
    for _ in range(n_bytes // piece):
        await link.carry(piece)


def test_a_link_carries_its_speed() -> None:
    link = Link(1e6)
    assert virtual_seconds(carry_all(link, 10_000_000, 50_000)) == pytest.approx(10 - BURST_S, abs=0.06)


def test_connections_share_a_link() -> None:
    async def both() -> None:
        link = Link(1e6)
        await asyncio.gather(*(carry_all(link, 2_000_000, 50_000) for _ in range(4)))

    assert virtual_seconds(both()) == pytest.approx(8 - BURST_S, abs=0.06)


def test_links_do_not_share() -> None:
    async def both() -> None:
        await asyncio.gather(*(carry_all(Link(1e6), 2_000_000, 50_000) for _ in range(4)))

    assert virtual_seconds(both()) == pytest.approx(2 - BURST_S, abs=0.06)


def test_a_link_saves_up_no_more_than_a_burst() -> None:
    async def idle_between() -> None:
        link = Link(1e6)
        await link.carry(50_000)
        await asyncio.sleep(100)
        await carry_all(link, 1_000_000, 50_000)

    assert virtual_seconds(idle_between()) == pytest.approx(101 - BURST_S, abs=0.06)


# Faults, as the download tests use them.


def test_a_truncated_answer(folder: Path) -> None:
    with ModelServer(folder, wrap=truncate_after(100_000, first_responses=1)) as server:
        with pytest.raises(http.client.IncompleteRead) as cut, urllib.request.urlopen(server.url(FILE)) as answer:
            answer.read()
        assert cut.value.partial == CONTENT[:100_000]
        assert get(server.url(FILE), Range="bytes=100000-")[2] == CONTENT[100_000:]


def test_a_corrupted_answer(folder: Path) -> None:
    with ModelServer(folder, wrap=corrupt_byte(2_000_000)) as server:
        body = get(server.url(FILE))[2]
    assert [i for i in range(len(body)) if body[i] != CONTENT[i]] == [2_000_000]


def test_a_stalled_answer(folder: Path) -> None:
    go_on = threading.Event()
    with (
        ModelServer(folder, wrap=stall_after(CHUNK_BYTES, go_on)) as server,
        urllib.request.urlopen(server.url(FILE), timeout=0.5) as answer,
    ):
        assert answer.read(CHUNK_BYTES) == CONTENT[:CHUNK_BYTES]
        with pytest.raises(TimeoutError):
            answer.read(1)
        go_on.set()


def test_errors_before_an_answer(folder: Path) -> None:
    with ModelServer(folder, wrap=fail_first(2, status=503)) as server:
        assert [get(server.url(FILE))[0] for _ in range(3)] == [503, 503, 200]


def test_a_limit_for_each_connection(folder: Path) -> None:
    with ModelServer(folder, wrap=limit_each_connection(100e6)) as server:
        assert get(server.url(FILE))[2] == CONTENT
