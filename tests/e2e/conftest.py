"""A home for every test, one Prefect server for all of them, the real engine, and a clean machine afterwards."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from flows.embedded import start_server, stop_server, wait_until_healthy
from tasks.clouds.local import LocalCloud
from tasks.domain.errors import TokensweepError
from tasks.engine import ensure_engine
from tasks.models.catalogue import load_catalogue
from tasks.models.synthesize import synthesize
from tasks.settings import Settings
from tests.e2e.product import Product


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The engine is built within the time of the first test that needs it."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def cache() -> Path:
    """Where the runtime and the smallest model are; both are made if they are missing."""
    folder = Settings().cache_dir
    try:
        ensure_engine(folder)
    except TokensweepError as exc:
        pytest.skip(f"there is no llama.cpp runtime here: {exc}")
    synthesize(load_catalogue()["tiny-15m"], folder / "models")
    return folder


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a Prefect server that outlives single commands, as at scale."""
    folder = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before = os.environ["PREFECT_HOME"]
    os.environ["PREFECT_HOME"] = str(folder)
    try:
        process = start_server(port, folder / "server.log", dies_with_us=True)
    finally:
        os.environ["PREFECT_HOME"] = before
    try:
        wait_until_healthy(process, port, folder / "server.log")
        yield f"http://127.0.0.1:{port}/api"
    finally:
        stop_server(process)


@pytest.fixture
def bare(tmp_path: Path, cache: Path) -> Iterator[Product]:
    """As after a fresh clone: without a Prefect server, every command brings its own."""
    product = Product(tmp_path / "home", cache)
    yield product
    clean(product)


@pytest.fixture
def product(bare: Product, prefect_url: str) -> Product:
    bare.environment["PREFECT_API_URL"] = prefect_url
    return bare


def clean(product: Product) -> None:
    """After a failed test too: end what it left, so that the next one has the machine for itself."""
    for trace in product.remains():
        pid = trace.split(" ")[0]
        if pid.isdigit():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    cloud = LocalCloud(product.home / "local")
    for resource in cloud.list_owned().resources:
        cloud.delete(resource.ref())
