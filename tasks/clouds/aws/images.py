"""Which image a server boots: Ubuntu 24.04 of its architecture, for an NVIDIA GPU the one with a driver in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from tasks.clouds.aws.clients import Clients
from tasks.domain.errors import ConfigError, UnsupportedError

GIB = 2**30
ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "arm64"}  # ours: EC2's

# https://documentation.ubuntu.com/aws/aws-how-to/instances/find-ubuntu-images/: Canonical's account.
CANONICAL = "099720109477"
_UBUNTU = {
    "x86_64": "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-*",
    "arm64": "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-arm64-server-*",
}
# https://docs.aws.amazon.com/dlami/latest/devguide/appendix-ami-release-notes.html: Amazon's own, free of charge.
_UBUNTU_WITH_NVIDIA_DRIVER = {
    "x86_64": "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) *",
    "arm64": "Deep Learning ARM64 Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) *",
}
# At the 125 MiB/s that a gp3 volume has for nothing, a model of 40 GB takes 5 minutes to write and as long to read.
# 500 MiB/s cost 2 cents per hour more (0.04 USD per MiB/s and month, https://aws.amazon.com/ebs/pricing/), less than
# those minutes of any server that can hold such a model. The 3,000 IOPS that are included allow up to 750.
_FAST_FROM_GIB = 64
_FAST_MIB_PER_S = 500

# GPUs of AMD; no image of theirs has a driver.
_WITHOUT_NVIDIA = ("g4ad.",)
# A part of a GPU, for which NVIDIA's GRID driver is needed:
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/nvidia-GRID-driver.html
_NEEDS_GRID_DRIVER = ("g6f.", "gr6f.")


@dataclass(frozen=True, kw_only=True)
class Image:
    image_id: str
    root_device: str
    devices: dict[str, int]
    """Size in GiB of the snapshot of every EBS volume in the image, by device name."""

    def block_device_mappings(self, disk_bytes: int) -> list[dict[str, Any]]:
        """Every volume of the image, so that each goes with the server; the root one as large as asked for."""
        sizes_gib = dict(self.devices)
        sizes_gib[self.root_device] = max(sizes_gib[self.root_device], math.ceil(disk_bytes / GIB))
        return [{"DeviceName": device, "Ebs": _volume(size_gib)} for device, size_gib in sizes_gib.items()]


def _volume(size_gib: int) -> dict[str, Any]:
    volume: dict[str, Any] = {"VolumeSize": size_gib, "VolumeType": "gp3", "DeleteOnTermination": True}
    return volume | ({"Throughput": _FAST_MIB_PER_S} if size_gib >= _FAST_FROM_GIB else {})


@dataclass
class Images:
    """The newest image of a region, kept as long as this process lives: the same create sent twice must name the same
    image, or EC2 refuses it as another request with the same token."""

    clients: Clients
    _found: dict[tuple[str, str, bool], Image] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def find(self, region: str, arch: str, *, gpu: bool) -> Image:
        """Raises UnsupportedError where the region has no such image."""
        with self._lock:
            known = self._found.get((region, arch, gpu))
        if known is None:
            newest = self._newest(region, arch, gpu)
            with self._lock:
                known = self._found.setdefault((region, arch, gpu), newest)
        return known

    def forget(self, region: str) -> None:
        """Look again at the next find: an image can be withdrawn."""
        with self._lock:
            for key in [key for key in self._found if key[0] == region]:
                del self._found[key]

    def _newest(self, region: str, arch: str, gpu: bool) -> Image:
        architecture = ARCHITECTURES.get(arch)
        if architecture is None:
            raise UnsupportedError(f"aws: there is no Ubuntu image for {arch}.", reason="no_image")
        pattern = (_UBUNTU_WITH_NVIDIA_DRIVER if gpu else _UBUNTU)[architecture]
        answer = self.clients.ec2(region).describe_images(
            Owners=["amazon" if gpu else CANONICAL],
            Filters=[
                {"Name": "name", "Values": [pattern]},
                {"Name": "architecture", "Values": [architecture]},
                {"Name": "root-device-type", "Values": ["ebs"]},
                {"Name": "state", "Values": ["available"]},
            ],
        )
        if not answer["Images"]:
            raise UnsupportedError(
                f"aws: {region} has no image {pattern!r}.",
                reason="no_image",
                next_step="Leave the region out, or allow it in the account's image settings (Allowed AMIs).",
            )
        newest = max(answer["Images"], key=lambda image: (image["CreationDate"], image["ImageId"]))
        volumes = {m["DeviceName"]: m["Ebs"] for m in newest["BlockDeviceMappings"] if "Ebs" in m}
        return Image(
            image_id=newest["ImageId"],
            root_device=newest["RootDeviceName"],
            devices={device: int(ebs["VolumeSize"]) for device, ebs in volumes.items()},
        )


def wants_nvidia(server_type: str, gpus: int) -> bool:
    """Raises ConfigError for a GPU that no image has a driver for: its server would only cost money."""
    if server_type.startswith(_NEEDS_GRID_DRIVER):
        raise ConfigError(
            f"aws: {server_type} cannot be used: its partitioned GPU needs NVIDIA's GRID driver, which no image has.",
            reason="no_image",
            next_step="Leave the server type out; g6 and gr6 have whole GPUs.",
        )
    return gpus > 0 and not server_type.startswith(_WITHOUT_NVIDIA)
