"""The runtime's builds, tried on this server with a tiny model until one works; every answer is recorded.

A probe takes a fifth of a second where it succeeds, and one that succeeds ends the search: a server whose first build
works pays for no other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Sequence

from agent.bench import RC_NO_PROGRAM, RC_NOT_EXECUTABLE, RC_SIGKILL, bench_environment
from agent.bench_output import BUFFER, USING
from agent.child import exit_status, start_program
from agent.gpu import FABRIC_POLL_S, gpus_on_bus, settled_gpus
from agent.hardware import cpu_flags
from agent.limits import usable
from agent.probe_model import write_probe_model
from agent.runtime import fits_system
from tasks.domain.actions import Decision
from tasks.domain.build_choice import (
    Build,
    BuildFault,
    Fault,
    Machine,
    ProbeResult,
    fallback_reason,
    fault_of,
    in_order,
    turned_down,
)
from tasks.domain.gpu_faults import GpuFault, fabric_fault, gpu_fault, has_nvswitch
from tasks.domain.offload import gpu_mib

PROBE_LIMIT_S = {True: 300.0, False: 60.0}
"""For a build with a GPU, whose driver may compile its kernels first, and for one without."""
FABRIC_PATIENCE_S = 120.0
"""A fabric manager is still at work when a machine with eight GPUs lets the first login in."""
KILLED_LIMIT_S = 10.0
PROBE_THREADS = 4
KEPT_OUTPUT = 300
_NOT_OF_THE_BUILD = (BuildFault.GPU_NOT_USED, BuildFault.TIMED_OUT)


@dataclass
class Choice:
    """builds: names to use, best first; the first has run here, those after it are for when it fails after all.

    fallback: why a server with a GPU is measured on its CPUs; None where it is not. broken: builds were there, and
    none of them works.
    """

    builds: tuple[str, ...] = ()
    gpu_builds: tuple[str, ...] = ()
    fallback: Fault | None = None
    broken: str = ""
    decisions: list[Decision] = field(default_factory=list)


def choose_runtime(
    runtime_dir: Path,
    manifest: dict[str, Any],
    wanted: Sequence[str],
    folder: Path,
    clock: Callable[[], float],
    extra: dict[str, str],
) -> Choice:
    """Try the builds of a manifest; `wanted` restricts them to these names. `folder` is for the probe's model."""
    builds = [Build.from_manifest(raw) for raw in manifest.get("builds", []) if "name" in raw]
    builds = [build for build in builds if not wanted or build.name in wanted] if fits_system(manifest) else []
    if not builds:
        return Choice(builds=tuple(wanted))
    began_s = clock()
    gives_up_s = began_s + FABRIC_PATIENCE_S
    machine = Machine(cpu_flags(), tuple(settled_gpus(clock, FABRIC_PATIENCE_S)), gpus_on_bus())
    choice = Choice()
    if has_nvswitch(machine.gpus):
        fabric = fabric_fault(machine.gpus)
        states = [f"{gpu.get('fabric_state', '')}: {gpu.get('fabric_status', '')}" for gpu in machine.gpus]
        evidence: dict[str, Any] = {"states": states, "waited_s": round(clock() - began_s, 3)}
        choice.decisions.append(Decision(clock(), "read_fabric", "gpus", _word(fabric), evidence))
    faults: dict[str, Fault] = {}
    chosen: Build | None = None
    of_gpus: dict[Any, Fault] = {}  # a GPU's own fault, which no other build with the same needs would mend
    model = write_probe_model(folder)
    ordered = in_order(builds, machine)
    for build in ordered:
        if chosen is not None and chosen.on_gpu and build.on_gpu:
            continue  # one that fits the GPU is enough
        needs = (build.backend, build.min_driver, build.compute_capabilities)
        fault = turned_down(build, machine) or of_gpus.get(needs)
        evidence = {"backend": build.backend}
        if fault is None and chosen is None:
            began_s = clock()
            result = probe(runtime_dir, build, model, extra)
            fault = fault_of(build, result, machine)
            # Of A100 nvidia-smi tells no state of the fabric, and other states change before CUDA knows of it.
            while fault is GpuFault.FABRIC_MANAGER and not fabric_fault(machine.gpus) and clock() < gives_up_s:
                time.sleep(FABRIC_POLL_S)
                result = probe(runtime_dir, build, model, extra)
                fault = fault_of(build, result, machine)
            evidence.update(_evidence(result, clock() - began_s))
            chosen = build if fault is None else None
            if build.on_gpu and (isinstance(fault, GpuFault) or fault in _NOT_OF_THE_BUILD):
                of_gpus[needs] = fault
        elif fault is None:
            evidence["not_needed"] = True
        if fault is not None:
            faults[build.name] = fault
        choice.decisions.append(Decision(clock(), "probe_build", build.name, _word(fault), evidence))
    model.unlink()
    _conclude(choice, ordered, chosen, faults, machine, clock)
    return choice


