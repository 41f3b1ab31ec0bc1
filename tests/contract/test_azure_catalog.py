"""What Azure sells, what doctor says of it, what its errors mean, and how it is opened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceRequestError
from azure.identity import ClientSecretCredential

from tasks.clouds.azure.doctor import NEEDED, allowed
from tasks.clouds.azure.errors import classify
from tasks.clouds.azure.gpus import model_of
from tasks.clouds.azure.identity import CloudId, Place, decode_tags, encode_tags
from tasks.clouds.base import Check, ErrorKind, Scope
from tasks.domain.errors import ConfigError
from tasks.settings import CHECKOUT
from tasks.vendors.azure import AzureSettings, open_cloud, why_not_configured
from tests.emulators.azure import CLIENT_ID, CLIENT_SECRET, TENANT
from tests.emulators.azure_sales import IMAGES
from tests.emulators.azure_state import SUBSCRIPTION
from tests.emulators.azure_world import AzureWorld, StaticCredential, ca_file, open_world, spec_of
from tests.emulators.base import Fault


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
    assert "100 cores left" in checks["quota in westeurope"].detail
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
    world.plant(Fault("permissions.list", how="html_502"), Fault("retailPrices.list", how="html_502", times=9))
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


# -- credentials --


def entra(world: AzureWorld) -> dict[str, Any]:
    """Where the emulated Microsoft Entra ID is."""
    return {"authority": world.url, "disable_instance_discovery": True, "connection_verify": ca_file()}


def test_a_service_principal_gets_its_token_and_creates_a_server(world: AzureWorld) -> None:
    world.emulator.tokens.clear()
    cloud = world.cloud_with(ClientSecretCredential(TENANT, CLIENT_ID, CLIENT_SECRET, **entra(world)))
    made = cloud.create(spec_of(world))
    assert cloud.get(made.ref()) is not None
    assert world.calls().count("token.acquire") == 1
    wrong = world.cloud_with(ClientSecretCredential(TENANT, CLIENT_ID, "wrong-secret", **entra(world)))
    with pytest.raises(ClientAuthenticationError) as caught:
        wrong.get(made.ref())
    found = wrong.classify(caught.value)
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.AUTH, Scope.VENDOR, False)
    assert "wrong-secret" not in found.message


@pytest.fixture
def no_azure_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if "AZURE_" in name]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_it_says_without_a_network_why_it_is_not_configured(no_azure_environment: pytest.MonkeyPatch) -> None:
    assert "AZURE_SUBSCRIPTION_ID" in why_not_configured()
    no_azure_environment.setenv("AZURE_SUBSCRIPTION_ID", SUBSCRIPTION)
    assert "AZURE_CLIENT_ID" in why_not_configured()
    with pytest.raises(ConfigError, match="AZURE_CLIENT_ID"):
        open_cloud()
    assert why_not_configured(AzureSettings(block="mine")) == ""
    no_azure_environment.setenv("AZURE_CLIENT_ID", CLIENT_ID)
    no_azure_environment.setenv("AZURE_TENANT_ID", TENANT)
    assert why_not_configured() != ""
    no_azure_environment.setenv("AZURE_CLIENT_SECRET", CLIENT_SECRET)
    assert why_not_configured() == ""


def test_it_opens_with_the_environment_and_options(world: AzureWorld, no_azure_environment: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION,
        "TOKENSWEEP_AZURE_DEFAULT_CREDENTIAL": "true",
        "TOKENSWEEP_AZURE_REGIONS": "westeurope, eastus",
        "TOKENSWEEP_AZURE_ENDPOINT": world.url + "/",
        "TOKENSWEEP_AZURE_PRICES_ENDPOINT": world.url,
        "TOKENSWEEP_AZURE_CA_FILE": ca_file(),
    }.items():
        no_azure_environment.setenv(name, value)
    cloud = open_cloud()
    assert cloud.vendor == "azure"
    with pytest.raises(ClientAuthenticationError) as caught:
        cloud.catalog()
    assert cloud.classify(caught.value).kind is ErrorKind.AUTH


def test_credentials_from_a_prefect_block(prefect_url: str, world: AzureWorld) -> None:
    code = f"""
from prefect_azure import AzureContainerInstanceCredentials
from tasks.settings import CHECKOUT
from tasks.vendors.azure import AzureSettings, open_cloud
block = AzureContainerInstanceCredentials(
    client_id={CLIENT_ID!r}, tenant_id={TENANT!r}, client_secret={CLIENT_SECRET!r},
    credential_kwargs=dict(authority={world.url!r}, disable_instance_discovery=True),
)
block.save("sweeper", _sync=True)
options = dict(subscription_id={SUBSCRIPTION!r}, endpoint={world.url!r}, ca_file={ca_file()!r})
print(open_cloud(AzureSettings(block="sweeper", **options)).list_owned().complete)
try:
    open_cloud(AzureSettings(block="another", **options))
except Exception as exc:
    print(type(exc).__name__, exc)
"""
    env = {**os.environ, "PREFECT_API_URL": prefect_url}
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, env=env, capture_output=True, text=True)
    complete, _, failed = done.stdout.partition("\n")
    assert (complete, failed.partition(" ")[0]) == ("True", "ConfigError"), done.stderr
    assert "azure-container-instance-credentials/another" in failed
    assert CLIENT_SECRET not in done.stdout + done.stderr


def test_looking_at_the_vendor_loads_neither_sdk_nor_prefect() -> None:
    code = """
