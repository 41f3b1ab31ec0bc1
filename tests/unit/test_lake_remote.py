"""A lake in object storage, against servers that speak the protocols: moto's S3, and Azurite where it is given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tasks.domain.errors import ConfigError, LandingError
from tasks.lake import RemoteLake, compact, land, open_lake, query
from tasks.lake_access import lake_address
from tasks.settings import Settings
from tests.unit.test_lake_questions import faster, run_rows

pytest.importorskip("obstore", reason="object storage needs obstore")
BUCKET = "lakes"
KEYS = {"access_key_id": "testing", "secret_access_key": "testing", "region": "us-east-1"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of an S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str) -> Iterator[Any]:
    import boto3

    client = boto3.client(
        "s3", endpoint_url=s3, aws_access_key_id="testing", aws_secret_access_key="testing", region_name="us-east-1"
    )
    client.create_bucket(Bucket=BUCKET)
    yield client
    for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=found["Key"])


def lake_at(s3: str, mirror: Path, **changes: Any) -> RemoteLake:
    options = {**KEYS, "endpoint": s3, "virtual_hosted_style_request": False, "client_options": {"allow_http": True}}
    return RemoteLake(f"s3://{BUCKET}/team/lake", mirror, options | changes)


def keys(bucket: Any) -> list[str]:
    return [found["Key"] for found in bucket.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def cells(lake: RemoteLake) -> dict[str, float]:
    with open_lake(lake, documented=False) as opened:
        assert opened.problems == []
        return dict(query(opened, "SELECT server_run_id, max(tok_per_s_median) FROM cells GROUP BY 1").rows())


def test_what_one_machine_lands_another_one_reads(s3: str, bucket: Any, tmp_path: Path) -> None:
    here, there = lake_at(s3, tmp_path / "here"), lake_at(s3, tmp_path / "there")
    land(here, "a", run_rows("a", "cx22"))
    assert cells(there) == {"a": 64.0}
    land(there, "b", run_rows("b", "cx32", faster(2)))
    assert cells(here) == {"a": 64.0, "b": 128.0}
    assert "team/lake/server_runs/sweep=s1/a.parquet" in keys(bucket)


def test_landing_again_changes_and_removes_objects(s3: str, bucket: Any, tmp_path: Path) -> None:
    here, there = lake_at(s3, tmp_path / "here"), lake_at(s3, tmp_path / "there")
    land(here, "a", run_rows("a", "cx22"))
    assert cells(there) == {"a": 64.0}
    again = run_rows("a", "cx22", faster(3))
    again["downloads"] = []
    land(here, "a", again)
    assert cells(there) == {"a": 192.0}
    assert not [key for key in keys(bucket) if "/downloads/" in key]
    assert not list((tmp_path / "there" / "downloads").rglob("*.parquet"))


def test_the_commit_marker_comes_last(s3: str, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The upload dies before the last object: the run does not show, and landing it again repairs."""
    import obstore

    here, there = lake_at(s3, tmp_path / "here"), lake_at(s3, tmp_path / "there")
    put = obstore.put

    def dies(store: Any, path: str, data: bytes) -> Any:
        if path.startswith("server_runs/"):
            raise OSError("connection reset")
        return put(store, path, data)

    monkeypatch.setattr(obstore, "put", dies)
    with pytest.raises(LandingError, match="cannot be written: connection reset"):
        land(here, "a", run_rows("a", "cx22"))
    with open_lake(there, documented=False) as lake:
        assert query(lake, "FROM cells").height == 0 and {p.kind for p in lake.problems} == {"uncommitted"}
    monkeypatch.undo()
    land(here, "a", run_rows("a", "cx22"))
    assert cells(there) == {"a": 64.0}


def test_what_never_reached_the_store_is_not_shown(s3: str, bucket: Any, tmp_path: Path) -> None:
    lake = lake_at(s3, tmp_path / "here")
    land(lake, "a", run_rows("a", "cx22"))
    land(tmp_path / "here", "lost", run_rows("lost", "cx32"))  # written into the mirror, and then the process died
    assert cells(lake) == {"a": 64.0}


def test_compaction_in_the_store(s3: str, bucket: Any, tmp_path: Path) -> None:
    here, there = lake_at(s3, tmp_path / "here"), lake_at(s3, tmp_path / "there")
    for name in "abc":
        land(here, name, run_rows(name, name))
    assert set(cells(there)) == set("abc")
    (done,) = compact(there, min_files=2, min_age_s=-3600)
    assert done.n_runs == 3 and len(keys(bucket)) == 9 and all("compacted-" in key for key in keys(bucket))
    assert set(cells(here)) == set("abc") == set(cells(lake_at(s3, tmp_path / "third")))


def test_many_writers_through_one_mirror(s3: str, bucket: Any, tmp_path: Path) -> None:
    lake = lake_at(s3, tmp_path / "here")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: land(lake, n, run_rows(n, n)), "abcdef"))
    assert set(cells(lake_at(s3, tmp_path / "there"))) == set("abcdef")


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


def test_the_address_takes_its_credentials_from_a_block(
    s3: str, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.testing.utilities import prefect_test_harness
    from prefect_aws import AwsCredentials
    from prefect_aws.client_parameters import AwsClientParameters

    with prefect_test_harness(server_startup_timeout=180):
        AwsCredentials(
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
            aws_client_parameters=AwsClientParameters(endpoint_url=s3),
        ).save("lake")
        url = f"s3://{BUCKET}/blocks"
        address = lake_address(Settings(lake=url, lake_block="aws-credentials/lake", cache=tmp_path))
        assert isinstance(address, RemoteLake)
        land(address, "a", run_rows("a", "cx22"))
        with pytest.raises(ConfigError, match="aws-credentials/none cannot be loaded"):
            lake_address(Settings(lake=url, lake_block="aws-credentials/none"))
        with pytest.raises(ConfigError, match="gives no credentials for s3"):
            lake_address(Settings(lake=url, lake_block="gcp-credentials/lake"))
    assert cells(address) == {"a": 64.0} and "blocks/cells/sweep=s1/a.parquet" in keys(bucket)


def test_a_folder_needs_no_credentials(tmp_path: Path) -> None:
    assert lake_address(Settings(lake=str(tmp_path))) == str(tmp_path)


def goes_round(scheme: str, options: dict[str, Any], folder: Path) -> None:
    here, there = (
        RemoteLake(f"{scheme}://{BUCKET}/x", folder / name, {**options, "client_options": {"allow_http": True}})
        for name in ("here", "there")
    )
    land(here, "a", run_rows("a", "cx22"))
    assert cells(there) == {"a": 64.0}
    assert compact(here, min_files=1, min_age_s=-3600)[0].n_runs == 1
    assert cells(there) == {"a": 64.0}


def test_azure_blob_storage(tmp_path: Path) -> None:
    """With TOKENSWEEP_TEST_AZURITE the address of an Azurite (npm), and in it a container `lakes`."""
    address = os.environ.get("TOKENSWEEP_TEST_AZURITE")
    if not address:
        pytest.skip("TOKENSWEEP_TEST_AZURITE names no Azurite")
    # Azurite's own account, the same everywhere.
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    account = "devstoreaccount1"
    goes_round("az", {"account_name": account, "account_key": key, "endpoint": f"{address}/{account}"}, tmp_path)
