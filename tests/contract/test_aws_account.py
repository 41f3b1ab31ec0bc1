"""What an AWS account sells, allows and tells: catalogue, doctor, policies, credentials; how strict the emulator is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tasks.clouds.aws import AwsCloud, AwsOptions
from tasks.clouds.aws.doctor import QUOTAS
from tasks.clouds.base import ErrorKind
from tasks.domain.errors import ConfigError
from tasks.vendors.aws import AwsSettings, open_cloud, why_not_configured
from tests.emulators import aws_prices
from tests.emulators.aws import ACCESS_KEY, SECRET_KEY, AwsEmulator
from tests.emulators.aws_world import AwsWorld, make_spec, open_world, ours
from tests.emulators.base import Fault

CHECKOUT = Path(__file__).resolve().parents[2]
POLICIES = CHECKOUT / "deployments" / "policies"


@pytest.fixture
def world() -> Iterator[AwsWorld]:
    with open_world() as opened:
        yield opened


def policy(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((POLICIES / f"aws-{name}.json").read_text())
    return document


# -- catalogue and prices


def test_the_catalogue_has_every_type_with_its_own_price_in_every_zone(world: AwsWorld) -> None:
    catalog = {server_type.name: server_type for server_type in world.cloud.catalog()}
    assert set(catalog) == set(aws_prices.USD_PER_HOUR) - {"mac1.metal"}
    c7i = catalog["c7i.large"]
    assert (c7i.vcpus, c7i.memory_bytes, c7i.arch, c7i.gpus) == (2, 4 * 2**30, "x86_64", 0)
    assert (c7i.currency, c7i.price_per_hour, c7i.disk_bytes) == ("USD", Decimal("0.08925"), 0)
    assert (c7i.prices["us-east-1a"], c7i.prices["eu-west-1b"]) == (Decimal("0.08925"), Decimal("0.098175"))
    assert c7i.places[0] == "us-east-1a"
    assert [c7i.prices[place] for place in c7i.places] == sorted(c7i.prices.values())
    assert c7i.spot_prices["us-east-1a"] == Decimal("0.026775")
    assert c7i.spot_prices["us-east-1b"] > c7i.spot_prices["us-east-1a"]
    assert "Sapphire Rapids" in c7i.cpu_model
    assert "2026-11-01" in c7i.price_source
    assert c7i.price_read_unix_s == world.now()
    assert c7i.link_bytes_per_s == 0.781e9 / 8
    gpu = catalog["g4dn.xlarge"]
    assert (gpu.gpus, gpu.gpu_model, gpu.gpu_memory_bytes) == (1, "NVIDIA T4", 16 * 2**30)
    assert "us-east-1f" not in gpu.places
    part = catalog["g6f.large"]  # an eighth of an L4, of which EC2 says Count 0 and LogicalGpuCount 1
    assert (part.gpus, part.gpu_model, part.gpu_memory_bytes) == (1, "NVIDIA L4", 2861 * 2**20)
    assert catalog["c7g.large"].arch == "aarch64"
    assert not [place for server_type in catalog.values() for place in server_type.places if "lax" in place]


def test_one_server_type_is_read_without_all_the_others(world: AwsWorld) -> None:
    one = world.cloud.server_type("g5g.xlarge")
    n_calls = len(world.calls())
    assert world.cloud.server_type("g5g.xlarge") is one
    assert len(world.calls()) == n_calls, "it was read again"
    assert one == next(each for each in world.cloud.catalog() if each.name == "g5g.xlarge")


@pytest.mark.parametrize("name", ["c99.large", "", "m7i-flex.large", "mac1.metal"])
def test_a_server_type_that_is_not_sold_is_a_mistake_of_the_caller(world: AwsWorld, name: str) -> None:
    with pytest.raises(ConfigError, match="no server type"):
        world.cloud.server_type(name)


def test_the_catalogue_does_without_a_region_that_fails(world: AwsWorld) -> None:
    world.plant(Fault("DescribeInstanceTypes eu-west-1", how="html_502"))
    regions = {place[:-1] for server_type in world.cloud.catalog() for place in server_type.places}
    assert regions == {"us-east-1"}


def test_no_region_at_all_is_an_error_and_not_an_empty_catalogue(world: AwsWorld) -> None:
    world.plant(Fault("DescribeInstanceTypes", how="code", code="RequestLimitExceeded", times=9))
    with pytest.raises(ClientError) as caught:
        world.cloud.catalog()
    assert world.cloud.classify(caught.value).kind is ErrorKind.RATE_LIMITED


def test_a_price_list_that_throttles_costs_the_catalogue_no_region(world: AwsWorld) -> None:
    """GetProducts allows 10 calls at once and 5 a second, and the catalogue takes hundreds:
    https://docs.aws.amazon.com/awsaccountbilling/latest/aboutv2/using-pelong.html."""
    world.plant(Fault("GetProducts", how="code", code="ThrottlingException", times=4))
    regions = {place[:-1] for server_type in world.cloud.catalog() for place in server_type.places}
    assert regions == {"eu-west-1", "us-east-1"}


