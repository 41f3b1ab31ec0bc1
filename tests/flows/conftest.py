"""What tests of deployments share: a Prefect server with everything of prefect.yaml, and a worker's installation."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.product import CHECKOUT, TINY, Product
from tests.flows.deploying import prefect_command
from tests.flows.prefect_rest import Prefect


@pytest.fixture(scope="session")
def presets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The presets of the checkout and a small one, `one`."""
    folder = tmp_path_factory.mktemp("deployed") / "presets"
    shutil.copytree(CHECKOUT / "deployments" / "presets", folder)
    (folder / "one.yaml").write_text(yaml.safe_dump({**TINY, "pp": [16, 128]}))
    return folder


@pytest.fixture
def worker(product: Product, presets: Path) -> Product:
    """What a worker's process needs to know of this installation."""
    product.environment |= {"TOKENSWEEP_CHECKOUT": str(CHECKOUT), "TOKENSWEEP_PRESETS": str(presets)}
    return product


@pytest.fixture
def prefect(prefect_url: str) -> Iterator[Prefect]:
    asked = Prefect(prefect_url)
    yield asked
    asked.close()


@pytest.fixture(scope="session")
def deployed() -> list[str]:
    """Filled by the first test that deploys: deploying takes a while, and is the same for all."""
    return []


@pytest.fixture
def deployments(worker: Product, prefect: Prefect, deployed: list[str]) -> dict[str, dict[str, Any]]:
    """By full name, as the server has them after `prefect deploy --all`."""
    if not deployed:
        prefect.post("/work_pools/", {"name": "tokensweep", "type": "process"})
        done = prefect_command(worker, "--no-prompt", "deploy", "--all")
        assert done.rc == 0, str(done)
        deployed.append("all")
    found = prefect.post("/deployments/filter", {})
    flows = {flow["id"]: flow["name"] for flow in prefect.post("/flows/filter", {})}
    return {f"{flows[d['flow_id']]}/{d['name']}": d for d in found}