def _conclude(
    choice: Choice,
    ordered: list[Build],
    chosen: Build | None,
    faults: dict[str, Fault],
    machine: Machine,
    clock: Callable[[], float],
) -> None:
    usable_builds = [build for build in ordered if build.name not in faults]
    if chosen is None:  # a probe that fails for no known reason proves nothing; the model itself then has to
        usable_builds = [b for b in ordered if faults.get(b.name) in (BuildFault.PROBE_FAILED, BuildFault.TIMED_OUT)]
        choice.broken = "" if usable_builds else ", ".join(f"{name}: {fault.value}" for name, fault in faults.items())
    choice.builds = tuple(build.name for build in usable_builds)
    choice.gpu_builds = tuple(build.name for build in usable_builds if build.on_gpu)
    first = usable_builds[0] if usable_builds else None
    choice.fallback = fallback_reason(ordered, first, faults, machine)
    if first is not None:
        evidence = {"backend": first.backend, "n_gpus_listed": sum("error" not in gpu for gpu in machine.gpus),
                    "n_gpus_on_bus": machine.n_gpus_on_bus}  # fmt: skip
        choice.decisions.append(Decision(clock(), "choose_build", first.name, "ok", evidence))
    if choice.fallback is not None:
        faults_by_name = {name: fault.value for name, fault in faults.items()}
        says = [str(gpu["error"])[:KEPT_OUTPUT] for gpu in machine.gpus if gpu.get("error")]
        values = {"build": first.name if first else "", "faults": faults_by_name, "nvidia_smi": says}
        choice.decisions.append(Decision(clock(), "fall_back_to_cpu", "runtime", choice.fallback.value, values))


def _word(fault: Fault | None) -> str:
    return "ok" if fault is None else fault.value


def _evidence(result: ProbeResult, seconds: float) -> dict[str, Any]:
    evidence: dict[str, Any] = {"rc": result.rc, "probe_s": round(seconds, 3), "n_rows": result.rows}
    if result.gpu_mib:
        evidence["gpu_mib"] = result.gpu_mib
    if result.rc != 0 or not result.rows or gpu_fault(result.output):
        evidence["says"] = _telling(result.output)
    return evidence


def _telling(output: str) -> str:
    """The lines that name a fault, else the last ones."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    signs = ("error", "fail", "cannot open", "not found", "no such", "illegal")
    telling = [line for line in lines if gpu_fault(line) or any(sign in line.lower() for sign in signs)]
    return "; ".join(telling or lines[-3:])[-KEPT_OUTPUT:]


def probe_argv(runtime_dir: Path, build: Build, model: Path) -> list[str]:
    """A prompt and a few tokens over every tensor type, with the ladder's flags; on a GPU with all layers."""
    n_threads = str(min(PROBE_THREADS, usable().n_cpus))
    argv = [str(runtime_dir / "bin" / "llama-bench"), "-m", str(model), "-p", "32", "-n", "4", "-r", "1",
            "-t", n_threads, "-b", "2048", "-ub", "512", "-fa", "1", "-lm", "none", "-o", "jsonl", "-v"]  # fmt: skip
    return [*argv, "-ngl", "99"] if build.on_gpu else argv


def probe(runtime_dir: Path, build: Build, model: Path, extra: dict[str, str]) -> ProbeResult:
    """One run of a build over the tiny model; never raises for what the build does."""
    try:
        environment = bench_environment(runtime_dir, build.name, extra)
        process = start_program(probe_argv(runtime_dir, build, model), environment)
    except FileNotFoundError as exc:
        return ProbeResult(RC_NO_PROGRAM, str(exc), 0)
    except OSError as exc:
        return ProbeResult(RC_NOT_EXECUTABLE, str(exc), 0)
    timed_out = False
    try:
        stdout, stderr = process.communicate(timeout=PROBE_LIMIT_S[build.on_gpu])
    except subprocess.TimeoutExpired:
        timed_out = True
        os.killpg(process.pid, signal.SIGKILL)
        try:
            stdout, stderr = process.communicate(timeout=KILLED_LIMIT_S)
        except subprocess.TimeoutExpired:  # it hangs in the driver of a GPU, where no signal reaches it
            stdout, stderr = b"", b""
    text = stderr.decode(errors="replace")
    buffers = {f"{device} {what}": float(mib) for device, what, mib in BUFFER.findall(text)}
    rc = RC_SIGKILL if process.returncode is None else exit_status(process.returncode)
    return ProbeResult(rc, text, _rows(stdout), gpu_mib(buffers), timed_out, len(set(USING.findall(text))))


def _rows(stdout: bytes) -> int:
    n_rows = 0
    for line in stdout.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        n_rows += isinstance(row, dict) and bool(row.get("samples_ns"))
    return n_rows
