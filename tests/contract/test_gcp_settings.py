"""How the GCP module is opened: from the environment, from a key file, from a Prefect block. Nothing is asked of the
network to find out whether it can be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tasks.domain.errors import ConfigError
from tasks.vendors import gcp
from tests.contract.gcp_servers import spec_for
from tests.emulators.gcp_world import GcpWorld, open_world


@pytest.fixture
def world() -> Iterator[GcpWorld]:
    with open_world() as opened:
        yield opened


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(("TOKENSWEEP_GCP_", "GOOGLE_", "CLOUDSDK_", "GCLOUD_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "no-gcloud"))


@pytest.fixture(scope="module")
def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode()


def key_file(folder: Path, private_key: str, token_uri: str) -> Path:
    """A service account's key, as `gcloud iam service-accounts keys create` writes it."""
    path = folder / "key.json"
    info = {
        "type": "service_account",
        "project_id": "bench-project",
        "private_key_id": "1",
        "private_key": private_key,
        "client_email": "tokensweep@bench-project.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": token_uri,
    }
    path.write_text(json.dumps(info))
    return path


def test_without_credentials_it_says_what_to_set() -> None:
    assert "GOOGLE_APPLICATION_CREDENTIALS" in gcp.why_not_configured()
    with pytest.raises(ConfigError, match="no credentials"):
        gcp.open_cloud()


def test_a_key_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    assert "none.json does not exist" in gcp.why_not_configured()


def test_credentials_of_a_person_need_a_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "gcloud"
    folder.mkdir()
    (folder / "application_default_credentials.json").write_text('{"type": "authorized_user"}')
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(folder))
    assert "TOKENSWEEP_GCP_PROJECT" in gcp.why_not_configured()
    monkeypatch.setenv("TOKENSWEEP_GCP_PROJECT", "bench-project")
    assert gcp.why_not_configured() == ""


def test_a_key_file_that_is_none_is_said_without_its_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.write_text('{"type": "service_account", "project_id": "p", "private_key": "verysecret"}')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    with pytest.raises(ConfigError) as refused:
        gcp.open_cloud()
    assert "verysecret" not in repr(refused.value) + str(refused.value)


def test_a_service_accounts_key_makes_a_server_and_reads_prices(
    world: GcpWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, private_key: str
) -> None:
    """The SDK signs its own tokens for Compute Engine, and fetches one for the other services."""
    path = key_file(tmp_path, private_key, f"{world.url}/token")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    monkeypatch.setenv("TOKENSWEEP_GCP_ENDPOINT", world.url)
    monkeypatch.setenv("TOKENSWEEP_GCP_REGIONS", "us-central1, europe-west4")
    assert gcp.why_not_configured() == ""
    cloud = gcp.open_cloud()
    assert cloud.project == "bench-project"
    made = cloud.create(spec_for(world))
    assert [r.cloud_id for r in cloud.list_owned().resources if r.kind == "server"] == [made.cloud_id]
    assert {place for kind in cloud.catalog() for place in kind.places} == set(world.places)
    assert private_key.splitlines()[1] not in repr(vars(cloud))


def test_a_prefect_block(
    prefect_url: str, world: GcpWorld, monkeypatch: pytest.MonkeyPatch, private_key: str, tmp_path: Path
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect_gcp import GcpCredentials

    info = json.loads(key_file(tmp_path, private_key, f"{world.url}/token").read_text())
    monkeypatch.setenv("TOKENSWEEP_GCP_ENDPOINT", world.url)
    with temporary_settings({PREFECT_API_URL: prefect_url}):
        GcpCredentials(service_account_info=info).save("bench-gcp", overwrite=True, _sync=True)
        monkeypatch.setenv("TOKENSWEEP_GCP_CREDENTIALS", "bench-gcp")
        assert gcp.why_not_configured() == ""
        cloud = gcp.open_cloud()
        assert cloud.project == "bench-project"
        assert cloud.list_owned().complete
        monkeypatch.setenv("TOKENSWEEP_GCP_CREDENTIALS", "another")
        with pytest.raises(ConfigError, match="another"):
            gcp.open_cloud()


def test_asking_whether_it_is_set_up_does_not_load_the_sdk() -> None:
    code = (
        "import sys; from tasks.vendors import gcp; gcp.why_not_configured();"
        "print([m for m in sys.modules if m.startswith(('google.cloud.compute', 'google.auth', 'prefect'))])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
