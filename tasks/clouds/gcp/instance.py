"""What is asked for: a CreateSpec as Compute Engine's Instance, with all that makes its deletion leave nothing."""

from __future__ import annotations

import math
import uuid

import yaml
from google.cloud import compute_v1

from tasks.clouds import guest
from tasks.clouds.base import CreateSpec
from tasks.clouds.gcp.attached_gpus import attached
from tasks.clouds.gcp.firewall import network_tags
from tasks.domain.errors import ConfigError

GIB = 2**30
MIN_RUN_S, MAX_RUN_S = 30, 120 * 86_400
"""Bounds of maxRunDuration: docs.cloud.google.com/compute/docs/instances/limit-vm-runtime."""

_FAMILY = "projects/{}/global/images/family/{}"
UBUNTU = {
    "x86_64": _FAMILY.format("ubuntu-os-cloud", "ubuntu-2404-lts-amd64"),
    "aarch64": _FAMILY.format("ubuntu-os-cloud", "ubuntu-2404-lts-arm64"),
}
"""Canonical's images: docs.cloud.google.com/compute/docs/images/os-details#ubuntu_lts."""

UBUNTU_WITH_GPU_DRIVER = {
    "x86_64": _FAMILY.format("ubuntu-os-accelerator-images", "ubuntu-accelerator-2404-amd64-with-nvidia-580"),
    "aarch64": _FAMILY.format("ubuntu-os-accelerator-images", "ubuntu-accelerator-2404-arm64-with-nvidia-580"),
}
"""Canonical's again, with NVIDIA's driver built in, so that cloud-init is as in the others and nothing is installed at
boot: docs.cloud.google.com/compute/docs/images/os-details (project ubuntu-os-accelerator-images). Google's Deep
Learning VM images (project deeplearning-platform-release) install the driver at first boot, and bring CUDA as well."""

ON_PERSISTENT_DISK = frozenset(
    (
        "a2",
        "c2",
        "c2d",
        "c3",
        "c3d",
        "e2",
        "f1",
        "g1",
        "g2",
        "h3",
        "m1",
        "m2",
        "m3",
        "n1",
        "n2",
        "n2d",
        "t2a",
        "t2d",
        "z3",
    ),
)
"""Families whose machines, bare metal apart, all take Persistent Disk: docs.cloud.google.com/compute/docs/disks, and
machine-pd-compatibility.json in github.com/kubernetes-sigs/gcp-compute-persistent-disk-csi-driver. These are the old
ones, so the list is complete; every family since (N4, C4, M4, M4N, Z4D, ...) takes Hyperdisk, most of them nothing
else."""

MIN_DISK_GIB, MIN_DISK_WITH_GPU_GIB = 10, 50
"""A disk smaller than its image is refused. `tokensweep doctor` compares these with the images."""

NO_LIVE_MIGRATION = frozenset(["a2", "a3", "a4", "a4x", "g2", "g4", "h3", "h4d", "x4"])
"""docs.cloud.google.com/compute/docs/instances/live-migration-process#limitations. All with GPUs, beside these."""

_NO_HOST_KEYS = "printf '[InstanceSetup]\\nset_host_keys = false\\n' > /etc/default/instance_configs.cfg"


def request_id(token: str) -> str:
    """The idempotency token in the form that Compute Engine takes, a UUID."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, token))


def family(server_type: str) -> str:
    """The machine family: "c4a" of "c4a-standard-4"."""
    return server_type.partition("-")[0]


def image(spec: CreateSpec) -> str:
    """The image's family. Raises ConfigError for an architecture that there is no image for."""
    if spec.arch not in UBUNTU:
        raise ConfigError(f"gcp: there is no image for the architecture {spec.arch!r} of {spec.server_type}.")
    return (UBUNTU_WITH_GPU_DRIVER if spec.gpus else UBUNTU)[spec.arch]


