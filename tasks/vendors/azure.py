"""Opening Azure: credentials from a Prefect block or the environment, options from TOKENSWEEP_AZURE_*."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tasks.domain.errors import ConfigError

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

    from tasks.clouds.azure import AzureCloud

_PRINCIPAL = ("AZURE_CLIENT_ID", "AZURE_TENANT_ID")
_PROOFS = ("AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_FEDERATED_TOKEN_FILE")


class AzureSettings(BaseSettings):
    """Where to create servers in Azure, and as whom. Endpoints differ in national clouds only."""

    model_config = SettingsConfigDict(env_prefix="TOKENSWEEP_AZURE_", extra="ignore", populate_by_name=True)

    block: str = Field(default="", description="name of an AzureContainerInstanceCredentials block of Prefect")
    default_credential: bool = Field(
        default=False, description="look where the SDK always does: managed identity, az login, environment"
    )
    subscription_id: str = Field(
        default="", validation_alias=AliasChoices("TOKENSWEEP_AZURE_SUBSCRIPTION_ID", "AZURE_SUBSCRIPTION_ID")
    )
    regions: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="comma-separated; default every region that sells to the subscription"
    )
    endpoint: str = Field(default="https://management.azure.com")
    token_scope: str = Field(default="https://management.azure.com/.default")
    prices_endpoint: str = Field(default="https://prices.azure.com")
    ca_file: str = Field(default="", description="certificates to trust instead of the usual ones")

    @field_validator("regions", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(filter(None, (v.strip() for v in value.split(",")))) if isinstance(value, str) else value


def why_not_configured(settings: AzureSettings | None = None) -> str:
    """Why Azure cannot be used here, "" if it can be tried. Looks at no network."""
    settings = settings or AzureSettings()
    if not settings.subscription_id:
        return "no subscription: set TOKENSWEEP_AZURE_SUBSCRIPTION_ID or AZURE_SUBSCRIPTION_ID"
    by_environment = all(map(os.environ.get, _PRINCIPAL)) and any(map(os.environ.get, _PROOFS))
    if settings.block or settings.default_credential or by_environment:
        return ""
    return (
        "no credentials: set TOKENSWEEP_AZURE_BLOCK, or AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or "
        "TOKENSWEEP_AZURE_DEFAULT_CREDENTIAL=true after `az login`"
    )


def open_cloud(settings: AzureSettings | None = None) -> AzureCloud:
    """Azure with the credentials of the block, else of the SDK. Raises ConfigError where there are none."""
    settings = settings or AzureSettings()
    if why_not := why_not_configured(settings):
        raise ConfigError(f"azure: {why_not}", next_step="See docs/vendors/azure.md, Credentials.")
    from tasks.clouds.azure import AzureCloud, Connection

    connection = Connection(
        subscription_id=settings.subscription_id,
        credential=_credential(settings),
        endpoint=settings.endpoint.rstrip("/"),
        token_scope=settings.token_scope,
        prices_endpoint=settings.prices_endpoint.rstrip("/"),
        ca_file=settings.ca_file,
    )
    return AzureCloud(connection, regions=settings.regions)


def _credential(settings: AzureSettings) -> TokenCredential:
    from azure.identity import ClientSecretCredential, DefaultAzureCredential

    # The SDK's own retries of a token request are harmless, and go as long as ours wait.
    options: dict[str, Any] = {"connection_timeout": 10, "read_timeout": 30}
    if settings.ca_file:
        options["connection_verify"] = settings.ca_file
    if not settings.block:
        return DefaultAzureCredential(**options)
    block = _load(settings.block)
    options |= block.credential_kwargs
    if block.client_id is None:
        return DefaultAzureCredential(**options)
    secret = block.client_secret.get_secret_value()
    return ClientSecretCredential(block.tenant_id, block.client_id, secret, **options)


def _load(name: str) -> Any:
    from prefect_azure import AzureContainerInstanceCredentials

    load: Any = AzureContainerInstanceCredentials.load
    try:
        return load(name, _sync=True)  # also from a thread of an event loop, where it would else be a coroutine
    except Exception as exc:
        raise ConfigError(
            f"The Prefect block azure-container-instance-credentials/{name} cannot be loaded: {exc}",
            next_step="Make it: docs/vendors/azure.md, Credentials.",
        ) from None
