"""Opening UpCloud: credentials from a Prefect block or UPCLOUD_*, options from TOKENSWEEP_UPCLOUD_*."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tasks.domain.errors import ConfigError

if TYPE_CHECKING:
    from tasks.clouds.upcloud import UpCloud


class UpCloudSettings(BaseSettings):
    """Where to create servers at UpCloud, and as whom."""

    model_config = SettingsConfigDict(env_prefix="TOKENSWEEP_UPCLOUD_", extra="ignore")

    block: str = Field(
        default="",
        description="name of an UpCloudCredentials block; default UPCLOUD_TOKEN, or UPCLOUD_USERNAME and _PASSWORD",
    )
    zones: Annotated[tuple[str, ...], NoDecode] = Field(default=(), description="comma-separated; default every zone")
    currency: str = Field(
        default="", pattern=r"^([A-Z]{3})?$", description="of the account's prices; default what the API says"
    )
    endpoint_url: str = Field(default="", description="replaces https://api.upcloud.com/1.3")

    @field_validator("zones", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(filter(None, (v.strip() for v in value.split(",")))) if isinstance(value, str) else value


@dataclass(frozen=True)
class _Login:
    """Never shows what it holds."""

    token: str = field(default="", repr=False)
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def is_complete(self) -> bool:
        return bool(self.token or (self.username and self.password))


def why_not_configured(settings: UpCloudSettings | None = None) -> str:
    """Why UpCloud cannot be used here, "" if it can be tried. Looks at no network."""
    settings = settings or UpCloudSettings()
    if settings.block or _environment().is_complete:
        return ""
    return (
        "no credentials of UpCloud: set TOKENSWEEP_UPCLOUD_BLOCK, UPCLOUD_TOKEN, or UPCLOUD_USERNAME and "
        "UPCLOUD_PASSWORD"
    )


def open_cloud(settings: UpCloudSettings | None = None) -> UpCloud:
    """Raises ConfigError for a block that cannot be loaded, or for no credentials."""
    from tasks.clouds.upcloud import UpCloud, open_manager
    from tasks.clouds.upcloud.client import ENDPOINT

    settings = settings or UpCloudSettings()
    login = _block_login(settings.block) if settings.block else _environment()
    if not login.is_complete:
        raise ConfigError(f"There are {why_not_configured(settings)}.", next_step="See docs/vendors/upcloud.md.")
    manager = open_manager(login.username, login.password, login.token, endpoint=settings.endpoint_url or ENDPOINT)
    return UpCloud(manager, zones=settings.zones, currency=settings.currency)


def _environment() -> _Login:
    read = os.environ.get
    return _Login(read("UPCLOUD_TOKEN", "").strip(), read("UPCLOUD_USERNAME", "").strip(), read("UPCLOUD_PASSWORD", ""))


def _block_login(name: str) -> _Login:
    from tasks.vendors.blocks import UpCloudCredentials

    load: Any = UpCloudCredentials.load
    try:
        block = load(name, _sync=True)  # also from a thread of an event loop, where it would else be a coroutine
    except Exception as exc:
        raise ConfigError(
            f"The Prefect block upcloud-credentials/{name} cannot be loaded: {exc}",
            next_step="Make it: docs/vendors/upcloud.md, Credentials.",
        ) from None
    return _Login(block.token.get_secret_value(), block.username, block.password.get_secret_value())