def user_data(spec: CreateSpec) -> str:
    """The common document, and one command more: Google's guest agent makes new SSH host keys at the first boot unless
    it is told not to (github.com/GoogleCloudPlatform/guest-agent, "Instance Setup"), and ours is pinned."""
    document = yaml.safe_load(guest.user_data(spec))
    document["bootcmd"].append(["sh", "-c", _NO_HOST_KEYS])
    return guest.HEADER + yaml.safe_dump(document, sort_keys=False, width=10_000)


def instance(spec: CreateSpec, *, network: str, now_unix_s: float) -> compute_v1.Instance:
    """The whole request. Its labels are on the disk as well; the address is ephemeral and goes with the server; there
    is no service account, so that nothing on the server has credentials of ours."""
    metadata = {
        "user-data": user_data(spec),
        "block-project-ssh-keys": "TRUE",  # nobody logs in but with the key in the user data
        "enable-oslogin": "FALSE",
    }
    gpus = attached(spec.server_type)
    return compute_v1.Instance(
        name=spec.name,
        machine_type=f"zones/{spec.place}/machineTypes/{gpus.machine_type if gpus else spec.server_type}",
        guest_accelerators=[gpus.config(spec.place)] if gpus else [],
        labels=dict(spec.tags),
        disks=[_boot_disk(spec)],
        network_interfaces=[
            compute_v1.NetworkInterface(
                network=f"global/networks/{network}",
                # Of virtual machines Google chooses; bare metal has none but this one, and the documentation asks for
                # it: docs.cloud.google.com/compute/docs/instances/create-bare-metal-instance.
                nic_type="IDPF" if _is_metal(spec) else None,
                access_configs=[compute_v1.AccessConfig(name="External NAT", type_="ONE_TO_ONE_NAT")],
            )
        ],
        tags=compute_v1.Tags(items=network_tags(spec.ssh_sources)),
        metadata=compute_v1.Metadata(items=[compute_v1.Items(key=k, value=v) for k, v in metadata.items()]),
        scheduling=_scheduling(spec, now_unix_s),
    )


def _boot_disk(spec: CreateSpec) -> compute_v1.AttachedDisk:
    on_hyperdisk = family(spec.server_type) not in ON_PERSISTENT_DISK or _is_metal(spec)
    params = compute_v1.AttachedDiskInitializeParams(
        source_image=image(spec),
        disk_type=f"zones/{spec.place}/diskTypes/{'hyperdisk-balanced' if on_hyperdisk else 'pd-balanced'}",
        labels=dict(spec.tags),
    )
    if spec.disk_bytes:  # else the image's size
        least_gib = MIN_DISK_WITH_GPU_GIB if spec.gpus else MIN_DISK_GIB
        params.disk_size_gb = max(least_gib, math.ceil(spec.disk_bytes / GIB))
    # The API's default is to keep the disk when its server goes.
    return compute_v1.AttachedDisk(boot=True, auto_delete=True, initialize_params=params)


def _scheduling(spec: CreateSpec, now_unix_s: float) -> compute_v1.Scheduling:
    """Google itself deletes the server at the deadline, counted from when it runs. Seconds and not a time of day,
    because GPU servers that end so within seven days may use preemptible quota where the standard one is used up."""
    left_s = math.ceil(spec.deadline_unix_s - now_unix_s)
    scheduling = compute_v1.Scheduling(
        max_run_duration=compute_v1.Duration(seconds=min(max(left_s, MIN_RUN_S), MAX_RUN_S)),
        instance_termination_action="DELETE",
        automatic_restart=False,
        provisioning_model="SPOT" if spec.spot else "STANDARD",
    )
    if spec.spot or spec.gpus or family(spec.server_type) in NO_LIVE_MIGRATION or _is_metal(spec):
        scheduling.on_host_maintenance = "TERMINATE"
    return scheduling


def _is_metal(spec: CreateSpec) -> bool:
    return spec.server_type.endswith("-metal")