def test_default_server_types_are_sold(world: AwsWorld) -> None:
    sold = {server_type.name for server_type in world.cloud.catalog()}
    assert set(world.cloud.default_server_types()) <= sold


# -- doctor


def test_the_doctor_finds_a_healthy_account_and_makes_nothing(world: AwsWorld) -> None:
    checks = world.cloud.doctor()
    assert [check for check in checks if check.ok is False] == []
    assert {check.name for check in checks if check.name.startswith("us-east-1")} == {
        f"us-east-1 {what}" for what in ("listing", "images", "network", "permissions", "quotas")
    }
    (quotas,) = [check for check in checks if check.name == "us-east-1 quotas"]
    assert all(f"{aws_prices.QUOTAS[code]} {what}" in quotas.detail for code, what in QUOTAS.items())
    assert "L-417A185B" in quotas.next_step, "it is 0"
    assert "L-1216C47A" not in quotas.next_step
    assert world.existing() == []
    groups = [g for vpc in world.emulator.backend("us-east-1").groups.values() for g in vpc.values()]
    assert [group.name for group in groups] == ["default"]


def test_the_doctor_without_credentials_asks_nothing_more(world: AwsWorld) -> None:
    world.emulator.revoked = True
    (only,) = world.cloud.doctor()
    assert (only.name, only.ok) == ("identity", False)
    assert only.next_step
    assert SECRET_KEY not in str(only)


def test_the_doctor_tells_a_refusal_from_an_answer_that_got_lost(world: AwsWorld) -> None:
    world.emulator.policy = policy("reaper")
    checks = [check for check in world.cloud.doctor() if check.name.endswith("permissions")]
    assert {check.ok for check in checks} == {False}
    assert all("aws-controller.json" in check.next_step for check in checks)
    world.emulator.policy = None
    world.plant(Fault("GetProducts", how="truncated", after=True))
    (prices,) = [check for check in world.cloud.doctor() if check.name == "prices"]
    assert prices.ok is None


