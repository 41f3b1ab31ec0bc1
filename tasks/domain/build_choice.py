"""Which build of the runtime measures a server: the best one that a probe run has shown to work there.

A build is turned down by its manifest (flags, driver, GPU) or by its probe, each with a reason of a closed list. A
server whose GPU cannot be used is measured on its CPUs, and then the reason why goes with every one of its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, FrozenSet, Mapping, Optional, Sequence, Tuple, Union

from tasks.domain.gpu_faults import GpuFault, fabric_fault, gpu_fault, listed_gpus, presence_fault

CPU = "cpu"


class BuildFault(str, Enum):
    """Why a build cannot be used here. What a GPU keeps from working is a GpuFault."""

    MISSING_CPU_FLAGS = "missing_cpu_flags"
    ILLEGAL_INSTRUCTION = "illegal_instruction"
    CRASHED = "crashed"
    MISSING_LIBRARY = "missing_library"
    LIBRARY_TOO_OLD = "library_too_old"
    NO_PROGRAM = "no_program"
    NOT_EXECUTABLE = "not_executable"
    TIMED_OUT = "probe_timed_out"
    NO_GPU = "no_gpu"
    NO_GPU_BUILD = "no_gpu_build"
    GPU_NOT_USED = "gpu_not_used"
    PROBE_FAILED = "probe_failed"


Fault = Union[BuildFault, GpuFault]

RC_SIGILL = 132
RC_NO_PROGRAM = 127
RC_NOT_EXECUTABLE = 126
_CRASHES = (134, 135, 136, 139)  # SIGABRT, SIGBUS, SIGFPE, SIGSEGV

# The dynamic loader's own words, of glibc and of musl.
_MISSING_LIBRARY = ("cannot open shared object file", "error loading shared library")
_LIBRARY_TOO_OLD = ("' not found (required by", "undefined symbol", "symbol not found", "symbol lookup error")


@dataclass(frozen=True)
class Build:
    """One build of a runtime's manifest.

    backend: "cpu", "cuda", ... min_driver: of the GPU's driver, "" for any. compute_capabilities: of GPUs that it has
    code for, e.g. ("7.5", "9.0"); empty where the manifest does not say. A GPU newer than all is left to the probe.
    """

    name: str
    backend: str = CPU
    cpu_flags: Tuple[str, ...] = ()
    min_driver: str = ""
    compute_capabilities: Tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        return self.backend != CPU

    @classmethod
    def from_manifest(cls, raw: Mapping[str, Any]) -> Build:
        """Keys that this version does not know are ignored."""
        return cls(
            name=str(raw["name"]),
            backend=str(raw.get("backend") or CPU).lower(),
            cpu_flags=tuple(str(flag) for flag in raw.get("cpu_flags") or ()),
            min_driver=str(raw.get("min_driver") or ""),
            compute_capabilities=tuple(str(c) for c in raw.get("compute_capabilities") or ()),
        )


@dataclass(frozen=True)
class Machine:
    """What the choice looks at.

    gpus: as the hardware record has them; n_gpus_on_bus: those that PCI shows, None where it cannot tell.
    """

    cpu_flags: FrozenSet[str]
    gpus: Tuple[Mapping[str, Any], ...] = ()
    n_gpus_on_bus: Optional[int] = 0

    @property
    def has_gpu(self) -> bool:
        """Whether there is one at all, usable or not."""
        if listed_gpus(self.gpus):
            return True
        return bool(self.gpus) if self.n_gpus_on_bus is None else self.n_gpus_on_bus > 0


@dataclass(frozen=True)
class ProbeResult:
    """How one probe run ended. rc: as a shell counts. gpu_mib: of the model in GPU memory, by the engine's log.

    rows: how many results it printed. timed_out: it was killed for being too long. n_gpus_used: 0 where it names none.
    """

    rc: int
    output: str
    rows: int
    gpu_mib: float = 0.0
    timed_out: bool = False
    n_gpus_used: int = 0


def numbers(version: str) -> Tuple[int, ...]:
    """(535, 129, 3) of "535.129.03"; what is no number ends it."""
    found = []
    for part in version.split("."):
        if not part.strip().isdigit():
            break
        found.append(int(part))
    return tuple(found)


def in_order(builds: Sequence[Build], machine: Machine) -> list[Build]:
    """Builds in the order of trying: those for a GPU first where there is one, else as the manifest has them."""
    return sorted(builds, key=lambda build: not build.on_gpu) if machine.has_gpu else list(builds)


def turned_down(build: Build, machine: Machine) -> Optional[Fault]:
    """Why this build need not even be probed here; None when it may be."""
    if not machine.cpu_flags.issuperset(build.cpu_flags):
        return BuildFault.MISSING_CPU_FLAGS
    if not build.on_gpu:
        return None
    if not machine.has_gpu:
        return BuildFault.NO_GPU
    listed = listed_gpus(machine.gpus)
    if not listed:
        return presence_fault(machine.gpus, machine.n_gpus_on_bus) or BuildFault.NO_GPU
    if machine.n_gpus_on_bus is not None and len(listed) < machine.n_gpus_on_bus:
        return GpuFault.LOST  # those that are left would be measured under the name of all
    driver = str(listed[0].get("driver_version") or "")
    if build.min_driver and numbers(driver) and numbers(driver) < numbers(build.min_driver):
        return GpuFault.DRIVER_TOO_OLD
    able = [numbers(str(gpu.get("compute_capability") or "")) for gpu in listed]
    code = [numbers(c) for c in build.compute_capabilities]
    if code and all(able) and max(able) < min(code):
        return GpuFault.NO_KERNELS
    return None


def fault_of(build: Build, probe: ProbeResult, machine: Machine) -> Optional[Fault]:
    """What a probe run shows to be wrong with a build; None when it works, and on the GPU where it is made for one."""
    text = probe.output
    fabric = fabric_fault(machine.gpus) if build.on_gpu else None
    if probe.timed_out:
        return fabric or BuildFault.TIMED_OUT
    if probe.rc == 0 and probe.rows and (not build.on_gpu or probe.gpu_mib > 0):
        fewer = build.on_gpu and 0 < probe.n_gpus_used < len(listed_gpus(machine.gpus))
        return GpuFault.NOT_ALL_USED if fewer else None
    on_gpu = gpu_fault(text) if build.on_gpu else None
    if on_gpu is GpuFault.NOT_SEEN and any(str(gpu.get("mig", "")).lower() == "enabled" for gpu in machine.gpus):
        return GpuFault.MIG_WITHOUT_INSTANCE
    if on_gpu is not None and not (fabric and on_gpu is GpuFault.NOT_SEEN):
        return on_gpu
    if fabric is not None:
        return fabric
    if probe.rc == RC_SIGILL:
        return BuildFault.ILLEGAL_INSTRUCTION
    if probe.rc in _CRASHES:
        return BuildFault.CRASHED
    if any(sign in text.lower() for sign in _MISSING_LIBRARY):
        return BuildFault.MISSING_LIBRARY
    if any(sign in text for sign in _LIBRARY_TOO_OLD):
        return BuildFault.LIBRARY_TOO_OLD
    if probe.rc == RC_NO_PROGRAM:
        return BuildFault.NO_PROGRAM
    if probe.rc == RC_NOT_EXECUTABLE:
        return BuildFault.NOT_EXECUTABLE
    if probe.rc == 0 and build.on_gpu:
        return BuildFault.GPU_NOT_USED
    return BuildFault.PROBE_FAILED


def fallback_reason(
    builds: Sequence[Build], chosen: Optional[Build], faults: Mapping[str, Fault], machine: Machine
) -> Optional[Fault]:
    """Why a server that has a GPU is measured on its CPUs; None where it is not, or where it has none."""
    if not machine.has_gpu or (chosen is not None and chosen.on_gpu):
        return None
    of_gpu = [faults[build.name] for build in builds if build.on_gpu and build.name in faults]
    return of_gpu[0] if of_gpu else presence_fault(machine.gpus, machine.n_gpus_on_bus) or BuildFault.NO_GPU_BUILD
