"""What is wrong with a GPU, from the words of nvidia-smi, the driver and llama.cpp's CUDA backend.

The CUDA strings are those of cudaGetErrorString, which llama.cpp prints after "failed to initialize CUDA:" or
"CUDA error:"; the numbers beside them are CUDA's own. NVML's are nvidia-smi's.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any, Mapping, Optional, Sequence


class GpuFault(str, Enum):
    """Why a GPU cannot be used."""

    NO_DRIVER = "no_gpu_driver"
    DRIVER_MISMATCH = "gpu_driver_mismatch"
    DRIVER_TOO_OLD = "gpu_driver_too_old"
    FABRIC_MANAGER = "fabric_manager"
    NO_KERNELS = "no_kernels_for_gpu"
    LOST = "gpu_lost"
    BUSY = "gpu_busy"
    ECC = "gpu_memory_error"
    MIG_WITHOUT_INSTANCE = "mig_without_instance"
    LICENCE = "gpu_licence"
    NOT_SEEN = "no_gpu_seen"
    NOT_ALL_USED = "not_all_gpus_used"
    OUT_OF_MEMORY = "gpu_out_of_memory"


# The first that fits counts, so what is more precise comes first.
_SIGNS = (
    # 802 cudaErrorSystemNotReady: NVSwitch machines (8 x A100, H100) before their fabric manager has run.
    (GpuFault.FABRIC_MANAGER, r"system not yet initialized|fabric ?manager|nvswitch.*(?:fail|error)|"
                              r"fabric\s*state\s*:\s*in progress"),
    # 35 cudaErrorInsufficientDriver, 803 cudaErrorSystemDriverMismatch, 804 cudaErrorCompatNotSupportedOnDevice.
    (GpuFault.DRIVER_TOO_OLD, r"driver version is insufficient|the provided PTX was compiled with an unsupported|"
                              r"forward compatibility was attempted"),
    (GpuFault.DRIVER_MISMATCH, r"driver/library version mismatch|unsupported display driver / cuda driver combination"),
    (GpuFault.NO_DRIVER, r"couldn't communicate with the nvidia driver|nvidia-smi: (?:command )?not found|"
                         r"nvidia driver was not loaded|driver not loaded|libcuda\.so\.1: cannot open|"
                         r"no nvidia driver|could not find.*libnvidia-ml"),
    # 209 cudaErrorNoKernelImageForDevice.
    (GpuFault.NO_KERNELS, r"no kernel image is available|device kernel image is invalid"),
    (GpuFault.ECC, r"uncorrectable (?:ecc|nvlink) error|ecc error"),
    (GpuFault.LOST, r"fallen off the bus|gpu is lost|unable to determine the device handle|\bxid\b"),
    # 46 cudaErrorDevicesUnavailable.
    (GpuFault.BUSY, r"device(?:\(s\)|s)? (?:is/are|is|are) busy or unavailable|exclusive.?process"),
    (GpuFault.MIG_WITHOUT_INSTANCE, r"no mig (?:devices|instances)|mig.*no (?:gpu|compute) instance"),
    (GpuFault.LICENCE, r"unlicensed|license (?:status|state)\s*:\s*(?:unlicensed|expired)"),
    (GpuFault.OUT_OF_MEMORY, r"cudamalloc failed: out of memory|cuda error: out of memory|"
                             r"allocating [\d.]+ mib on device \d+"),
    # 100 cudaErrorNoDevice.
    (GpuFault.NOT_SEEN, r"no cuda-capable device is detected|no devices were found|found 0 \w+ devices|"
                        r"invalid device: "),
)  # fmt: skip
_COMPILED = tuple((fault, re.compile(pattern, re.I)) for fault, pattern in _SIGNS)


def gpu_fault(text: str) -> Optional[GpuFault]:
    """The fault that a text tells of; None where it tells of none that is known."""
    return next((fault for fault, pattern in _COMPILED if pattern.search(text)), None)


def listed_gpus(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The GPUs of a hardware record, without the entry that only says why nvidia-smi failed."""
    return [gpu for gpu in records if "error" not in gpu and gpu.get("name")]


# Boards whose GPUs are joined by NVSwitch, by nvidia-smi's names. PCIe cards and NVL pairs have none.
_ON_NVSWITCH = re.compile(r"\b(?:A[18]00-SXM|(?:H100|H800|H200|H20|B100|B200|B300)\b(?!.*(?:PCIe|NVL)))", re.I)
_REGISTERING = ("not started", "in progress")
_WELL = ("success", "n/a", "")


def has_nvswitch(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these are several GPUs of a board with NVSwitch, which compute nothing without a fabric manager."""
    return sum(_ON_NVSWITCH.search(str(gpu["name"])) is not None for gpu in listed_gpus(records)) > 1


def parse_fabric(text: str) -> list[tuple[str, str]]:
    """State and status of each GPU's registration with the fabric, of `nvidia-smi -q`; "" where it tells none."""
    found: list[tuple[str, str]] = []
    for section in re.split(r"^GPU [0-9A-Fa-f]+:", text, flags=re.MULTILINE)[1:]:
        fabric = re.search(r"^( +)Fabric *\n((?:\1 +\S.*\n?)*)", section, re.MULTILINE)
        lines = dict(re.findall(r"^ *(\S.*?) *: *(.*?) *$", fabric[2], re.MULTILINE)[::-1]) if fabric else {}
        found.append((lines.get("State", ""), lines.get("Status", "")))
    return found


def is_registering(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a GPU waits for its fabric manager, as it does for a while after the machine has booted."""
    return any(str(gpu.get("fabric_state", "")).lower() in _REGISTERING for gpu in records)


def fabric_fault(records: Sequence[Mapping[str, Any]]) -> Optional[GpuFault]:
    """What nvidia-smi says about the fabric of GPUs that it lists; None where all is well or nothing is known."""
    ended_badly = any(str(gpu.get("fabric_status", "")).lower() not in _WELL for gpu in records)
    return GpuFault.FABRIC_MANAGER if ended_badly or is_registering(records) else None


def presence_fault(records: Sequence[Mapping[str, Any]], n_on_bus: Optional[int]) -> Optional[GpuFault]:
    """What keeps GPUs that are there from being listed; None where all is well or where there are none.

    records: as the hardware record has them. n_on_bus: NVIDIA GPUs on the PCI bus, driver or not; None where there is
    no bus to look at. NVIDIA's tools without a GPU on the bus are no fault.
    """
    if n_on_bus == 0:
        return None
    errors = [str(gpu["error"]) for gpu in records if gpu.get("error")]
    if errors:
        return gpu_fault(errors[0]) or GpuFault.NOT_SEEN
    n_listed = len(listed_gpus(records))
    if n_on_bus is not None and n_listed < n_on_bus:
        return GpuFault.NO_DRIVER if n_listed == 0 else GpuFault.LOST
    return None
