"""Where things are and how they are reached: environment variables `TOKENSWEEP_*`, nothing else.

What to measure is in presets (`tasks/presets.py`); which models exist is in `tasks/models/models.toml`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.domain.money import Rate, read_rates

CHECKOUT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """All paths default to folders of the checkout (`var/`) and of the user's cache (`~/.cache/tokensweep`)."""

    model_config = SettingsConfigDict(env_prefix="TOKENSWEEP_", extra="ignore")

    home: Path = Field(default=CHECKOUT / "var", description="lake, ledger, spool and local servers")
    lake: str = Field(default="", description="folder or s3://, gs://, az:// URL of the lake; default <home>/lake")
    lake_block: str = Field(
        default="", description="Prefect block with the lake's credentials, e.g. aws-credentials/NAME"
    )
    ledger_url: str = Field(default="", description="SQLAlchemy URL; default SQLite at <home>/ledger.sqlite")
    cache: Path | None = Field(default=None, description="runtimes and made models; default ~/.cache/tokensweep")
    presets: Path = Field(default=CHECKOUT / "deployments" / "presets")
    local_isolation: Literal["auto", "microvm", "loopback"] = "auto"
    ssh_sources: str = Field(
        default="", description="CIDR networks, by comma, from which servers may be reached over SSH; default any"
    )
    rates: str = Field(
        default="", description="exchange rates, by comma, over those that are known: EUR=1.1761@2026-05-08"
    )
    models_url: str = Field(
        default="", description="where servers find the model files by name: a mirror of your own, over HTTP"
    )
    shard_servers: int = Field(default=200, ge=1, le=500, description="server runs of a shard, where workers run them")
    connect_timeout_s: float = 120.0
    reconnect_give_up_s: float = 300.0

    @property
    def lake_root(self) -> str:
        return self.lake or str(self.home / "lake")

    @property
    def ledger(self) -> str:
        return self.ledger_url or f"sqlite:///{self.home / 'ledger.sqlite'}"

    @property
    def exchange_rates(self) -> dict[str, Rate]:
        """Raises ConfigError for what is no rate."""
        return read_rates(self.rates, today=datetime.now(UTC).date())

    @property
    def ssh_source_networks(self) -> tuple[str, ...]:
        return tuple(network.strip() for network in self.ssh_sources.split(",") if network.strip())

    @property
    def spool_dir(self) -> Path:
        return self.home / "spool"

    @property
    def local_state_dir(self) -> Path:
        return self.home / "local"

    @property
    def cache_dir(self) -> Path:
        return self.cache or _default_cache()


def _default_cache() -> Path:
    import os

    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tokensweep"
