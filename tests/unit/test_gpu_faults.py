"""What is wrong with a GPU, by the words of those who say it."""

from __future__ import annotations

import pytest

from tasks.domain.gpu_faults import GpuFault, fabric_fault, gpu_fault, has_nvswitch, parse_fabric, presence_fault
from tests.agent.gpu_output import fabric_report


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected", GpuFault.NOT_SEEN),
        ("No devices were found", GpuFault.NOT_SEEN),
        ("failed to initialize CUDA: system not yet initialized", GpuFault.FABRIC_MANAGER),
        ("    Fabric\n        State                             : In Progress", GpuFault.FABRIC_MANAGER),
        ("CUDA driver version is insufficient for CUDA runtime version", GpuFault.DRIVER_TOO_OLD),
        ("forward compatibility was attempted on non supported HW", GpuFault.DRIVER_TOO_OLD),
        ("system has unsupported display driver / cuda driver combination", GpuFault.DRIVER_MISMATCH),
        ("Failed to initialize NVML: Driver/library version mismatch", GpuFault.DRIVER_MISMATCH),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", GpuFault.NO_DRIVER),
        ("libcuda.so.1: cannot open shared object file: No such file or directory", GpuFault.NO_DRIVER),
        ("CUDA error: no kernel image is available for execution on the device", GpuFault.NO_KERNELS),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", GpuFault.BUSY),
        ("CUDA error: uncorrectable ECC error encountered", GpuFault.ECC),
        ("Unable to determine the device handle for GPU0000:00:1E.0: Unknown Error", GpuFault.LOST),
        ("NVRM: Xid (PCI:0000:00:1e): 79, GPU has fallen off the bus.", GpuFault.LOST),
        ("allocating 14336.00 MiB on device 0: cudaMalloc failed: out of memory", GpuFault.OUT_OF_MEMORY),
        ("ggml_cuda_init: found 1 CUDA devices (Total VRAM: 14913 MiB):", None),
        ("load_tensors: offloaded 33/33 layers to GPU", None),
        ("std::bad_alloc", None),
        ("", None),
    ],
)
def test_a_text_names_its_fault(text: str, fault: GpuFault | None) -> None:
    assert gpu_fault(text) is fault


T4 = {"index": 0, "name": "Tesla T4"}


def test_gpus_that_are_there_and_not_listed() -> None:
    assert presence_fault([], 0) is None
    assert presence_fault([T4], 1) is None
    assert presence_fault([T4], 0) is None, "a container may hide the bus"
    assert presence_fault([], 8) is GpuFault.NO_DRIVER
    assert presence_fault([T4], 2) is GpuFault.LOST
    assert presence_fault([{"error": "something new"}], 1) is GpuFault.NOT_SEEN
    assert presence_fault([{"error": "something new"}], None) is GpuFault.NOT_SEEN
    assert presence_fault([{"error": "NVIDIA-SMI has failed"}], 0) is None, "the tools alone are no GPU"
    assert presence_fault([], None) is None


def gpus(*names: str) -> list[dict[str, object]]:
    return [{"index": index, "name": name} for index, name in enumerate(names)]


@pytest.mark.parametrize(
    ("name", "joined"),
    [
        ("NVIDIA H100 80GB HBM3", True),
        ("NVIDIA A100-SXM4-80GB", True),
        ("NVIDIA H200", True),
        ("NVIDIA B200", True),
        ("NVIDIA A100-PCIE-40GB", False),
        ("NVIDIA A100 80GB PCIe", False),
        ("NVIDIA H100 PCIe", False),
        ("NVIDIA H200 NVL", False),
        ("NVIDIA L40S", False),
        ("Tesla T4", False),
    ],
)
def test_boards_with_an_nvswitch_are_told_by_the_names_of_their_gpus(name: str, joined: bool) -> None:
    assert has_nvswitch(gpus(name, name)) is joined
    assert not has_nvswitch(gpus(name)), "one GPU computes without a fabric"
    assert not has_nvswitch([{"error": name}, {"error": name}])


def test_the_registration_of_every_gpu_is_read_from_the_report() -> None:
    assert parse_fabric(fabric_report(("Completed", "Success"), ("In Progress", "N/A"))) == [
        ("Completed", "Success"), ("In Progress", "N/A"),
    ]  # fmt: skip
    without = "GPU 00000000:07:00.0\n    Product Name   : NVIDIA A100-SXM4-40GB\n    State          : P0\n"
    assert parse_fabric(without) == [("", "")], "an older driver has no such section, and other states"
    assert parse_fabric("NVIDIA-SMI has failed") == []


@pytest.mark.parametrize(
    ("state", "status", "fault"),
    [
        ("Completed", "Success", None),
        ("N/A", "N/A", None),
        ("", "", None),
        ("Not Started", "N/A", GpuFault.FABRIC_MANAGER),
        ("In Progress", "N/A", GpuFault.FABRIC_MANAGER),
        ("Completed", "Insufficient Resources", GpuFault.FABRIC_MANAGER),
    ],
)
def test_one_gpu_outside_the_fabric_is_a_fault(state: str, status: str, fault: GpuFault | None) -> None:
    well = {"name": "NVIDIA H200", "fabric_state": "Completed", "fabric_status": "Success"}
    assert fabric_fault([well, {**well, "fabric_state": state, "fabric_status": status}]) is fault
    assert fabric_fault(gpus("Tesla T4")) is None
