"""What Hetzner sells, what is wrong with an account there, and how its credentials are found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tasks.clouds.base import Check
from tasks.clouds.hetzner import HetznerCloud, open_client
from tasks.domain.errors import ConfigError
from tasks.vendors.hetzner import HetznerSettings, open_cloud, why_not_configured
from tests.emulators.base import Fault
from tests.emulators.emulated import spec_of
from tests.emulators.hetzner import READONLY_TOKEN, TOKEN
from tests.emulators.hetzner_world import HetznerWorld, open_world

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def world() -> Iterator[HetznerWorld]:
    with open_world() as opened:
        yield opened


# -- catalog --


def test_server_types_with_places_and_prices(world: HetznerWorld) -> None:
    offers = {offer.name: offer for offer in world.cloud.catalog()}
    assert set(offers) == {"cx23", "cax11", "cpx11", "ccx13"}  # cx11 is withdrawn everywhere
    ccx13 = offers["ccx13"]
    assert (ccx13.vcpus, ccx13.memory_bytes, ccx13.disk_bytes) == (2, 8 * 2**30, 80 * 10**9)
    assert (ccx13.vendor, ccx13.currency, ccx13.gpus) == ("hetzner", "EUR", 0)
    assert ccx13.places == ("fsn1", "nbg1", "ash")  # the cheapest first
    assert ccx13.prices == {"fsn1": Decimal("0.0208"), "nbg1": Decimal("0.0208"), "ash": Decimal("0.0248")}
    assert ccx13.price_per_hour == Decimal("0.0208")  # with a primary IPv4, without VAT
    assert ccx13.price_read_unix_s == world.now()
    assert ccx13.spot_prices == {}
    assert (offers["cax11"].arch, offers["cx23"].arch) == ("aarch64", "x86_64")
    assert offers["cax11"].places == ("fsn1",)  # sold out in nbg1
    assert offers["cpx11"].places == ("fsn1", "ash")  # withdrawn in hel1


def test_types_that_are_not_sold_now(world: HetznerWorld) -> None:
    with pytest.raises(ConfigError, match="cx999"):
        world.cloud.server_type("cx999")
    withdrawn = world.cloud.server_type("cx11")
    assert (withdrawn.places, withdrawn.price_per_hour) == ((), Decimal("0.0048"))
    assert world.cloud.server_type("cx23").name == "cx23"


def test_only_the_locations_that_are_wanted(world: HetznerWorld) -> None:
    cloud = world.cloud_with(TOKEN, locations=("ash",))
    assert {offer.name: offer.places for offer in cloud.catalog()} == {"cpx11": ("ash",), "ccx13": ("ash",)}


def test_by_default_the_cheapest_of_each_kind(world: HetznerWorld) -> None:
    assert set(world.cloud.default_server_types()) == {"cx23", "cax11", "ccx13"}


def test_the_catalog_is_read_once_an_hour(world: HetznerWorld) -> None:
    for _ in range(3):
        world.cloud.catalog()
    assert world.calls().count("GET /server_types") == 1
    world.sleep(3601)
    world.cloud.catalog()
    assert world.calls().count("GET /server_types") == 2


# -- doctor --


def checks_of(cloud: HetznerCloud) -> dict[str, Check]:
    return {check.name: check for check in cloud.doctor()}


def test_a_sound_account(world: HetznerWorld) -> None:
    checks = checks_of(world.cloud_with(TOKEN))
    assert {name: check.ok for name, check in checks.items()} == {
        "reachability": True,
        "identity": True,
        "permissions": True,
        "images": True,
        "quotas": None,
        "leftovers": True,
        "rate limit": True,
    }
    assert "of 3600 requests" in checks["rate limit"].detail
    assert "fsn1" in checks["reachability"].detail
    assert world.existing() == []
    assert {call for call in world.calls() if not call.startswith("GET ")} == {"PUT /ssh_keys/{id}"}


def test_a_project_whose_requests_are_nearly_used_up() -> None:
    with open_world(requests_per_hour=200) as world:
        world.emulator._left = 25.0
        spent = checks_of(world.cloud_with(TOKEN))["rate limit"]
        assert spent.ok is False
        assert spent.next_step


def test_a_token_that_may_only_read(world: HetznerWorld) -> None:
    checks = checks_of(world.cloud_with(READONLY_TOKEN))
    assert checks["permissions"].ok is False
    assert "read and write" in checks["permissions"].next_step
    assert checks["identity"].ok


def test_a_token_that_opens_nothing(world: HetznerWorld) -> None:
    (check,) = world.cloud_with("revoked").doctor()
    assert (check.name, check.ok) == ("identity", False)
    assert "unauthorized" in check.detail


def test_an_api_that_cannot_be_reached() -> None:
    cloud = HetznerCloud(open_client(TOKEN, endpoint="http://127.0.0.1:9/v1", connect_timeout_s=0.5))
    (check,) = cloud.doctor()
    assert (check.name, check.ok) == ("reachability", False)


def test_what_bills_without_a_label_is_shown(world: HetznerWorld) -> None:
    world.add_foreign()
    made = world.cloud.create(spec_of(world))
    stray = world.emulator.project.add("primary_ips", "primary_ip-99", "fsn1", {})
    stray.data = {"ip": "203.0.113.99", "assignee": None, "auto_delete": False}
    leftovers = checks_of(world.cloud_with(TOKEN))["leftovers"]
    assert leftovers.ok is None
    assert "primary_ip primary_ip-99" in leftovers.detail
    assert made.name not in leftovers.detail


def test_one_check_that_fails_does_not_hide_the_others(world: HetznerWorld) -> None:
    world.plant(Fault("GET /images", how="html_502"))
    checks = checks_of(world.cloud_with(TOKEN))
    assert checks["images"].ok is False
    assert checks["permissions"].ok


# -- credentials --


def test_credentials_and_options_from_the_environment(monkeypatch: pytest.MonkeyPatch, world: HetznerWorld) -> None:
    monkeypatch.setenv("HCLOUD_TOKEN", TOKEN)
    monkeypatch.setenv("TOKENSWEEP_HETZNER_LOCATIONS", "ash, fsn1")
    monkeypatch.setenv("TOKENSWEEP_HETZNER_ENDPOINT_URL", f"{world.url}/v1")
    assert why_not_configured() == ""
    cloud = open_cloud()
    assert {place for offer in cloud.catalog() for place in offer.places} == {"ash", "fsn1"}
    assert cloud.list_owned().complete
    assert TOKEN not in repr(cloud)


def test_without_credentials_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HCLOUD_TOKEN", raising=False)
    assert "HCLOUD_TOKEN" in why_not_configured()
    with pytest.raises(ConfigError, match="HCLOUD_TOKEN"):
        open_cloud()
    assert why_not_configured(HetznerSettings(block="mine")) == ""


def test_a_key_of_the_project_keeps_root_passwords_from_being_mailed(world: HetznerWorld) -> None:
    world.cloud_with(TOKEN, ssh_keys=("mine",)).create(spec_of(world))
    (server,) = world.emulator.project.alive("servers")
    assert server.data["ssh_keys"] == ["mine"]


def test_credentials_from_a_prefect_block(prefect_url: str, world: HetznerWorld) -> None:
    code = f"""