import sys, tasks.vendors.azure
tasks.vendors.azure.why_not_configured()
print(sorted({m.split(".")[0] for m in sys.modules} & {"azure", "msal", "prefect", "requests"}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# -- errors --


class Answer:
    """As much of an HTTP response as the SDK's errors read."""

    def __init__(self, status: int, body: str) -> None:
        self.status_code, self.reason, self._body = status, "refused", body

    def text(self) -> str:
        return self._body


def error_of(status: int, body: str) -> HttpResponseError:
    answer: Any = Answer(status, body)
    return HttpResponseError(response=answer)


@pytest.mark.parametrize(
    ("status", "body", "kind", "scope", "may_exist"),
    [
        (
            409,
            '{"error": {"code": "OperationNotAllowed", "message": "Operation could not be completed as it results in '
            'exceeding approved standardNCASv3_T4Family Cores quota. Additional details: Submit a request"}}',
            ErrorKind.QUOTA,
            Scope.REGION,
            False,
        ),
        (
            409,
            '{"error": {"code": "OperationNotAllowed", "message": "Azure Spot is not supported for this VM size."}}',
            ErrorKind.UNSUPPORTED,
            Scope.SERVER_TYPE,
            False,
        ),
        (
            400,
            '{"error": {"code": "InvalidTemplateDeployment", "message": "See inner errors.", "details": [{"code": '
            '"SkuNotAvailable", "message": "The requested size is not available"}]}}',
            ErrorKind.CAPACITY,
            Scope.REGION,
            False,
        ),
        (
            409,
            '{"error": {"code": "Conflict", "message": "x", "innererror": {"code": "ZonalAllocationFailed"}}}',
            ErrorKind.CAPACITY,
            Scope.ZONE,
            False,
        ),
        (
            400,
            '{"error": {"code": "InvalidParameter", "message": "The requested VM size X is not available in the '
            'current region."}}',
            ErrorKind.UNSUPPORTED,
            Scope.REGION,
            False,
        ),
        (
            400,
            '{"error": {"code": "BadRequest", "message": "not supported for the \'<NULL>\' security type"}}',
            ErrorKind.UNSUPPORTED,
            Scope.SERVER_TYPE,
            False,
        ),
        (
            409,
            '{"error": {"code": "ReadOnlyDisabledSubscription", "message": "x"}}',
            ErrorKind.AUTH,
            Scope.VENDOR,
            False,
        ),
        (
            429,
            '{"error": {"code": "OperationNotAllowed", "message": "too many requests, exceeding the limit"}}',
            ErrorKind.RATE_LIMITED,
            Scope.VENDOR,
            False,
        ),
        (429, "slow down", ErrorKind.RATE_LIMITED, Scope.VENDOR, False),
        (409, '{"error": {"code": "PropertyChangeNotAllowed", "message": "x"}}', ErrorKind.EXISTS, Scope.ZONE, True),
        (412, '{"error": {"code": "PreconditionFailed", "message": "x"}}', ErrorKind.EXISTS, Scope.ZONE, True),
        (409, '{"error": {"code": "ScopeLocked", "message": "x"}}', ErrorKind.DELETE_BLOCKED, Scope.ZONE, True),
        (404, '{"error": {"code": "ResourceGroupNotFound", "message": "x"}}', ErrorKind.NOT_FOUND, Scope.ZONE, True),
        (404, "<html>not found</html>", ErrorKind.UNKNOWN, Scope.ZONE, True),
        (502, "<html>bad gateway</html>", ErrorKind.UNKNOWN, Scope.ZONE, True),
        (409, '{"error": {"code": "NeverSeenBefore", "message": "x"}}', ErrorKind.UNKNOWN, Scope.ZONE, True),
        (500, '{"error": {"code": "InternalServerError", "message": "x"}}', ErrorKind.UNKNOWN, Scope.ZONE, True),
        (200, '{"id": "/subscri', ErrorKind.UNKNOWN, Scope.ZONE, True),
        (400, '{"error": "a string"}', ErrorKind.UNKNOWN, Scope.ZONE, True),
        (400, "[]", ErrorKind.UNKNOWN, Scope.ZONE, True),
    ],
)
def test_what_an_answer_means(status: int, body: str, kind: ErrorKind, scope: Scope, may_exist: bool) -> None:
    found = classify(error_of(status, body))
    assert (found.kind, found.scope, found.may_exist) == (kind, scope, may_exist)
    assert found.code and found.message


@pytest.mark.parametrize("exc", [ServiceRequestError("no route"), TimeoutError(), KeyError("x"), KeyboardInterrupt()])
def test_what_is_no_answer_may_exist(exc: BaseException) -> None:
    found = classify(exc)
    assert (found.kind, found.may_exist) == (ErrorKind.UNKNOWN, True)


# -- names --


def test_ids_and_tags_survive_the_round_trip() -> None:
    text = str(CloudId.of("disk", "/subscriptions/s/resourceGroups/RG/providers/M.C/disks/Disk-1", "AB-12"))
    assert text == "disk:rg/disk-1:ab-12"
    assert str(CloudId.parse(text)) == text
    with pytest.raises(ConfigError):
        CloudId.parse("i-0123")
    tags = {"A b": "1", "a b": "2", "windows": "3", "x~y%ü": "4", "tokensweep-owner": "tokensweep"}
    assert decode_tags({name.upper(): value for name, value in encode_tags(tags).items()}) == tags


def test_the_repr_of_a_connection_has_no_credential(world: AzureWorld) -> None:
    class Telling(StaticCredential):
        def __repr__(self) -> str:
            return "a-secret"

        def get_token(self, *scopes: str, **kwargs: Any) -> AccessToken:
            return super().get_token(*scopes, **kwargs)

    cloud = world.cloud_with(Telling())
    assert "a-secret" not in repr(cloud._clients.connection) + repr(cloud)
