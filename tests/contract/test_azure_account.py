"""How Azure is opened, what its errors mean, and how its resources are named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceRequestError
from azure.identity import ClientSecretCredential

from tasks.clouds.azure.errors import classify
from tasks.clouds.azure.identity import CloudId, decode_tags, encode_tags
from tasks.clouds.base import ErrorKind, Scope
from tasks.domain.errors import ConfigError
from tasks.settings import CHECKOUT
from tasks.vendors.azure import AzureSettings, open_cloud, why_not_configured
from tests.emulators.azure import CLIENT_ID, CLIENT_SECRET, TENANT
from tests.emulators.azure_state import SUBSCRIPTION
from tests.emulators.azure_world import AzureWorld, StaticCredential, ca_file, entra, open_world
from tests.emulators.emulated import spec_of


@pytest.fixture
def world() -> Iterator[AzureWorld]:
    with open_world() as opened:
        yield opened


# -- credentials --


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