from tasks.vendors.blocks import HetznerCredentials
block = HetznerCredentials(token={TOKEN!r})
block.save("sweeper", _sync=True)
print(repr(block))
from tasks.vendors.hetzner import HetznerSettings, open_cloud
cloud = open_cloud(HetznerSettings(block="sweeper", endpoint_url={world.url + "/v1"!r}))
print(cloud.list_owned().complete)
try:
    open_cloud(HetznerSettings(block="another"))
except Exception as exc:
    print(type(exc).__name__, exc)
"""
    env = {**os.environ, "PREFECT_API_URL": prefect_url}
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, env=env, capture_output=True, text=True)
    _, complete, failed = done.stdout.split("\n", 2)
    assert (complete, failed.split()[0]) == ("True", "ConfigError"), done.stderr
    assert "hetzner-credentials/another" in failed
    assert TOKEN not in done.stdout + done.stderr


def test_looking_at_the_vendor_loads_neither_sdk_nor_prefect() -> None:
    code = """
import sys, tasks.vendors.hetzner, tasks.vendors.upcloud
tasks.vendors.hetzner.why_not_configured(), tasks.vendors.upcloud.why_not_configured()
print(sorted({m.split(".")[0] for m in sys.modules} & {"hcloud", "upcloud_api", "prefect", "requests"}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_default_endpoint_is_that_of_the_emulator(world: HetznerWorld) -> None:
    client = open_client(TOKEN)
    assert client._client._endpoint.split("/")[2] in world.emulator.hosts
    assert client._client._timeout == (10.0, 30.0)
