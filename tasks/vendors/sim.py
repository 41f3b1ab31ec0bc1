"""The vendor `sim`: a cloud that only exists in a file of the home folder, to try everything for nothing."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.clouds.sim import SimCloud, SimOptions, parse_options
from tasks.settings import Settings


class SimSettings(BaseSettings):
    """A preset's `vendor_options` go on top of these; docs/sim.md has the fault classes."""

    model_config = SettingsConfigDict(env_prefix="TOKENSWEEP_SIM_", extra="ignore")

    seed: int = Field(default=SimOptions().seed, description="decides what happens; the same seed, the same faults")
    speedup: float = Field(default=SimOptions().speedup, gt=0, description="simulated seconds per second on the wall")
    faults: float = Field(default=0.0, ge=0, le=1, description="how often each class of faults happens, 0 to 1")
    ssh: Path | None = Field(default=None, description="JSON file: the sshd that answers for a share of the servers")
    ssh_share: float = Field(default=1.0, ge=0, le=1, description="of the server types, which are reached over SSH")


def folder(home: Path) -> Path:
    """Where the simulated cloud of a home folder is; deleting it ends that cloud."""
    return home / "sim"


def why_not_configured() -> str:
    """It needs nothing."""
    return ""


def open_cloud(home: Path | None = None) -> SimCloud:
    """The simulated cloud of the home folder, made if there is none. Raises ConfigError for a malformed setting."""
    settings = SimSettings()
    options = parse_options(settings.model_dump(include={"seed", "speedup", "faults"}))
    where = folder(home or Settings().home)
    if settings.ssh is None:
        return SimCloud(where, options)
    from tasks.vendors.sim_ssh import SshSimCloud, read_endpoint  # paramiko takes a third of a second to import

    return SshSimCloud(where, options, read_endpoint(settings.ssh), settings.ssh_share)