def test_no_quota_for_ordinary_servers_is_a_fault(world: AwsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(aws_prices.QUOTAS, "L-1216C47A", 0)
    failed = [check for check in world.cloud.doctor() if check.ok is False]
    assert [check.name for check in failed] == ["eu-west-1 quotas", "us-east-1 quotas"]
    assert "L-1216C47A" in failed[0].next_step


def test_the_doctor_names_a_region_without_images(world: AwsWorld) -> None:
    world.emulator.backend("eu-west-1").amis.clear()
    failed = [check.name for check in world.cloud.doctor() if check.ok is False]
    assert failed == ["eu-west-1 images", "eu-west-1 permissions"]


# -- the policies that we hand out


def test_the_controllers_policy_allows_all_that_a_sweep_does(world: AwsWorld) -> None:
    world.emulator.policy = policy("controller")
    assert [check for check in world.cloud.doctor() if check.ok is False] == []
    assert world.cloud.catalog()
    for attempt, spot in enumerate((False, True)):
        made = world.cloud.create(make_spec(attempt, spot=spot))
        assert world.cloud.get(made.ref()) is not None
    listing = world.cloud.list_owned()
    assert listing.complete, listing.problems
    for resource in sorted(listing.resources, key=lambda r: r.kind != "server"):
        world.cloud.delete(resource.ref())
    assert ours(world) == []


def test_the_reapers_policy_deletes_all_that_is_ours_and_makes_nothing(world: AwsWorld) -> None:
    made = world.cloud.create(make_spec(1, spot=True))
    client = world.cloud.clients.ec2("us-east-1")
    owner = [{"Key": "tokensweep-owner", "Value": "tokensweep"}]
    address = client.allocate_address(Domain="vpc", TagSpecifications=[{"ResourceType": "elastic-ip", "Tags": owner}])[
        "AllocationId"
    ]
    client.associate_address(AllocationId=address, InstanceId=made.cloud_id)
    world.emulator.policy = policy("reaper")
    with pytest.raises(ClientError) as caught:
        world.cloud.create(make_spec(2))
    assert world.cloud.classify(caught.value).kind is ErrorKind.AUTH
    listing = world.cloud.list_owned()
    assert listing.complete, listing.problems
    for resource in sorted(listing.resources, key=lambda r: r.kind == "server"):
        if resource.kind in ("ip", "server", "spot_request"):
            world.cloud.delete(resource.ref())
    assert ours(world) == []


@pytest.mark.parametrize("name", ["controller", "reaper"])
def test_no_policy_of_ours_reaches_what_is_foreign(world: AwsWorld, name: str) -> None:
    world.add_foreign()
    (server,) = [thing for thing in world.existing() if thing.kind == "server"]
    world.emulator.policy = policy(name)
    client = world.cloud.clients.ec2("us-east-1")
    with pytest.raises(ClientError, match="UnauthorizedOperation"):
        client.terminate_instances(InstanceIds=[server.cloud_id])
    with pytest.raises(ClientError, match="UnauthorizedOperation"):
        client.create_tags(Resources=[server.cloud_id], Tags=[{"Key": "tokensweep-owner", "Value": "tokensweep"}])
    with pytest.raises(ClientError, match="UnauthorizedOperation"):
        client.run_instances(MinCount=1, MaxCount=1, ImageId="ami-0a00000000000002", InstanceType="t3.micro")
    assert server in world.existing()


# -- credentials and settings


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENSWEEP_AWS_REGIONS", "eu-west-1, us-east-1")
    monkeypatch.setenv("TOKENSWEEP_AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert AwsSettings().regions == ("eu-west-1", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    cloud = open_cloud()
    assert cloud.options == AwsOptions(regions=("eu-west-1", "us-east-1"), endpoint_url="http://127.0.0.1:1")
    assert SECRET_KEY not in repr(cloud)


def test_why_it_is_not_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    assert "AWS_ACCESS_KEY_ID" in why_not_configured()
    monkeypatch.setenv("TOKENSWEEP_AWS_PROFILE", "nobody")
    assert "nobody" in why_not_configured()
    monkeypatch.delenv("TOKENSWEEP_AWS_PROFILE")
    (tmp_path / "credentials").write_text(f"[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key=x\n")
    assert why_not_configured() == ""


def test_credentials_from_a_prefect_block(prefect_url: str, world: AwsWorld) -> None:
    code = f"""
from prefect_aws import AwsCredentials
AwsCredentials(aws_access_key_id={ACCESS_KEY!r}, aws_secret_access_key={SECRET_KEY!r}).save("sweeper", _sync=True)
from tasks.vendors.aws import AwsSettings, open_cloud
cloud = open_cloud(AwsSettings(block="sweeper", endpoint_url={world.url!r}))
print(cloud.list_owned().complete)
try:
    open_cloud(AwsSettings(block="another"))
except Exception as exc:
    print(type(exc).__name__, exc)
"""
    env = {**os.environ, "PREFECT_API_URL": prefect_url}
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, env=env, capture_output=True, text=True)
    first, _, second = done.stdout.partition("\n")
    assert (first, second.split()[0]) == ("True", "ConfigError"), done.stderr
    assert "aws-credentials/another" in second
    assert SECRET_KEY not in done.stdout + done.stderr


def test_looking_at_the_vendors_does_not_load_the_sdk() -> None:
    code = "import sys, tasks.vendors.aws; print([m for m in sys.modules if m.split('.')[0] in ('boto3', 'botocore')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_default_endpoints_are_those_of_the_emulator() -> None:
    emulator = AwsEmulator()
    try:
        cloud = AwsCloud(boto3.Session(aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY))
        asked = [("ec2", r) for r in emulator.regions] + [("sts", "us-east-1"), ("pricing", "us-east-1")]
        asked += [("service-quotas", r) for r in emulator.regions]
        urls = [cloud.clients.of(service, region).meta.endpoint_url for service, region in asked]
        assert {urllib.parse.urlsplit(url).hostname for url in urls} <= set(emulator.hosts)
        assert {urllib.parse.urlsplit(url).scheme for url in urls} == {"https"}
    finally:
        emulator.close()


# -- the emulator refuses what EC2 refuses, also what the SDK would not have sent


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({"Action": "RunInstances", "MinCount": "1", "MaxCount": "1", "Nonsense": "1"}, "UnknownParameter"),
        ({"Action": "RunInstances", "MinCount": "1"}, "MissingParameter"),
        ({"Action": "RunInstances", "MinCount": "one", "MaxCount": "1"}, "InvalidParameterValue"),
        ({"Action": "RunInstances", "MinCount": "1", "MaxCount": "1", "InstanceType": "c99"}, "InvalidParameterValue"),
        ({"Action": "DescribeInstances", "Filter.1.Nme": "x"}, "UnknownParameter"),
        ({"Action": "LaunchRocket"}, "InvalidAction"),
    ],
)
def test_a_request_outside_the_service_model_is_refused(world: AwsWorld, form: dict[str, str], code: str) -> None:
    body = urllib.parse.urlencode(form | {"Version": "2016-11-15"}).encode()
    signed = f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20261101/us-east-1/ec2/aws4_request, SignedHeaders=host"
    headers = {"Authorization": signed, "Content-Type": "application/x-www-form-urlencoded"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(world.url, body, headers))
    assert f"<Code>{code}</Code>" in caught.value.read().decode()


