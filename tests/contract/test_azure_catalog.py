"""What Azure sells, and what doctor says of an account."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError
from azure.identity import ClientSecretCredential

from tasks.clouds.azure.doctor import NEEDED, allowed
from tasks.clouds.azure.gpus import model_of
from tasks.clouds.azure.identity import Place
from tasks.clouds.base import Check
from tasks.domain.errors import ConfigError
from tasks.settings import CHECKOUT
from tests.emulators.azure import CLIENT_ID, TENANT
from tests.emulators.azure_sales import IMAGES
from tests.emulators.azure_world import AzureWorld, entra, open_world
from tests.emulators.base import Fault
from tests.emulators.emulated import spec_of


@pytest.fixture
def world() -> Iterator[AzureWorld]:
    with open_world() as opened:
        yield opened


# -- catalog --


def test_the_catalog_has_sizes_places_and_linux_prices_of_every_region(world: AzureWorld) -> None:
    catalog = {t.name: t for t in world.cloud.catalog()}
    d4 = catalog["Standard_D4as_v5"]
    assert (d4.vendor, d4.vcpus, d4.memory_bytes, d4.arch) == ("azure", 4, 16 * 2**30, "x86_64")
    assert (d4.price_per_hour, d4.currency, d4.price_source) == (
        Decimal("0.208"),
        "USD",
        "https://prices.azure.com/api/retail/prices",
    )
    assert d4.price_read_unix_s == world.now()
    assert d4.disk_bytes == 0
    zones = {"westeurope-1", "westeurope-2", "westeurope-3", "eastus-1", "eastus-3"}  # eastus-2 refuses it
    assert set(d4.places) == zones | {"northcentralus", "brazilsoutheast"} == set(d4.prices)
    assert set(d4.spot_prices.values()) == {Decimal("0.0416")}
    arm, gpu = catalog["Standard_D2ps_v6"], catalog["Standard_NC4as_T4_v3"]
    assert (arm.arch, arm.spot_prices) == ("aarch64", {})
    assert (gpu.gpus, gpu.gpu_model, gpu.gpu_memory_bytes) == (1, "NVIDIA T4", 16 * 2**30)
    assert "Standard_M128ms" not in catalog  # restricted everywhere
    assert world.cloud.server_type("standard_d4AS_v5") == d4
    assert set(world.cloud.default_server_types()) <= set(catalog)


def test_the_catalog_is_read_once_and_then_prices_what_is_listed(world: AzureWorld) -> None:
    world.cloud.create(spec_of(world))
    before = [r.usd_per_hour for r in world.cloud.list_owned().resources if r.kind == "server"]
    world.cloud.catalog()
    n_calls = len(world.calls())
    world.cloud.catalog()
    assert len(world.calls()) == n_calls
    after = [r.usd_per_hour for r in world.cloud.list_owned().resources if r.kind == "server"]
    assert (before, after) == ([Decimal(0)], [Decimal("0.208")])


def test_the_catalog_of_chosen_regions_asks_for_no_other(world: AzureWorld) -> None:
    cloud = world.cloud_with(regions=("northcentralus",))
    places = {place for t in cloud.catalog() for place in t.places}
    assert places == {"northcentralus"}
    assert (world.calls().count("skus.list"), world.calls().count("locations.list")) == (1, 0)


def test_a_region_that_cannot_be_read_is_left_out_and_named_and_without_any_the_error_is_raised(
    world: AzureWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world.plant(Fault("retailPrices.list", how="code", code="AuthorizationFailed"))
    places = {place for t in world.cloud.catalog() for place in t.places}
    assert len({Place.parse(place).region for place in places}) == 3
    assert "is left out" in caplog.text
    world.plant(Fault("skus.list", how="html_502"))
    places = {place for t in world.cloud_with().catalog() for place in t.places}
    assert len({Place.parse(place).region for place in places}) == 3
    world.plant(Fault("retailPrices.list", how="code", code="AuthorizationFailed", times=99))
    with pytest.raises(HttpResponseError):
        world.cloud_with().catalog()


def test_an_unknown_size_is_a_config_error_that_helps(world: AzureWorld) -> None:
    with pytest.raises(ConfigError, match="Standard_Nope") as caught:
        world.cloud.server_type("Standard_Nope")
    assert "az vm list-skus" in caught.value.next_step


def test_gpu_models_are_told_by_the_name_of_the_size() -> None:
    known = {
        "Standard_NC24ads_A100_v4": "NVIDIA A100 80GB PCIe",
        "Standard_NC40ads_H100_v5": "NVIDIA H100 NVL",
        "Standard_ND96isr_H200_v5": "NVIDIA H200",
        "Standard_ND96amsr_A100_v4": "NVIDIA A100 80GB",
        "Standard_NV36adms_A10_v5": "NVIDIA A10",
        "Standard_ND96isr_MI300X_v5": "AMD MI300X",
    }
    assert {name: model_of(name)[0] for name in known} == known
    assert model_of("Standard_NX1_v9") == ("", 0)


# -- doctor --


def checks_of(world: AzureWorld, **options: Any) -> dict[str, Check]:
    return {check.name: check for check in world.cloud_with(regions=("westeurope",), **options).doctor()}


def test_doctor_looks_at_everything_and_creates_nothing(world: AzureWorld) -> None:
    checks = checks_of(world)
    assert {name: check.ok for name, check in checks.items()} == dict.fromkeys(
        (
            "identity",
            "subscription",
            "permissions",
            "resource providers",
            "prices",
            "quota in westeurope",
            "images in westeurope",
        ),
        True,
    ), checks
    assert "1000 cores left" in checks["quota in westeurope"].detail
    assert not [call for call in world.calls() if not call.endswith((".get", ".list"))]
    assert world.existing() == []


def test_doctor_names_what_is_missing(world: AzureWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = {"actions": ["*/read"], "notActions": []}
    world.emulator.permissions = [reader, {"actions": ["*"], "notActions": ["Microsoft.Network/*"]}]
    world.emulator.shop.quotas = {("westeurope", "total"): 0}
    monkeypatch.delitem(IMAGES, ("microsoft-dsvm", "ubuntu-hpc", "2404"))
    checks = checks_of(world)
    assert {name for name, check in checks.items() if not check.ok} == {
        "permissions",
        "quota in westeurope",
        "images in westeurope",
    }
    missing = checks["permissions"].detail
    assert "Microsoft.Network/virtualNetworks/write" in missing and "Microsoft.Compute" not in missing
    assert "azure-controller.json" in checks["permissions"].next_step


def test_doctor_stops_at_bad_credentials_and_does_not_blame_what_does_not_answer(world: AzureWorld) -> None:
    wrong = ClientSecretCredential(TENANT, CLIENT_ID, "wrong", **entra(world))
    (identity,) = checks_of(world, credential=wrong).values()
    assert identity.ok is False and "AADSTS7000215" in identity.detail
    world.plant(Fault("permissions.list", how="html_502"), Fault("retailPrices.list", how="truncated", after=True))
    checks = checks_of(world)
    assert (checks["permissions"].ok, checks["prices"].ok) == (None, None)


def test_a_role_is_read_with_its_wildcards_and_exceptions() -> None:
    contributor = {"actions": ["*"], "notActions": ["Microsoft.Authorization/*/Write"]}
    assert all(allowed(action, [contributor]) for action in NEEDED)
    assert not allowed("Microsoft.Authorization/roleAssignments/write", [contributor])
    assert not allowed("Microsoft.Compute/disks/write", [{"actions": ["Microsoft.Compute/virtualMachines/*"]}])


def test_the_roles_that_we_hand_out_suffice_and_the_reapers_makes_nothing() -> None:
    def granted(name: str) -> dict[str, list[str]]:
        role = json.loads((CHECKOUT / f"deployments/policies/azure-{name}.json").read_text())
        return {"actions": role["Actions"], "notActions": role["NotActions"]}

    controller, reaper = granted("controller"), granted("reaper")
    assert all(allowed(action, [controller]) for action in NEEDED)
    assert not allowed("Microsoft.Compute/virtualMachines/runCommand/action", [controller])
    assert [action for action in reaper["actions"] if action.endswith(("/write", "/action"))] == []
    assert set(reaper["actions"]) < set(controller["actions"])
    assert allowed("Microsoft.Resources/subscriptions/resourceGroups/delete", [reaper])
