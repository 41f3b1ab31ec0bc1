"""A lake in object storage, against servers that speak the protocols: moto's S3, emulators of Google Cloud Storage and
Azure Blob Storage that check every signature, and Azurite where one is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.domain.errors import ConfigError, LandingError
from tasks.lake import RemoteLake, compact, land, open_lake, query
from tasks.lake.schema import TABLES
from tasks.lake_access import lake_address
from tasks.settings import Settings
from tests.emulators import azure_blobs
from tests.emulators.azure_blobs import AzureBlobEmulator
from tests.emulators.gcs import GcsEmulator
from tests.emulators.object_stores import Container, serving
from tests.unit.test_lake_questions import faster, run_rows

obstore = pytest.importorskip("obstore", reason="object storage needs obstore")
BUCKET = "lakes"
KEYS = {"access_key_id": "testing", "secret_access_key": "testing", "region": "us-east-1"}
AZURITE = os.environ.get("TOKENSWEEP_TEST_AZURITE", "")
"""Address of an Azurite with a container `lakes`: one more store for every test here."""
# Azurite's own account, the same everywhere.
AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class Store:
    """An empty bucket. base_url: of its server; names: of the objects in it, from the server's own side."""

    scheme: str
    base_url: str
    options: dict[str, Any]
    names: Callable[[], list[str]]

    def lake(self, mirror: Path) -> RemoteLake:
        client = {"client_options": {"allow_http": True}}
        return RemoteLake(f"{self.scheme}://{BUCKET}/team/lake", mirror, {**self.options, **client})


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """Address of an S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str) -> Iterator[Store]:
    import boto3

    client = boto3.client(
        "s3", endpoint_url=s3_server, aws_access_key_id="testing", aws_secret_access_key="testing",
        region_name="us-east-1",
    )  # fmt: skip
    client.create_bucket(Bucket=BUCKET)

    def names() -> list[str]:
        return [found["Key"] for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]

    yield Store("s3", s3_server, {**KEYS, "endpoint": s3_server, "virtual_hosted_style_request": False}, names)
    for name in names():
        client.delete_object(Bucket=BUCKET, Key=name)


@pytest.fixture(scope="module")
def gcs_key() -> GcsEmulator:
    """One key for all tests: making an RSA key takes its time."""
    return GcsEmulator()


@pytest.fixture
def gs(gcs_key: GcsEmulator) -> Iterator[Store]:
    gcs_key.buckets = {BUCKET: Container()}
    with serving(gcs_key) as url:
        options = {"service_account_key": gcs_key.service_account_key(url)}
        yield Store("gs", url, options, lambda: sorted(gcs_key.buckets[BUCKET].objects))


@pytest.fixture
def az() -> Iterator[Store]:
    emulator = AzureBlobEmulator({BUCKET: Container()})
    with serving(emulator) as url:
        account = {"account_name": azure_blobs.ACCOUNT, "account_key": azure_blobs.KEY}
        options = {**account, "endpoint": f"{url}/{azure_blobs.ACCOUNT}"}
        yield Store("az", url, options, lambda: sorted(emulator.containers[BUCKET].objects))


@pytest.fixture
def azurite() -> Iterator[Store]:
    from obstore.store import AzureStore

    account = {"account_name": AZURITE_ACCOUNT, "account_key": AZURITE_KEY}
    options: dict[str, Any] = {**account, "endpoint": f"{AZURITE}/{AZURITE_ACCOUNT}"}
    whole = AzureStore(BUCKET, client_options={"allow_http": True}, **options)

    def names() -> list[str]:
        return [m["path"] for batch in obstore.list(whole) for m in batch]

    yield Store("az", AZURITE, options, names)
    for name in names():
        obstore.delete(whole, name)


@pytest.fixture(params=["s3", "gs", "az", *(["azurite"] if AZURITE else [])])
def store(request: pytest.FixtureRequest) -> Store:
    """Every store in turn."""
    found: Store = request.getfixturevalue(request.param)
    return found


def cells(lake: RemoteLake) -> dict[str, float]:
    with open_lake(lake, documented=False) as opened:
        assert opened.problems == []
        return dict(query(opened, "SELECT server_run_id, max(tok_per_s_median) FROM cells GROUP BY 1").rows())


def test_what_one_machine_lands_another_one_reads(store: Store, tmp_path: Path) -> None:
    here, there = store.lake(tmp_path / "here"), store.lake(tmp_path / "there")
    land(here, "a", run_rows("a", "cx22"))
    assert cells(there) == {"a": 64.0}
    land(there, "b", run_rows("b", "cx32", faster(2)))
    assert cells(here) == {"a": 64.0, "b": 128.0}
    assert "team/lake/server_runs/sweep=s1/a.parquet" in store.names()


def test_landing_again_changes_and_removes_objects(store: Store, tmp_path: Path) -> None:
    here, there = store.lake(tmp_path / "here"), store.lake(tmp_path / "there")
    land(here, "a", run_rows("a", "cx22"))
    assert cells(there) == {"a": 64.0}
    again = run_rows("a", "cx22", faster(3))
    again["downloads"] = []
    land(here, "a", again)
    assert cells(there) == {"a": 192.0}
    assert not [key for key in store.names() if "/downloads/" in key]
    assert not list((tmp_path / "there" / "downloads").rglob("*.parquet"))


def test_the_commit_marker_comes_last(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The upload dies before the last object: the run does not show, and landing it again repairs."""
    here, there = store.lake(tmp_path / "here"), store.lake(tmp_path / "there")
    put = obstore.put

    def dies(at: Any, path: str, data: bytes) -> Any:
        if path.startswith("server_runs/"):
            raise OSError("connection reset")
        return put(at, path, data)

    monkeypatch.setattr(obstore, "put", dies)
    with pytest.raises(LandingError, match="cannot be written: connection reset"):
        land(here, "a", run_rows("a", "cx22"))
    with open_lake(there, documented=False) as lake:
        assert query(lake, "FROM cells").height == 0 and {p.kind for p in lake.problems} == {"uncommitted"}
    monkeypatch.undo()
    land(here, "a", run_rows("a", "cx22"))
    assert cells(there) == {"a": 64.0}


