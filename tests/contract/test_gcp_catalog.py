"""Machine types and prices from the emulated APIs, and what the doctor finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from tasks.clouds.base import Check
from tasks.clouds.deletion import delete_and_prove
from tasks.clouds.gcp.doctor import CONTROLLER_PERMISSIONS, REAPER_PERMISSIONS
from tasks.clouds.gcp.prices import Rates, Shape
from tasks.domain.errors import ConfigError
from tasks.domain.lifecycle import ResourceState
from tasks.ledger import Ledger
from tasks.reaper import reap
from tests.contract.gcp_servers import TTL_S, ours, spec_for
from tests.contract.test_gcp_faults import create
from tests.emulators import gcp_offers as offers
from tests.emulators.base import Fault
from tests.emulators.gcp_world import GcpWorld, open_world

POLICIES = Path(__file__).resolve().parents[2] / "deployments" / "policies"


@pytest.fixture
def world() -> Iterator[GcpWorld]:
    with open_world(page_size=7) as opened:  # every listing has many pages
        yield opened


# -- catalogue --


ATTACHED = {"n1-standard-8-1x-nvidia-tesla-t4", "n1-standard-16-2x-nvidia-tesla-t4"}


def test_every_machine_type_is_there_once_with_its_zones(world: GcpWorld) -> None:
    found = {kind.name: kind for kind in world.cloud.catalog()}
    assert set(found) == set(offers.MACHINE_TYPES) | ATTACHED
    assert len(world.cloud.catalog()) == len(found)
    for name, sold in offers.MACHINE_TYPES.items():
        kind = found[name]
        assert set(kind.places) == (set(sold.zones) if name != "x9-metal" else set())
        assert (kind.vcpus, kind.memory_bytes) == (sold.vcpus, sold.memory_mib * 2**20)
        assert kind.arch == {"X86_64": "x86_64", "ARM64": "aarch64"}[sold.arch]
        assert kind.disk_bytes == 0
        assert kind.price_read_unix_s == world.now()


def test_prices_are_what_the_account_is_billed(world: GcpWorld) -> None:
    """Of every type with a price, in every zone, on demand and spot: the whole server, GPU and local SSD included."""
    for kind in world.cloud.catalog():
        if kind.name in {"x9-metal", *ATTACHED}:
            continue
        sold = offers.MACHINE_TYPES[kind.name]
        for zone in sold.zones:
            billed = offers.usd_per_hour(sold, zone, spot=False)
            assert abs(kind.prices[zone] - billed) < Decimal("1e-6"), (kind.name, zone)
            spot = offers.usd_per_hour(sold, zone, spot=True)
            assert abs(kind.spot_prices[zone] - spot) < Decimal("1e-6"), (kind.name, zone)
        assert kind.places[0].startswith("us-") or kind.places == ("europe-west4-a",), "the cheapest zone comes first"
        assert kind.price_per_hour == kind.prices[kind.places[0]] == min(kind.prices.values())
        assert kind.currency == "USD"
        assert kind.price_source == "Cloud Billing Catalog API, services/6F81-5844-456A, in effect since 2026-11-01"


def test_a_type_without_a_price_says_so_and_has_none_invented(world: GcpWorld) -> None:
    kind = world.cloud.server_type("x9-metal")
    assert (kind.price_per_hour, kind.prices, kind.spot_prices) == (Decimal(0), {}, {})
    assert kind.places == (), "nothing is planned with what costs nobody knows what"
    assert kind.price_source == "none: no price of vCPUs and memory of family x9 in us-central1"


def test_gpus(world: GcpWorld) -> None:
    kind = world.cloud.server_type("g2-standard-4")
    assert (kind.gpus, kind.gpu_model, kind.gpu_memory_bytes) == (1, "NVIDIA L4", 24 * 2**30)
    assert kind.places == ("us-central1-a", "europe-west4-a")
    assert world.cloud.server_type("e2-standard-2").gpus == 0


def test_gpus_that_are_attached_are_sold_where_machine_and_gpu_are(world: GcpWorld) -> None:
    one = world.cloud.server_type("n1-standard-8-1x-nvidia-tesla-t4")
    assert (one.vcpus, one.gpus, one.gpu_model, one.gpu_memory_bytes) == (8, 1, "NVIDIA T4", 16 * 2**30)
    assert one.places == ("us-central1-a", "europe-west4-a"), "there are none in us-central1-b"
    two = world.cloud.server_type("n1-standard-16-2x-nvidia-tesla-t4")
    assert (two.gpus, two.places) == (2, ("us-central1-a",))
    for kind, t4s in ((one, 1), (two, 2)):
        base = offers.MACHINE_TYPES[kind.name.partition(f"-{t4s}x")[0]]
        for spot, prices in ((False, kind.prices), (True, kind.spot_prices)):
            billed = offers.usd_per_hour(base, "us-central1-a", spot=spot, t4s=t4s)
            assert abs(prices["us-central1-a"] - billed) < Decimal("1e-6")


def test_a_name_that_is_not_for_sale(world: GcpWorld) -> None:
    with pytest.raises(ConfigError, match="n2-standard-3"):
        world.cloud.server_type("n2-standard-3")


def test_the_default_types_are_for_sale_and_have_a_price(world: GcpWorld) -> None:
    names = world.cloud.default_server_types()
    assert names == ("e2-standard-2", "n4-standard-2", "n4d-standard-2", "c4a-standard-2")
    for name in names:
        assert world.cloud.server_type(name).places
    in_europe = world.another_cloud(regions=("europe-west4",))
    assert in_europe.default_server_types() == ("e2-standard-2", "n4-standard-2", "c4a-standard-2")


def test_only_the_regions_that_are_wanted(world: GcpWorld) -> None:
    cloud = world.another_cloud(regions=("europe-west4",))
    assert {place for kind in cloud.catalog() for place in kind.places} == {"europe-west4-a"}


def test_the_catalogue_is_read_once_and_fails_as_a_whole(world: GcpWorld) -> None:
    world.plant(Fault("services.skus.list", "html_502"))
    with pytest.raises(Exception) as refused:
        world.cloud.catalog()
    assert world.cloud.classify(refused.value).may_exist
    world.cloud.catalog()
    n_calls = len(world.calls())
    world.cloud.catalog()
    assert len(world.calls()) == n_calls


@pytest.mark.parametrize(
    "text",
    [
        "N2 Custom Instance Core running in Americas",
        "N2 Custom Extended Instance Ram running in Americas",
        "N2 Sole Tenancy Instance Core running in Americas",
        "N2 Instance Core running in Americas (Reserved)",
        "Reserved N2 Instance Core in Americas",
        "DWS Defined Duration N2 Instance Core running in Americas",
        "Memory-optimized Instance Core running in Americas",
        "Upgrade Premium for Memory-optimized Instance Core running in Americas",
        "Commitment v1: N2 Cpu in Americas for 1 Year",
        "N2 Instance Core",
        "",
    ],
)
def test_what_is_another_product_is_no_price(text: str) -> None:
    rates = Rates()
    (sku,) = [s for s in offers.skus() if s["description"] == "N2 Instance Core running in Americas"]
    rates.add({**sku, "description": text})
    assert rates.usd == {}
    rates.add(sku)
    assert rates.usd == {("core n2", "us-central1", False): Decimal("0.031611")}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("N2D AMD Instance Core running in Americas", "core n2d"),
        ("M3 Memory-optimized Instance Core running in Iowa", "core m3"),
        ("C4A Arm Instance Ram running in London", "ram c4a"),
        ("Compute optimized Core running in Americas", "core c2"),
        ("Compute optimized Instance Ram running in Berlin", "ram c2"),
        ("N1 Predefined Instance Core running in Americas", "core n1"),
        ("Preemptible A2 Instance Core running in Americas", "core a2"),
        ("Spot Preemptible E2 Instance Ram running in Paris", "ram e2"),
        ("A3Plus Instance Core running in Americas", "core a3plus"),
        ("Micro Instance with burstable CPU running in Americas", "whole Micro"),
        ("Nvidia Tesla A100 GPU running in Americas", "gpu A100"),
        ("Nvidia Tesla A100 80GB GPU running in Americas", "gpu A100 80GB"),
        ("Nvidia L4 GPU attached to Spot Preemptible VMs running in Americas", "gpu L4"),
        ("Spot Preemptible Nvidia H100 80GB Plus GPU running in Americas", "gpu H100 80GB PLUS"),
        ("Nvidia B200 (1 gpu slice) running in Americas", "gpu B200"),
        ("Nvidia Tesla T4 Virtual Workstation running in Americas", ""),
    ],
)
def test_descriptions_as_the_catalogue_words_them(text: str, what: str) -> None:
    rates = Rates()
    (sku,) = [s for s in offers.skus() if s["description"] == "N2 Instance Core running in Americas"]
    group = "GPU" if "Nvidia" in text else "CPU"
    rates.add({**sku, "description": text, "category": {**sku["category"], "resourceGroup": group}})
    assert [key[0] for key in rates.usd] == ([what] if what else [])


def test_a_part_without_a_price_is_named() -> None:
    rates = Rates()
    for sku in offers.skus():
        if "L4" not in sku["description"]:
            rates.add(sku)
    shape = Shape("g2-standard-4", 4, 16_384, gpus=1, accelerator="nvidia-l4")
    assert rates.price(shape, "us-central1") == "no price of nvidia-l4 of family g2 in us-central1"
    z3 = Shape("z3-highmem-8", 8, 65_536, local_ssds=1)
    assert "local SSDs" in str(rates.price(z3, "us-central1")), "the size of its partitions is not known"


# -- doctor --


def failed(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks if not check.ok}


def test_a_healthy_project(world: GcpWorld) -> None:
    found = list(world.cloud.doctor())
    assert failed(found) == {}
    names = {check.name for check in found}
    assert {"gcp project", "gcp permissions", "gcp quotas", "gcp network", "gcp prices"} <= names
    assert len([name for name in names if name.startswith("gcp image")]) == 4
    assert not [call for call in world.calls() if "insert" in call], "the doctor makes nothing"
    assert world.existing() == []


def test_an_image_that_has_outgrown_our_disks(world: GcpWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ("ubuntu-os-accelerator-images", "ubuntu-accelerator-2404-amd64-with-nvidia-580")
    monkeypatch.setitem(offers.IMAGES, key, replace(offers.IMAGES[key], size_gb=60))
    assert list(failed(list(world.cloud.doctor()))) == [f"gcp image {key[1]}"]


def test_what_is_missing_is_named(world: GcpWorld) -> None:
    world.emulator.granted = set(CONTROLLER_PERMISSIONS) - {"compute.instances.delete"}
    found = failed(list(world.cloud.doctor()))
    assert list(found) == ["gcp permissions"]
    assert "compute.instances.delete" in found["gcp permissions"].detail
    assert "gcp-controller" in found["gcp permissions"].next_step


def test_quotas_that_are_used_up(world: GcpWorld) -> None:
    world.emulator.project.quotas.update(dict.fromkeys(offers.REGIONS, 0))
    world.emulator.project.gpus_all_regions = 0
    found = failed(list(world.cloud.doctor()))
    assert found["gcp quotas"].ok is False
    assert found["gcp quota GPUS_ALL_REGIONS"].ok is None, "a project without GPUs is a project all the same"


def test_bad_credentials_fail_every_part_with_a_next_step(world: GcpWorld) -> None:
    world.emulator.tokens.clear()
    found = list(world.cloud.doctor())
    assert len(found) == 6
    assert all(check.ok is False and check.next_step for check in found)


def test_a_network_that_there_is_not(world: GcpWorld) -> None:
    found = failed(list(world.another_cloud(network="none").doctor()))
    assert list(found) == ["gcp network"]


def test_what_cannot_be_reached_is_not_called_bad(world: GcpWorld) -> None:
    world.plant(Fault("services.skus.list", "html_502"))
    (check,) = failed(list(world.cloud.doctor())).values()
    assert (check.name, check.ok) == ("gcp prices", None)


# -- policies --


def permissions(policy: str) -> set[str]:
    return set(yaml.safe_load((POLICIES / policy).read_text())["includedPermissions"])


def test_the_controllers_policy_is_enough_for_a_whole_life_and_for_the_doctor(tmp_path: Path) -> None:
    with open_world() as world:
        world.emulator.granted = permissions("gcp-controller.yaml")
        assert failed(list(world.cloud.doctor())) == {}
        assert world.cloud.catalog()
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite", now=world.now)
        ledger.beat("reaper", ("gcp",), account=world.cloud.project)
        live = create(world, ledger)
        row = delete_and_prove(world.cloud, ledger, live.row, now=world.now, sleep=world.sleep)
        assert row.state is ResourceState.GONE
        assert ours(world) == []


def test_the_reapers_policy_deletes_and_creates_nothing(tmp_path: Path) -> None:
    with open_world() as world:
        world.cloud.create(spec_for(world))
        for kind, name, scope in (
            ("addresses", "a", "us-central1"),
            ("addresses", "g", "global"),
            ("snapshots", "s", "global"),
        ):
            world.emulator.add(kind, name, scope, {"labels": spec_for(world).tags, "address": "198.51.100.1"})
        world.emulator.granted = permissions("gcp-reaper.yaml")
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite", now=world.now)
        world.sleep(TTL_S - 300)
        for _ in range(3):
            report = reap([world.cloud], ledger, world.now, world.sleep, prove_s=120)
            world.sleep(600)
        assert report.finished
        assert ours(world) == []
        with pytest.raises(Exception) as refused:
            world.cloud.create(spec_for(world, name="tokensweep-2", token="cd" * 32))
        assert world.cloud.classify(refused.value).code == "IAM_PERMISSION_DENIED"


def test_the_policies_say_what_the_doctor_asks_for() -> None:
    assert permissions("gcp-controller.yaml") == set(CONTROLLER_PERMISSIONS)
    assert permissions("gcp-reaper.yaml") == set(REAPER_PERMISSIONS)
    assert permissions("gcp-reaper.yaml") < permissions("gcp-controller.yaml")
