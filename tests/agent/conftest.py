"""Puts the agent's source tree on the path, and builds the zipapp once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

AGENT_IMAGE = Path(__file__).resolve().parents[2] / "agent-image"
sys.path.insert(0, str(AGENT_IMAGE))

from tests.agent.model_server import ModelServer  # noqa: E402


@pytest.fixture(scope="session")
def agent_pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from build_agent import build_agent

    return build_agent(tmp_path_factory.mktemp("agent") / "agent.pyz")


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running