def test_what_never_reached_the_store_is_not_shown(store: Store, tmp_path: Path) -> None:
    lake = store.lake(tmp_path / "here")
    land(lake, "a", run_rows("a", "cx22"))
    land(tmp_path / "here", "lost", run_rows("lost", "cx32"))  # written into the mirror, and then the process died
    assert cells(lake) == {"a": 64.0}


def test_compaction_in_the_store(store: Store, tmp_path: Path) -> None:
    here, there = store.lake(tmp_path / "here"), store.lake(tmp_path / "there")
    for name in "abc":
        land(here, name, run_rows(name, name))
    assert set(cells(there)) == set("abc")
    (done,) = compact(there, min_files=2, min_age_s=-3600)
    assert done.n_runs == 3 and len(store.names()) == len(TABLES) and all("compacted-" in key for key in store.names())
    assert set(cells(here)) == set("abc") == set(cells(store.lake(tmp_path / "third")))


def test_many_writers_through_one_mirror(store: Store, tmp_path: Path) -> None:
    lake = store.lake(tmp_path / "here")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: land(lake, n, run_rows(n, n)), "abcdef"))
    assert set(cells(store.lake(tmp_path / "there"))) == set("abcdef")


def test_a_store_that_cannot_be_reached_is_named_and_no_secret_is_told(tmp_path: Path) -> None:
    retry = {"max_retries": 0}
    gone = RemoteLake(
        "s3://lakes/x",
        tmp_path,
        {**KEYS, "endpoint": "http://127.0.0.1:9", "client_options": {"allow_http": True}, "retry_config": retry},
    )
    with pytest.raises(ConfigError, match=r"s3://lakes/x cannot be read"):
        open_lake(gone)
    assert "testing" not in repr(gone)


