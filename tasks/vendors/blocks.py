"""Prefect blocks of our own, for vendors that Prefect has none for. Nothing else in this folder takes Prefect.

Register them with `prefect block register -m tasks.vendors.blocks`.
"""

from __future__ import annotations

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl, SecretStr, model_validator


class HetznerCredentials(Block):
    """The API token of one Hetzner Cloud project."""

    _block_type_name = "Hetzner Credentials"
    _block_type_slug = "hetzner-credentials"
    _documentation_url = HttpUrl("https://docs.hetzner.cloud/reference/cloud#authentication")

    token: SecretStr = Field(description="Read and write; made in the console of the project: Security, API tokens.")


class UpCloudCredentials(Block):
    """A token, or the name and password of a sub-account with access to the API."""

    _block_type_name = "UpCloud Credentials"
    _block_type_slug = "upcloud-credentials"
    _documentation_url = HttpUrl("https://developers.upcloud.com/1.3/3-accounts/")

    token: SecretStr = Field(default=SecretStr(""), description="An API token; then no name and password are needed.")
    username: str = Field(default="", description="A sub-account of its own, not the main account.")
    password: SecretStr = Field(default=SecretStr(""))

    @model_validator(mode="after")
    def _is_complete(self) -> UpCloudCredentials:
        if not self.token.get_secret_value() and not (self.username and self.password.get_secret_value()):
            raise ValueError("needs a token, or a username and a password")
        return self
