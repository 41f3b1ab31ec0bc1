"""The simulated vendor: a deterministic cloud with a clock, faults and a meter of its own."""

from __future__ import annotations

from tasks.clouds.sim.cloud import SimCloud
from tasks.clouds.sim.host import SimHost
from tasks.clouds.sim.options import CLOUD_FAULTS, FAULTS, SERVER_FAULTS, SimOptions, parse_options

__all__ = ["CLOUD_FAULTS", "FAULTS", "SERVER_FAULTS", "SimCloud", "SimHost", "SimOptions", "parse_options"]
