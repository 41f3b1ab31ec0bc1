"""What UpCloud sells, what is wrong with an account there, and how its credentials are found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tasks.clouds.base import Check, ErrorKind, Scope
from tasks.clouds.upcloud import UpCloud, open_manager
from tasks.domain.errors import ConfigError
from tasks.vendors.upcloud import UpCloudSettings, open_cloud, why_not_configured
from tests.emulators.base import Fault
from tests.emulators.emulated import spec_of
from tests.emulators.upcloud import PASSWORD, TOKEN, USERNAME
from tests.emulators.upcloud_world import UpCloudWorld, open_world

CHECKOUT = Path(__file__).resolve().parents[2]
VARIABLES = ("UPCLOUD_TOKEN", "UPCLOUD_USERNAME", "UPCLOUD_PASSWORD")


@pytest.fixture
def world() -> Iterator[UpCloudWorld]:
    with open_world() as opened:
        yield opened


# -- catalog --


def test_plans_with_places_and_prices(world: UpCloudWorld) -> None:
    offers = {offer.name: offer for offer in world.cloud.catalog()}
    assert len(offers) == 6
    general = offers["1xCPU-2GB"]
    assert (general.vcpus, general.memory_bytes, general.disk_bytes) == (1, 2 * 2**30, 50 * 2**30)
    assert (general.vendor, general.currency, general.arch, general.gpus) == ("upcloud", "EUR", "x86_64", 0)
    assert general.places == ("de-fra1", "us-chi1", "fi-hel1")  # the cheapest first
    assert general.price_per_hour == Decimal("0.022321")  # the API says it in hundredths
    assert general.prices["fi-hel1"] == Decimal("0.025")
    assert general.price_read_unix_s == world.now()
    assert offers["HICPU-8xCPU-12GB"].places == ("de-fra1", "fi-hel1")
    gpu = offers["GPU-8xCPU-64GB-1xL40S"]
    assert (gpu.gpus, gpu.gpu_model) == (1, "NVIDIA L40S")


def test_gpu_plans_are_offered_where_there_are_gpus_left(world: UpCloudWorld) -> None:
    """They have a price in every zone."""
    gpu = world.cloud.server_type("GPU-8xCPU-64GB-1xL40S")
    assert (gpu.places, set(gpu.prices)) == (("fi-hel1",), {"fi-hel1"})
    sold_out = world.cloud_with(zones=("de-fra1", "us-chi1"))
    assert sold_out.server_type(gpu.name).places == ()
    assert gpu.name not in {offer.name for offer in sold_out.catalog()}


def test_where_the_api_does_not_tell_where_gpus_are_all_zones_are_tried(world: UpCloudWorld) -> None:
    world.plant(Fault("GET /device/availability", how="code", code="FORBIDDEN"))
    gpu = world.cloud.server_type("GPU-8xCPU-64GB-1xL40S")
    assert set(gpu.places) == {"de-fra1", "us-chi1", "fi-hel1"}
    with pytest.raises(Exception) as refused:
        world.cloud.create(spec_of(world, server_type=gpu.name, place="us-chi1", gpus=1))
    found = world.cloud.classify(refused.value)
    assert (found.kind, found.scope) == (ErrorKind.CAPACITY, Scope.ZONE)


def test_a_plan_without_storage_is_priced_with_a_disk_and_an_address(world: UpCloudWorld) -> None:
    native = world.cloud.server_type("CLOUDNATIVE-1xCPU-4GB")
    assert native.disk_bytes == 0  # chosen at the create
    assert native.price_per_hour == Decimal("0.012") + 25 * Decimal("0.000312") + Decimal("0.0045")


def test_a_plan_that_is_not_sold(world: UpCloudWorld) -> None:
    with pytest.raises(ConfigError, match="9xCPU"):
        world.cloud.server_type("9xCPU-9GB")
    elsewhere = world.cloud_with(zones=("us-chi1",)).server_type("HICPU-8xCPU-12GB")
    assert (elsewhere.places, elsewhere.price_per_hour) == ((), Decimal("0.139"))


def test_only_the_zones_that_are_wanted(world: UpCloudWorld) -> None:
    offers = world.cloud_with(zones=("us-chi1",)).catalog()
    assert {offer.name: offer.places for offer in offers} == {
        "DEV-1xCPU-1GB-10GB": ("us-chi1",),
        "1xCPU-1GB": ("us-chi1",),
        "1xCPU-2GB": ("us-chi1",),
    }


def test_by_default_the_cheapest_of_each_family_that_is_still_offered(world: UpCloudWorld) -> None:
    """1xCPU-1GB is cheaper, and only those who have one keep it."""
    assert set(world.cloud.default_server_types()) == {
        "DEV-1xCPU-1GB-10GB",
        "1xCPU-2GB",
        "HICPU-8xCPU-12GB",
        "CLOUDNATIVE-1xCPU-4GB",
    }


def test_the_catalog_is_read_once_an_hour(world: UpCloudWorld) -> None:
    for _ in range(3):
        world.cloud.catalog()
    assert world.calls().count("GET /price") == 1
    world.sleep(3601)
    world.cloud.catalog()
    assert world.calls().count("GET /price") == 2


def test_a_currency_that_the_credentials_may_not_read_is_asked_for(world: UpCloudWorld) -> None:
    world.plant(Fault("GET /account/details", how="code", code="FORBIDDEN", times=2))
    with pytest.raises(Exception) as refused:
        world.cloud.catalog()
    assert world.cloud.classify(refused.value).code == "FORBIDDEN"
    by_the_user = world.cloud_with(currency="USD")
    assert {offer.currency for offer in by_the_user.catalog()} == {"USD"}
    assert "USD" in checks_of(by_the_user)["prices"].detail


def test_a_price_list_that_tells_its_currency_is_believed(world: UpCloudWorld) -> None:
    """A sub-account need not read the account's details then."""
    world.plant(Fault("GET /account/details", how="code", code="FORBIDDEN"))
    world.emulator.price_currency = "SEK"
    assert {offer.currency for offer in world.cloud.catalog()} == {"SEK"}


