"""For every test: Prefect keeps its files in a folder of its own. For those that drive the product: its parts, once."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports prefect, which reads them once.
os.environ.setdefault("PREFECT_HOME", str(Path(tempfile.gettempdir()) / f"tokensweep-tests-prefect-{os.getuid()}"))
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from tests.e2e.product import Product, clean

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The engine is built within the time of the first test that needs it."""
    for item in items:
        if item.path.is_relative_to(HERE / "e2e") or item.path.is_relative_to(HERE / "flows"):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def engine_cache() -> Path:
    """Where the runtime and the smallest model are; both are made if they are missing."""
    from tasks.domain.errors import TokensweepError
    from tasks.engine import ensure_engine
    from tasks.models.catalogue import load_catalogue
    from tasks.models.synthesize import synthesize
    from tasks.settings import Settings

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
    from flows.embedded import start_server, stop_server, wait_until_healthy

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
def bare(tmp_path: Path, engine_cache: Path) -> Iterator[Product]:
    """As after a fresh clone: without a Prefect server, every command brings its own."""
    product = Product(tmp_path / "home", engine_cache)
    yield product
    clean(product)


@pytest.fixture
def product(bare: Product, prefect_url: str) -> Product:
    bare.environment["PREFECT_API_URL"] = prefect_url
    return bare
