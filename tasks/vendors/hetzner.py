"""Opening Hetzner Cloud: a token from a Prefect block or HCLOUD_TOKEN, options from TOKENSWEEP_HETZNER_*."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tasks.domain.errors import ConfigError

if TYPE_CHECKING:
    from tasks.clouds.hetzner import HetznerCloud

TOKEN_VARIABLE = "HCLOUD_TOKEN"  # noqa: S105 - the name that Hetzner's own tools use
ENDPOINT_VARIABLE = "HCLOUD_ENDPOINT"


class HetznerSettings(BaseSettings):
    """Where to create servers at Hetzner, and as whom. A token is of one project; take one for sweeps alone."""

    model_config = SettingsConfigDict(env_prefix="TOKENSWEEP_HETZNER_", extra="ignore")

    block: str = Field(default="", description="name of a HetznerCredentials block; default the token in HCLOUD_TOKEN")
    locations: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="comma-separated; default every location"
    )
    ssh_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="names of SSH keys in the project; with one, Hetzner mails no root password for every server",
    )
    endpoint_url: str = Field(default="", description="replaces https://api.hetzner.cloud/v1")

    @field_validator("locations", "ssh_keys", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(filter(None, (v.strip() for v in value.split(",")))) if isinstance(value, str) else value


def why_not_configured(settings: HetznerSettings | None = None) -> str:
    """Why Hetzner cannot be used here, "" if it can be tried. Looks at no network."""
    settings = settings or HetznerSettings()
    if settings.block or os.environ.get(TOKEN_VARIABLE, "").strip():
        return ""
    return f"no token of Hetzner Cloud: set TOKENSWEEP_HETZNER_BLOCK or {TOKEN_VARIABLE}"


def open_cloud(settings: HetznerSettings | None = None) -> HetznerCloud:
    """Raises ConfigError for a block that cannot be loaded, or for no token."""
    from tasks.clouds.hetzner import HetznerCloud, open_client
    from tasks.clouds.hetzner.client import ENDPOINT

    settings = settings or HetznerSettings()
    token = _block_token(settings.block) if settings.block else os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise ConfigError(f"There is {why_not_configured(settings)}.", next_step="See docs/vendors/hetzner.md.")
    endpoint = settings.endpoint_url or os.environ.get(ENDPOINT_VARIABLE, "") or ENDPOINT
    client = open_client(token, endpoint=endpoint)
    return HetznerCloud(client, locations=settings.locations, ssh_keys=settings.ssh_keys)


def _block_token(name: str) -> str:
    from tasks.vendors.blocks import HetznerCredentials

    load: Any = HetznerCredentials.load
    try:
        block = load(name, _sync=True)  # also from a thread of an event loop, where it would else be a coroutine
    except Exception as exc:
        raise ConfigError(
            f"The Prefect block hetzner-credentials/{name} cannot be loaded: {exc}",
            next_step="Make it: docs/vendors/hetzner.md, Credentials.",
        ) from None
    return str(block.token.get_secret_value())
