"""The job templates of deployments/work-pools: a Prefect server takes them, its workers read them, and every run gets
what ours need."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.base import BaseJobConfiguration
from prefect.workers.process import ProcessJobConfiguration
from prefect_docker.worker import DockerWorkerJobConfiguration  # type: ignore[import-untyped]
from pydantic import SecretStr

from tests.e2e.product import CHECKOUT
from tests.flows.prefect_rest import Prefect

FOLDER = CHECKOUT / "deployments" / "work-pools"
TYPES = ("process", "docker", "kubernetes")
KUBERNETES_FILES = [path.read_text() for path in (CHECKOUT / "deployments" / "kubernetes").rglob("*.yaml")]
SCALE = (CHECKOUT / "docs" / "scale.md").read_text()
LEDGER = "postgresql+psycopg://tokensweep@somewhere/ledger"


def template(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{kind}.json").read_text())
    return found


def job(url: str, kind: str, configuration: type[BaseJobConfiguration]) -> BaseJobConfiguration:
    """As a worker reads it for a run of which nothing else is known."""
    with temporary_settings({PREFECT_API_URL: url}):
        return asyncio.run(configuration.from_template_and_values(template(kind), {}))


def test_there_is_one_for_each_kind_of_worker() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(TYPES)


@pytest.mark.parametrize("kind", TYPES)
def test_a_server_makes_a_pool_of_it(prefect: Prefect, kind: str) -> None:
    body = {"name": f"from-template-{kind}", "type": kind, "base_job_template": template(kind)}
    made = prefect.post("/work_pools/", body)
    assert made["base_job_template"]["variables"]["properties"]["env"]["default"]["PREFECT_CLIENT_MAX_RETRIES"] == "8"


def test_a_process_gets_the_patience_that_a_fleet_needs(prefect_url: str) -> None:
    assert job(prefect_url, "process", ProcessJobConfiguration).env["PREFECT_CLIENT_MAX_RETRIES"] == "8"


def test_a_container_keeps_its_spool_when_it_is_killed(prefect_url: str) -> None:
    """The home is a volume of the compose file, not of the container; and its ledger is the fleet's."""
    with temporary_settings({PREFECT_API_URL: prefect_url}):
        asyncio.run(_save_ledger())
    found = job(prefect_url, "docker", DockerWorkerJobConfiguration)
    assert isinstance(found, DockerWorkerJobConfiguration)
    assert found.volumes == ["tokensweep_home:/var/lib/tokensweep"]
    assert found.env["TOKENSWEEP_HOME"] == "/var/lib/tokensweep" and found.image == "tokensweep:latest"
    assert found.env["TOKENSWEEP_LEDGER_URL"] == LEDGER
    compose = (CHECKOUT / "deployments" / "compose.yaml").read_text()
    assert "name: tokensweep\n" in compose and "\n  home:\n" in compose, "whose names the volume and the network have"


async def _save_ledger() -> None:
    """The name is in docs/scale.md."""
    assert "`tokensweep-ledger`" in SCALE
    await Secret(value=SecretStr(LEDGER)).asave("tokensweep-ledger", overwrite=True)


def test_a_pod_has_its_spool_its_secrets_and_time_to_tear_down() -> None:
    spec = template("kubernetes")["job_configuration"]["job_manifest"]["spec"]
    assert set(spec) == {"backoffLimit", "parallelism", "completions", "ttlSecondsAfterFinished", "template"}
    assert spec["backoffLimit"] == 0, "a shard that was killed is resumed by its sweep, not repeated by Kubernetes"
    pod = spec["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 60
    (container,) = pod["containers"]
    assert [m["mountPath"] for m in container["volumeMounts"]] == ["/var/lib/tokensweep"]
    claim = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
    sources = container["envFrom"]
    assert {"configMapRef": {"name": "tokensweep"}} in sources, "which says where the lake is"
    for secret in (source["secretRef"]["name"] for source in sources if "secretRef" in source):
        assert f"secret generic {secret}" in SCALE, f"nobody says how to make {secret}"
    assert any(f"metadata: {{name: {claim}}}" in text for text in KUBERNETES_FILES), f"nobody makes {claim}"
