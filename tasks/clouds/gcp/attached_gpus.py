"""GPUs that are no part of a machine type and are attached to N1 machines: T4, P4, P100, V100.

Google sells them apart, so a server type of ours is a machine with so many GPUs, with eight vCPUs for each of them,
which all of Google's limits allow: docs.cloud.google.com/compute/docs/gpus#n1-gpus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from google.cloud import compute_v1

_NAME = re.compile(r"(?P<machine_type>n1-[a-z]+-\d+)-(?P<count>\d+)x-(?P<accelerator>nvidia-[a-z0-9-]+)")
_COUNTS = {
    "nvidia-tesla-t4": (1, 2, 4),
    "nvidia-tesla-p4": (1, 2, 4),
    "nvidia-tesla-p100": (1, 2, 4),
    "nvidia-tesla-v100": (1, 2, 4, 8),
}


@dataclass(frozen=True)
class Attached:
    """So many GPUs of a sort on a machine type."""

    machine_type: str
    count: int
    accelerator: str

    @property
    def name(self) -> str:
        """ "n1-standard-8-1x-nvidia-tesla-t4"."""
        return f"{self.machine_type}-{self.count}x-{self.accelerator}"

    def config(self, zone: str) -> compute_v1.AcceleratorConfig:
        return compute_v1.AcceleratorConfig(
            accelerator_type=f"zones/{zone}/acceleratorTypes/{self.accelerator}", accelerator_count=self.count
        )


OFFERED = tuple(
    Attached(f"n1-standard-{8 * count}", count, accelerator)
    for accelerator, counts in _COUNTS.items()
    for count in counts
)


def attached(server_type: str) -> Attached | None:
    """What the name of a server type says; None for one that is a machine type as it is."""
    found = _NAME.fullmatch(server_type)
    return Attached(found["machine_type"], int(found["count"]), found["accelerator"]) if found else None
