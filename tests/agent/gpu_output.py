"""What NVIDIA's and llama.cpp's programs print, for tests on machines without a GPU.

The llama.cpp lines are those of the pinned commit's sources (ggml-cuda.cu, llama-model.cpp), the error texts CUDA's
own; none of them was recorded by us on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

LIST_T4 = (
    "{index}, Tesla T4, GPU-0a0a0a0a-1111-2222-3333-44445555666{index}, 535.183.01, 15360, {free}, 7.5, 3, 8, 70.00, "
    "Enabled, [N/A], 90.04.96.00.A0"
)
USE_T4 = "{index}, {busy}, {used}, {free}, 1590, 5001, {power}, 61, {reasons}"

NO_DEVICE = "ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected"
DRIVER_TOO_OLD = (
    "ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient for CUDA runtime version"
)
FABRIC = "ggml_cuda_init: failed to initialize CUDA: system not yet initialized"
NO_KERNEL = (
    "ggml_cuda_compute_forward: MUL_MAT failed\n"
    "CUDA error: no kernel image is available for execution on the device\n"
    "  current device: 0, in function ggml_cuda_compute_forward at ggml-cuda.cu:2419"
)
CUDA_MALLOC = (
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 14336.00 MiB on device 0: cudaMalloc failed: "
    "out of memory\n"
    "alloc_tensor_range: failed to allocate CUDA0 buffer of size 15032385536\n"
    "llama_model_load: error loading model: unable to allocate CUDA0 buffer"
)
SMI_NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
    "driver is installed and running."
)
SMI_MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.183"
SMI_LOST = (
    "Unable to determine the device handle for GPU0000:00:1E.0: GPU is lost.  Reboot the system to recover this GPU"
)


LIST_H100 = (
    "{index}, NVIDIA H100 80GB HBM3, GPU-0b0b0b0b-1111-2222-3333-44445555666{index}, 580.65.06, 81559, 81079, 9.0, 5, "
    "16, 700.00, Enabled, Disabled, 96.00.89.00.01"
)
FABRIC_SECTION = """\
GPU 00000000:{bus:02X}:00.0
    Product Name                          : NVIDIA H100 80GB HBM3
    MIG Mode
        Current                           : Disabled
    ECC Errors
        Volatile
            SRAM Uncorrectable Parity     : 0
    Fabric
        State                             : {state}
        Status                            : {status}
        CliqueId                          : 0
        ClusterUUID                       : 00000000-0000-0000-0000-000000000000
        Health
            Bandwidth                     : N/A
    Processes                             : None

"""


def fabric_report(*registrations: tuple[str, str]) -> str:
    """`nvidia-smi -q`, cut to a few of its sections: state and status of each GPU's registration."""
    head = "\n==============NVSMI LOG==============\n\nDriver Version                            : 580.65.06\n\n"
    return head + "".join(
        FABRIC_SECTION.format(bus=0x19 + index, state=state, status=status)
        for index, (state, status) in enumerate(registrations)
    )


def on_cuda(mib: float = 0.9, offloaded: int = 3, total: int = 3, n_gpus: int = 1) -> str:
    """The log of a model that went to the GPU, or is divided among n_gpus."""
    using = "".join(
        f"llama_prepare_model_devices: using device CUDA{n} (Tesla T4) (0000:00:{n + 4:02x}.0) - 14913 MiB free\n"
        for n in range(n_gpus)
    )
    return (
        f"ggml_cuda_init: found {n_gpus} CUDA devices (Total VRAM: 14913 MiB):\n"
        f"  Device 0: Tesla T4, compute capability 7.5, VMM: yes, VRAM: 14913 MiB\n{using}"
        f"load_tensors: offloaded {offloaded}/{total} layers to GPU\n"
        "load_tensors:          CPU model buffer size =     0.07 MiB\n"
        f"load_tensors:        CUDA0 model buffer size = {mib:8.2f} MiB\n"
        "load_tensors:    CUDA_Host model buffer size =     0.01 MiB"
    )


ON_CPU = "load_tensors:          CPU model buffer size =     0.94 MiB"


def install_nvidia_smi(
    folder: Path,
    gpus: Sequence[str] = (),
    use: Sequence[str] = (),
    *,
    reports: Sequence[str] = (),
    error: str = "",
    rc: int = 9,
) -> Path:
    """A program that prints this list once and these readings again and again; with `error` it only fails.

    reports: what -q prints, in turn, the last one for ever. Each time it is asked for one leaves a line in `asked`.
    """
    program = folder / "nvidia-smi"
    folder.mkdir(parents=True, exist_ok=True)
    lines, readings = "\n".join(gpus), "\n".join(use)
    loop = f"while printf '%s\\n' '{readings}'; do sleep 0.1; done"
    for number, report in enumerate(reports, 1):
        (folder / f"report-{number}").write_text(report)
    whole = (
        f"cd {folder}; echo >> asked; n=0; while read -r line; do n=$((n+1)); done < asked\n"
        f"[ $n -le {len(reports)} ] || n={len(reports)}; cat report-$n"
    )
    body = f"case \"$*\" in\n*--loop*) {loop};;\n-q) {whole};;\n*) cat <<'E'\n{lines}\nE\nesac\n"
    if error:
        body = f"cat <<'E'\n{error}\nE\nexit {rc}\n"
    program.write_text("#!/bin/sh\n" + body)
    program.chmod(0o755)
    return program


def runtime_of_programs(folder: Path, builds: Sequence[Mapping[str, object]], programs: Mapping[str, Path]) -> Path:
    """A runtime whose launcher starts, for each build, that build's own program."""
    runtime = folder / "runtime"
    (runtime / "bin").mkdir(parents=True)
    launcher = runtime / "bin" / "llama-bench"
    launcher.write_text('#!/bin/sh\nexec "${LD_LIBRARY_PATH%%:*}/program" "$@"\n')
    launcher.chmod(0o755)
    for build in builds:
        place = runtime / "builds" / str(build["name"])
        place.mkdir(parents=True)
        (place / "program").symlink_to(programs[str(build["name"])])
    (runtime / "manifest.json").write_text(json.dumps({"builds": list(builds)}))
    return runtime


def says(path: Path, text: str, rc: int, rows: int = 0) -> Path:
    """A program that writes a log to stderr, rows to stdout, and ends."""
    row = '{"n_prompt": 32, "n_gen": 0, "samples_ns": [1000]}'
    out = f"cat <<'E'\n{chr(10).join([row] * rows)}\nE\n" if rows else ""
    path.write_text(f"#!/bin/sh\ncat >&2 <<'E'\n{text}\nE\n{out}exit {rc}\n")
    path.chmod(0o755)
    return path
