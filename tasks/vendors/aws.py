"""Opening AWS: credentials from a Prefect block or the SDK's own places, options from TOKENSWEEP_AWS_*."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tasks.domain.errors import ConfigError

_CONTAINER_ROLE = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")

if TYPE_CHECKING:
    from tasks.clouds.aws import AwsCloud


class AwsSettings(BaseSettings):
    """Where to create servers on AWS, and as whom. Without a block the SDK looks where it always does: environment
    variables, ~/.aws, the instance's own role."""

    model_config = SettingsConfigDict(env_prefix="TOKENSWEEP_AWS_", extra="ignore")

    block: str = Field(default="", description="name of an AwsCredentials block of Prefect")
    instance_role: bool = Field(default=False, description="the role of the EC2 instance that this runs on")
    profile: str = Field(default="", description="profile of ~/.aws; default AWS_PROFILE")
    regions: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="comma-separated; default every region that the account has enabled"
    )
    home_region: str = Field(default="us-east-1", description="for questions that belong to no region")
    endpoint_url: str = Field(default="", description="replaces every endpoint of the SDK")

    @field_validator("regions", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(filter(None, (v.strip() for v in value.split(",")))) if isinstance(value, str) else value


def why_not_configured(settings: AwsSettings | None = None) -> str:
    """Why AWS cannot be used here, "" if it can be tried. Looks at no network."""
    from botocore.session import Session

    settings = settings or AwsSettings()
    if settings.block or settings.instance_role or any(name in os.environ for name in _CONTAINER_ROLE):
        return ""
    try:
        session = Session(profile=settings.profile or None)
        session.get_component("credential_provider").remove("iam-role")
        found = session.get_credentials()
    except Exception as exc:
        return f"the AWS SDK cannot read its credentials: {exc}"
    return "" if found else "no AWS credentials: set TOKENSWEEP_AWS_BLOCK, or AWS_ACCESS_KEY_ID, AWS_PROFILE or ~/.aws"


def open_cloud(settings: AwsSettings | None = None) -> AwsCloud:
    """AWS with the credentials of the block, else of the SDK. Raises ConfigError for a block that cannot be loaded."""
    from tasks.clouds.aws import AwsCloud, AwsOptions

    settings = settings or AwsSettings()
    session = _block_session(settings.block) if settings.block else _sdk_session(settings)
    options = AwsOptions(regions=settings.regions, endpoint_url=settings.endpoint_url, home_region=settings.home_region)
    return AwsCloud(session, options)


def _sdk_session(settings: AwsSettings) -> Any:
    import boto3

    return boto3.Session(profile_name=settings.profile or None)


def _block_session(name: str) -> Any:
    from prefect_aws import AwsCredentials

    load: Any = AwsCredentials.load
    try:
        block = load(name, _sync=True)  # also from a thread of an event loop, where it would else be a coroutine
    except Exception as exc:
        raise ConfigError(
            f"The Prefect block aws-credentials/{name} cannot be loaded: {exc}",
            next_step="Make it: docs/vendors/aws.md, Credentials.",
        ) from None
    return block.get_boto3_session()
