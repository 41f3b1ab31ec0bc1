"""Google Cloud: which project, and whose credentials.

Credentials come from a Prefect block `GcpCredentials`, or else from where Google's libraries look for them: the file
that GOOGLE_APPLICATION_CREDENTIALS names, `gcloud auth application-default login`, or, when asked for, the metadata
server of a machine at Google.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.domain.errors import ConfigError

if TYPE_CHECKING:
    from tasks.clouds.gcp import GcpCloud

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_SET_PROJECT = "Set TOKENSWEEP_GCP_PROJECT."


class GcpSettings(BaseSettings):
    """Everything has a default but the project, which a service account's key or a Prefect block names as well."""

    model_config = SettingsConfigDict(env_prefix="TOKENSWEEP_GCP_", extra="ignore")

    credentials: str = Field(default="", description="name of a Prefect block GcpCredentials")
    project: str = Field(default="", description="project id; default that of the credentials")
    regions: str = Field(default="", description="regions to look for server types in, by comma; default all")
    network: str = Field(default="default", description="VPC network of the servers, with subnets in auto mode")
    endpoint: str = Field(default="", description="URL instead of Google's own, for all services")
    metadata_server: bool = Field(default=False, description="take the credentials of the machine at Google we run on")
    timeout_s: float = Field(default=60.0, gt=0, description="for connecting, and again for each answer")

    @property
    def region_names(self) -> tuple[str, ...]:
        return tuple(region.strip() for region in self.regions.split(",") if region.strip())


def why_not_configured() -> str:
    """Why this vendor cannot be used here, or "". Looks at the environment and at files only."""
    settings = GcpSettings()
    if settings.credentials or (settings.metadata_server and settings.project):
        return ""
    path = _key_file()
    if path is None:
        return (
            "no credentials: set GOOGLE_APPLICATION_CREDENTIALS or TOKENSWEEP_GCP_CREDENTIALS, "
            "or run `gcloud auth application-default login`"
        )
    if not path.is_file():
        return f"the credentials file {path} does not exist"
    if not (settings.project or _project_of(path)):
        return f"no project: {_SET_PROJECT}"
    return ""


def open_cloud() -> GcpCloud:
    """The project's cloud. Raises ConfigError where credentials or project are missing or unreadable."""
    from tasks.clouds.gcp import GcpCloud

    settings = GcpSettings()
    credentials, project = _from_block(settings.credentials) if settings.credentials else _from_environment(settings)
    if not (settings.project or project):
        raise ConfigError("gcp: the credentials name no project.", next_step=_SET_PROJECT)
    return GcpCloud(
        settings.project or project,
        credentials,
        regions=settings.region_names,
        network=settings.network,
        endpoint=settings.endpoint,
        timeout_s=settings.timeout_s,
    )


def _from_block(name: str) -> tuple[Any, str]:
    from prefect_gcp import GcpCredentials

    try:
        block = GcpCredentials.load(name, _sync=True)
    except ValueError as exc:
        raise ConfigError(
            f"gcp: there is no Prefect block GcpCredentials named {name!r}.",
            next_step="Make it with `prefect block create gcp-credentials`, or change TOKENSWEEP_GCP_CREDENTIALS.",
        ) from exc
    return block.get_credentials_from_service_account(), block.project or ""


def _from_environment(settings: GcpSettings) -> tuple[Any, str]:
    import google.auth
    from google.auth.exceptions import GoogleAuthError

    why_not = why_not_configured()
    if why_not:
        raise ConfigError(f"gcp: {why_not}.")
    try:
        credentials, project = google.auth.default(scopes=SCOPES)
    except (GoogleAuthError, ValueError, OSError) as exc:
        # Not the text of the error: it may quote the file.
        raise ConfigError(
            f"gcp: the credentials cannot be read ({type(exc).__name__}).",
            next_step="GOOGLE_APPLICATION_CREDENTIALS must name a key file of a service account.",
        ) from None
    return credentials, str(project or "")


def _key_file() -> Path | None:
    """Where Google's libraries find credentials without asking the network."""
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if named:
        return Path(named)
    config = os.environ.get("CLOUDSDK_CONFIG")
    path = (Path(config) if config else Path.home() / ".config" / "gcloud") / "application_default_credentials.json"
    return path if path.is_file() else None


def _project_of(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
        return str(
            os.environ.get("GOOGLE_CLOUD_PROJECT") or found.get("project_id") or found.get("quota_project_id", "")
        )
    except (OSError, ValueError, AttributeError):
        return os.environ.get("GOOGLE_CLOUD_PROJECT", "")
