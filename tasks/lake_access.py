"""The address of the lake with its credentials: a folder, or a URL of object storage and a Prefect block."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tasks.domain.errors import ConfigError
from tasks.lake import RemoteLake, is_remote
from tasks.settings import Settings

BLOCKS = {"s3": "aws-credentials", "gs": "gcp-credentials", "az": "azure-blob-storage-credentials"}


def lake_address(settings: Settings) -> str | RemoteLake:
    """What `open_lake`, `land` and `compact` take.

    Object storage gets its credentials from the Prefect block that `TOKENSWEEP_LAKE_BLOCK` names (`type/name`); without
    one, from what the machine itself has (environment variables, instance roles). Raises ConfigError for a block that
    cannot be loaded.
    """
    root = settings.lake_root
    if not is_remote(root):
        return root
    options = _block_options(root, settings.lake_block) if settings.lake_block else {}
    name = hashlib.sha256(root.encode()).hexdigest()[:16]
    return RemoteLake(root, settings.cache_dir / "lakes" / name, options)


def _block_options(root: str, block: str) -> dict[str, Any]:
    scheme = root.partition("://")[0].lower()
    kind = BLOCKS.get(scheme, "")
    if not block.startswith(f"{kind}/") or not kind:
        raise ConfigError(
            f"The block {block!r} gives no credentials for {scheme}://.", next_step=f"Use a block {kind}/NAME."
        )
    try:
        return _READERS[scheme](block.partition("/")[2])
    except ValueError as exc:  # Prefect's answer for a block that there is not
        raise ConfigError(
            f"The block {block} cannot be loaded: {exc}.", next_step="Make it in the Prefect UI under Blocks."
        ) from exc


def _aws(name: str) -> dict[str, Any]:
    from prefect_aws import AwsCredentials

    block: Any = AwsCredentials.load(name)
    options: dict[str, Any] = {"region": block.region_name or "us-east-1"}
    if block.aws_access_key_id:
        options["access_key_id"] = block.aws_access_key_id
        options["secret_access_key"] = block.aws_secret_access_key.get_secret_value()
    if block.aws_session_token:
        token = block.aws_session_token
        options["session_token"] = token.get_secret_value() if hasattr(token, "get_secret_value") else token
    client = block.aws_client_parameters
    if client.endpoint_url:
        options["endpoint"] = client.endpoint_url
        options["virtual_hosted_style_request"] = False
        if client.endpoint_url.startswith("http://"):
            options["client_options"] = {"allow_http": True}
    return options


def _gcp(name: str) -> dict[str, Any]:
    from prefect_gcp import GcpCredentials

    block: Any = GcpCredentials.load(name)
    if block.service_account_info is not None:
        account = block.service_account_info.get_secret_value()
        options: dict[str, Any] = {"service_account_key": json.dumps(account)}
        if str(account.get("gcs_base_url", "")).startswith("http://"):
            options["client_options"] = {"allow_http": True}
        return options
    return {"service_account": str(block.service_account_file)} if block.service_account_file else {}


def _azure(name: str) -> dict[str, Any]:
    from prefect_azure import AzureBlobStorageCredentials

    block: Any = AzureBlobStorageCredentials.load(name)
    if block.connection_string is None:
        return {"account_name": str(block.account_url).partition("://")[2].partition(".")[0]}
    parts = dict(p.split("=", 1) for p in block.connection_string.get_secret_value().split(";") if "=" in p)
    options: dict[str, Any] = {"account_name": parts["AccountName"], "account_key": parts["AccountKey"]}
    if "BlobEndpoint" in parts:
        options["endpoint"] = parts["BlobEndpoint"]
        if parts["BlobEndpoint"].startswith("http://"):
            options["client_options"] = {"allow_http": True}
    return options


_READERS = {"s3": _aws, "gs": _gcp, "az": _azure}