# -- doctor --


def checks_of(cloud: UpCloud) -> dict[str, Check]:
    return {check.name: check for check in cloud.doctor()}


def test_a_sound_account(world: UpCloudWorld) -> None:
    checks = checks_of(world.cloud_with())
    assert {name for name, check in checks.items() if check.ok} == set(checks)
    assert set(checks) == {"identity", "permissions", "credits", "quotas", "images", "prices", "leftovers"}
    assert "100.00" in checks["credits"].detail
    assert "cores 1000" in checks["quotas"].detail
    assert "24.04" in checks["images"].detail
    assert "EUR" in checks["prices"].detail
    assert world.existing() == []
    assert all(call.startswith("GET ") for call in world.calls())


def test_an_account_without_credits() -> None:
    with open_world(credits=0.0) as world:
        credits_left = checks_of(world.cloud_with())["credits"]
        assert credits_left.ok is False
        assert credits_left.next_step


def test_a_password_that_opens_nothing(world: UpCloudWorld) -> None:
    (check,) = world.cloud_with(password="wrong").doctor()
    assert (check.name, check.ok) == ("identity", False)
    assert "AUTHENTICATION_FAILED" in check.detail
    assert "sub-account" in check.next_step


def test_an_api_that_cannot_be_reached() -> None:
    cloud = UpCloud(open_manager(USERNAME, PASSWORD, endpoint="http://127.0.0.1:9/1.3", connect_timeout_s=0.5))
    (check,) = cloud.doctor()
    assert (check.name, check.ok) == ("identity", False)
    assert "network" in check.next_step


def test_what_bills_alone_is_shown(world: UpCloudWorld) -> None:
    world.add_foreign()
    world.cloud.create(spec_of(world))
    leftovers = checks_of(world.cloud_with())["leftovers"]
    assert leftovers.ok is None
    assert "storage archive" in leftovers.detail
    assert leftovers.detail.count("address") == 1
    assert "theirs disk" not in leftovers.detail


def test_one_check_that_fails_does_not_hide_the_others(world: UpCloudWorld) -> None:
    world.plant(Fault("GET /storage/template", how="html_502"))
    checks = checks_of(world.cloud_with())
    assert checks["images"].ok is False
    assert checks["prices"].ok


# -- credentials --


def test_credentials_and_options_from_the_environment(monkeypatch: pytest.MonkeyPatch, world: UpCloudWorld) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UPCLOUD_USERNAME", USERNAME)
    assert "UPCLOUD_PASSWORD" in why_not_configured()
    monkeypatch.setenv("UPCLOUD_PASSWORD", PASSWORD)
    monkeypatch.setenv("TOKENSWEEP_UPCLOUD_ZONES", "us-chi1, fi-hel1")
    monkeypatch.setenv("TOKENSWEEP_UPCLOUD_ENDPOINT_URL", f"{world.url}/1.3")
    assert why_not_configured() == ""
    cloud = open_cloud()
    assert {place for offer in cloud.catalog() for place in offer.places} == {"us-chi1", "fi-hel1"}
    assert cloud.list_owned().complete
    assert PASSWORD not in repr(cloud)


def test_a_token_instead_of_a_password(monkeypatch: pytest.MonkeyPatch, world: UpCloudWorld) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UPCLOUD_TOKEN", TOKEN)
    cloud = open_cloud(UpCloudSettings(endpoint_url=f"{world.url}/1.3"))
    assert cloud.list_owned().complete


def test_without_credentials_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="UPCLOUD_TOKEN"):
        open_cloud()
    assert why_not_configured(UpCloudSettings(block="mine")) == ""


def test_credentials_from_a_prefect_block(prefect_url: str, world: UpCloudWorld) -> None:
    code = f"""
from tasks.vendors.blocks import UpCloudCredentials
block = UpCloudCredentials(username={USERNAME!r}, password={PASSWORD!r})
block.save("sweeper", _sync=True)
print(repr(block))
from tasks.vendors.upcloud import UpCloudSettings, open_cloud
cloud = open_cloud(UpCloudSettings(block="sweeper", endpoint_url={world.url + "/1.3"!r}))
print(cloud.list_owned().complete)
for attempt in (lambda: open_cloud(UpCloudSettings(block="another")), lambda: UpCloudCredentials(username="only")):
    try:
        attempt()
    except Exception as exc:
        print(type(exc).__name__, str(exc).replace(chr(10), " "))
"""
    env = {**os.environ, "PREFECT_API_URL": prefect_url}
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, complete, failed, invalid = done.stdout.strip().split("\n")
    assert (complete, failed.split()[0], invalid.split()[0]) == ("True", "ConfigError", "ValidationError")
    assert "upcloud-credentials/another" in failed
    assert PASSWORD not in done.stdout + done.stderr


def test_the_default_endpoint_is_that_of_the_emulator(world: UpCloudWorld) -> None:
    manager = open_manager(USERNAME, PASSWORD)
    assert manager.api.api_root.split("/")[2] in world.emulator.hosts
    assert manager.api.timeout == (10.0, 60.0)