@pytest.fixture(scope="module")
def prefect_database() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


def save_block(store: Store) -> str:
    """A block with the store's credentials as a person would make it; returns its address."""
    if store.scheme == "s3":
        from prefect_aws import AwsCredentials
        from prefect_aws.client_parameters import AwsClientParameters

        secret: Any = "testing"
        AwsCredentials(
            aws_access_key_id="testing",
            aws_secret_access_key=secret,
            region_name="us-east-1",
            aws_client_parameters=AwsClientParameters(endpoint_url=store.base_url),
        ).save("lake", overwrite=True)
        return "aws-credentials/lake"
    if store.scheme == "gs":
        from prefect_gcp import GcpCredentials

        key: Any = store.options["service_account_key"]
        GcpCredentials(service_account_info=key).save("lake", overwrite=True)
        return "gcp-credentials/lake"
    from prefect_azure import AzureBlobStorageCredentials

    name, key, endpoint = (store.options[k] for k in ("account_name", "account_key", "endpoint"))
    text: Any = f"DefaultEndpointsProtocol=http;AccountName={name};AccountKey={key};BlobEndpoint={endpoint};"
    AzureBlobStorageCredentials(connection_string=text).save("lake", overwrite=True)
    return "azure-blob-storage-credentials/lake"


def test_the_address_takes_its_credentials_from_a_block(prefect_database: None, store: Store, tmp_path: Path) -> None:
    block, url = save_block(store), f"{store.scheme}://{BUCKET}/blocks"
    address = lake_address(Settings(lake=url, lake_block=block, cache=tmp_path))
    assert isinstance(address, RemoteLake)
    land(address, "a", run_rows("a", "cx22"))
    assert cells(address) == {"a": 64.0} and "blocks/cells/sweep=s1/a.parquet" in store.names()
    kind = block.partition("/")[0]
    with pytest.raises(ConfigError, match=f"{kind}/none cannot be loaded"):
        lake_address(Settings(lake=url, lake_block=f"{kind}/none"))
    with pytest.raises(ConfigError, match=f"gives no credentials for {store.scheme}"):
        lake_address(Settings(lake=url, lake_block="github-credentials/lake"))


def test_a_folder_needs_no_credentials(tmp_path: Path) -> None:
    assert lake_address(Settings(lake=str(tmp_path))) == str(tmp_path)


@pytest.mark.parametrize(
    ("scheme", "wrong"),
    [("gs", {"client_email": "another@emulated.iam.gserviceaccount.com"}), ("az", {"account_key": "YW5vdGhlcg=="})],
)
def test_wrong_credentials_are_refused_and_not_told(
    request: pytest.FixtureRequest, tmp_path: Path, scheme: str, wrong: dict[str, str]
) -> None:
    store: Store = request.getfixturevalue(scheme)
    options = {**store.options, **wrong}
    if scheme == "gs":
        options = {"service_account_key": json.dumps({**json.loads(store.options["service_account_key"]), **wrong})}
    lake = Store(scheme, store.base_url, options, store.names).lake(tmp_path)
    with pytest.raises(ConfigError, match=f"{scheme}://lakes/team/lake cannot be read") as refused:
        open_lake(lake)
    assert not any(value in str(refused.value) for value in wrong.values())


def test_a_large_file_goes_up_in_parts(store: Store, tmp_path: Path) -> None:
    """Parquet of more than the client's part size, as compactions of large sweeps are."""
    lake = store.lake(tmp_path / "here")
    land(lake, "a", run_rows("a", "cx22"))
    path = tmp_path / "here" / "telemetry" / "sweep=s1" / "big.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(11_000_000))
    with lake.locked():
        lake.push([path])
        there = store.lake(tmp_path / "there").pull()
    assert (there / "telemetry" / "sweep=s1" / "big.parquet").read_bytes() == path.read_bytes()