@pytest.mark.parametrize(
    "changes",
    [
        {"SubnetId": "subnet-1"},
        {"UserData": "x" * 16_385},
        {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 4}}]},
        {"TagSpecifications": [{"ResourceType": "spot-instances-request", "Tags": [{"Key": "a", "Value": "b"}]}]},
        {"TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "aws:a", "Value": "b"}]}]},
        {"NetworkInterfaces": [{"DeviceIndex": 0, "Groups": ["sg-0123"]}]},
    ],
)
def test_a_launch_that_ec2_would_refuse_is_refused(world: AwsWorld, changes: dict[str, Any]) -> None:
    request = {"MinCount": 1, "MaxCount": 1, "ImageId": "ami-0a00000000000002", "InstanceType": "t3.micro"}
    nics = {"NetworkInterfaces": [{"DeviceIndex": 0}]} if "SubnetId" in changes else {}
    with pytest.raises(ClientError):
        world.cloud.clients.ec2("us-east-1").run_instances(**request, **nics, **changes)
    assert world.existing() == []


def test_disks_survive_unless_asked_otherwise_and_shutdown_only_stops(world: AwsWorld) -> None:
    """The dangerous defaults of EC2, from which our own launches differ."""
    client = world.cloud.clients.ec2("us-east-1")
    made = client.run_instances(
        MinCount=1,
        MaxCount=1,
        ImageId="ami-0a00000000000002",
        InstanceType="t3.micro",
        BlockDeviceMappings=[{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 20}}],
    )["Instances"][0]["InstanceId"]
    client.describe_instances()
    world.emulator.machines.stop(made)
    state = client.describe_instances(InstanceIds=[made])["Reservations"][0]["Instances"][0]["State"]["Name"]
    assert state == "stopped"
    assert world.emulator.backend("us-east-1").launches.lives[made].state == "stopped"
    client.terminate_instances(InstanceIds=[made])
    assert [thing.kind for thing in world.existing()] == ["disk"]
