"""Which build measures a server: real programs that do not run here, and what the choice says of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from agent.gpu import gpus_on_bus
from agent.probe_model import probe_model, write_probe_model
from agent.runtime_choice import Choice, choose_runtime, probe

from tasks.domain.build_choice import Build
from tasks.domain.gguf import parse_header
from tests.agent.agent_run import AgentRun, of_kind, outcomes, plan_for
from tests.agent.gpu_output import (
    CUDA_MALLOC,
    DRIVER_TOO_OLD,
    FABRIC,
    LIST_H100,
    LIST_T4,
    NO_DEVICE,
    NO_KERNEL,
    ON_CPU,
    SMI_LOST,
    SMI_MISMATCH,
    SMI_NO_DRIVER,
    fabric_report,
    install_nvidia_smi,
    on_cuda,
    runtime_of_programs,
    says,
)
from tests.agent.model_server import ModelServer
from tests.agent.runtimes import FAKE, real_runtime
from tests.agent.small_gguf import small_gguf

T4 = LIST_T4.format(index=0, free=14913)
CUDA = {"name": "cuda", "backend": "cuda", "cpu_flags": []}
GENERIC = {"name": "generic", "cpu_flags": []}


def compiled(source: str, path: Path, *options: str) -> Path:
    """A program of this machine's C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    path.with_suffix(".c").write_text(source)
    subprocess.run([compiler, str(path.with_suffix(".c")), "-o", str(path), *options], check=True)
    return path


@pytest.fixture
def illegal(tmp_path: Path) -> Path:
    """A program that executes an instruction which no CPU has (ud2, udf)."""
    return compiled("int main(void) { __builtin_trap(); }\n", tmp_path / "illegal")


@pytest.fixture
def without_library(tmp_path: Path) -> Path:
    """A program that was linked against a library which is gone."""
    library = compiled("int gone(void) { return 0; }\n", tmp_path / "libgone.so", "-shared", "-fPIC")
    program = compiled("int gone(void); int main(void) { return gone(); }\n", tmp_path / "orphan",
                       f"-L{tmp_path}", "-l:libgone.so")  # fmt: skip
    library.unlink()
    return program


def choose(tmp_path: Path, builds: list[dict[str, Any]], **programs: Path) -> Choice:
    works = says(tmp_path / "works", ON_CPU, 0, 2)
    runtime = runtime_of_programs(tmp_path, builds, {"generic": works, **programs})
    manifest = json.loads((runtime / "manifest.json").read_text())
    return choose_runtime(runtime, manifest, (), tmp_path, time.monotonic, {})


def faults(choice: Choice) -> dict[str, str]:
    return {d.subject: d.reason for d in choice.decisions if d.action == "probe_build"}


def fallback(choice: Choice) -> str:
    (decision,) = [d for d in choice.decisions if d.action == "fall_back_to_cpu"]
    assert choice.fallback is not None
    assert decision.reason == choice.fallback.value
    return decision.reason


def pci_bus(folder: Path, *devices: tuple[str, str]) -> Path:
    """A bus as /sys shows it: vendor and class of each device."""
    folder.mkdir()
    for number, (vendor, kind) in enumerate(devices):
        (folder / str(number)).mkdir()
        (folder / str(number) / "vendor").write_text(vendor + "\n")
        (folder / str(number) / "class").write_text(kind + "\n")
    return folder


@pytest.fixture
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path without nvidia-smi, should this machine have one."""
    if gpus_on_bus():
        pytest.skip("this machine has an NVIDIA GPU")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "sleep"):
        (tools / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tools))


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first in the path, with an nvidia-smi that lists one T4."""
    folder = tmp_path / "smi"
    install_nvidia_smi(folder, [T4])
    monkeypatch.setattr("agent.gpu.PCI_DEVICES", str(pci_bus(tmp_path / "pci", ("0x10de", "0x030200"))))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_the_probe_model_is_a_model_that_our_own_reader_accepts(tmp_path: Path) -> None:
    data = probe_model()
    header = parse_header(data, len(data))
    assert (header.arch, header.n_layers, header.end_of_file_bytes) == ("llama", 2, len(data))
    assert set(header.tensor_types) == {"F32", "Q4_0", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}
    assert probe_model() == data
    assert write_probe_model(tmp_path).read_bytes() == data


def test_the_real_engine_runs_the_probe(tmp_path: Path) -> None:
    runtime, build = real_runtime()
    result = probe(runtime, Build(build), write_probe_model(tmp_path), {})
    assert (result.rc, result.rows, result.gpu_mib, result.timed_out) == (0, 2, 0.0, False), result.output[-500:]


def test_the_real_runtime_is_chosen_by_one_probe(tmp_path: Path, no_gpu: None) -> None:
    runtime, build = real_runtime()
    manifest = json.loads((runtime / "manifest.json").read_text())
    choice = choose_runtime(runtime, manifest, (), tmp_path, time.monotonic, {})
    assert choice.builds[0] == build
    assert choice.gpu_builds == ()
    assert choice.fallback is None
    assert sum("rc" in d.evidence for d in choice.decisions) == 1, "the first build works, and no other is tried"
    assert not (tmp_path / "probe.gguf").exists()


def test_an_illegal_instruction_falls_back(tmp_path: Path, illegal: Path, no_gpu: None) -> None:
    choice = choose(tmp_path, [{"name": "amx", "cpu_flags": []}, GENERIC], amx=illegal)
    assert faults(choice) == {"amx": "illegal_instruction", "generic": "ok"}
    assert choice.builds == ("generic",)
    (tried,) = [d for d in choice.decisions if d.subject == "amx"]
    assert tried.evidence["rc"] == 132
    assert choice.fallback is None, "this server has no GPU, so nothing is missing"


def test_a_missing_library_falls_back(tmp_path: Path, without_library: Path, no_gpu: None) -> None:
    choice = choose(tmp_path, [{"name": "linked", "cpu_flags": []}, GENERIC], linked=without_library)
    assert faults(choice) == {"linked": "missing_library", "generic": "ok"}
    (tried,) = [d for d in choice.decisions if d.subject == "linked"]
    assert tried.evidence["rc"] == 127
    assert "libgone.so" in tried.evidence["says"]


def test_a_program_that_is_not_there_and_one_that_hangs(
    tmp_path: Path, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.runtime_choice.PROBE_LIMIT_S", {True: 1.0, False: 1.0})
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o755)
    builds = [{"name": name, "cpu_flags": []} for name in ("gone", "hangs")]
    choice = choose(tmp_path, [*builds, GENERIC], gone=tmp_path / "nowhere", hangs=sleeper)
    assert faults(choice) == {"gone": "no_program", "hangs": "probe_timed_out", "generic": "ok"}


def test_a_gpu_build_is_not_tried_where_there_is_no_gpu(tmp_path: Path, illegal: Path, no_gpu: None) -> None:
    choice = choose(tmp_path, [CUDA, GENERIC], cuda=illegal)
    assert faults(choice) == {"cuda": "no_gpu", "generic": "ok"}
    assert choice.builds == ("generic",)
    assert choice.fallback is None


@pytest.mark.parametrize(
    ("log", "rc", "rows", "reason"),
    [
        (f"{NO_DEVICE}\n{ON_CPU}", 0, 2, "no_gpu_seen"),
        (f"{DRIVER_TOO_OLD}\n{ON_CPU}", 0, 2, "gpu_driver_too_old"),
        (f"{FABRIC}\n{ON_CPU}", 0, 2, "fabric_manager"),
        (NO_KERNEL, 134, 0, "no_kernels_for_gpu"),
        (CUDA_MALLOC, 1, 0, "gpu_out_of_memory"),
        ("error while loading shared libraries: libcuda.so.1: cannot open shared object file", 127, 0, "no_gpu_driver"),
        ("error while loading shared libraries: libcudart.so.12: cannot open shared object file: No such file", 127, 0,
         "missing_library"),
        (ON_CPU, 0, 2, "gpu_not_used"),
    ],
)  # fmt: skip
def test_a_cuda_build_that_does_not_use_the_gpu_is_told_and_why(
    tmp_path: Path, nvidia: Path, monkeypatch: pytest.MonkeyPatch, log: str, rc: int, rows: int, reason: str
) -> None:
    """Some of these end with status 0 and rows: that is how the CPU's numbers came under a GPU's name."""
    monkeypatch.setattr("agent.runtime_choice.FABRIC_PATIENCE_S", 0.0)
    choice = choose(tmp_path, [CUDA, GENERIC], cuda=says(tmp_path / "cuda", log, rc, rows))
    assert faults(choice)["cuda"] == reason
    assert fallback(choice) == reason
    assert choice.builds == ("generic",)
    assert choice.gpu_builds == ()


def test_a_cuda_build_that_works_comes_first_and_the_cpu_stays_in_reserve(tmp_path: Path, nvidia: Path) -> None:
    choice = choose(tmp_path, [GENERIC, CUDA], cuda=says(tmp_path / "cuda", on_cuda(), 0, 2))
    assert choice.builds == ("cuda", "generic")
    assert choice.gpu_builds == ("cuda",)
    assert choice.fallback is None


BOARD = [LIST_H100.format(index=index) for index in range(4)]
IN_PROGRESS, COMPLETED = ("In Progress", "N/A"), ("Completed", "Success")


def fabric_decision(choice: Choice) -> Any:
    (decision,) = [d for d in choice.decisions if d.action == "read_fabric"]
    return decision


@pytest.mark.parametrize(
    ("registration", "log", "rc", "reason"),
    [
        (("Not Started", "N/A"), f"{NO_DEVICE}\n{ON_CPU}", 0, "fabric_manager"),
        (IN_PROGRESS, "", 1, "fabric_manager"),
        (("Completed", "Insufficient Resources"), ON_CPU, 0, "fabric_manager"),
        (("Completed", "Insufficient Resources"), DRIVER_TOO_OLD, 1, "gpu_driver_too_old"),
        (COMPLETED, f"{NO_DEVICE}\n{ON_CPU}", 0, "no_gpu_seen"),
        (("N/A", "N/A"), "", 1, "probe_failed"),
    ],
)
def test_a_fabric_that_is_not_ready_is_the_reason_where_the_engine_names_none_that_is_more_precise(
    tmp_path: Path,
    nvidia: Path,
    monkeypatch: pytest.MonkeyPatch,
    registration: tuple[str, str],
    log: str,
    rc: int,
    reason: str,
) -> None:
    monkeypatch.setattr("agent.runtime_choice.FABRIC_PATIENCE_S", 0.0)
    install_nvidia_smi(nvidia, BOARD, reports=[fabric_report(COMPLETED, COMPLETED, registration, COMPLETED)])
    choice = choose(tmp_path, [CUDA, GENERIC], cuda=says(tmp_path / "cuda", log, rc, 2))
    assert faults(choice)["cuda"] == reason
    assert fallback(choice) == reason
    assert fabric_decision(choice).evidence["states"][2] == ": ".join(registration)


def test_a_fabric_manager_that_is_still_at_work_is_waited_for(
    tmp_path: Path, nvidia: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.gpu.FABRIC_POLL_S", 0.01)
    reports = [fabric_report(*[state] * 4) for state in (IN_PROGRESS, IN_PROGRESS, COMPLETED)]
    install_nvidia_smi(nvidia, BOARD, reports=reports)
    choice = choose(tmp_path, [CUDA, GENERIC], cuda=says(tmp_path / "cuda", on_cuda(n_gpus=4), 0, 2))
    assert choice.builds[0] == "cuda"
    assert choice.fallback is None
    assert len((nvidia / "asked").read_text()) == 3
    assert fabric_decision(choice).reason == "ok"
    assert fabric_decision(choice).evidence["states"] == ["Completed: Success"] * 4


@pytest.mark.parametrize(
    "gpus",
    [
        [T4],
        BOARD[:1],
        [line.replace("H100 80GB HBM3", "H100 PCIe") for line in BOARD],
        [line.replace("H100 80GB HBM3", "H100 NVL") for line in BOARD],
        [LIST_T4.format(index=index, free=14913) for index in range(4)],
    ],
)
def test_gpus_without_an_nvswitch_are_not_asked_for_their_fabric(tmp_path: Path, nvidia: Path, gpus: list[str]) -> None:
    install_nvidia_smi(nvidia, gpus, reports=[fabric_report(*[IN_PROGRESS] * 4)])
    ready = says(tmp_path / "cuda", on_cuda(n_gpus=len(gpus)), 0, 2)
    choice = choose(tmp_path, [CUDA, GENERIC], cuda=ready)
    assert choice.fallback is None
    assert not (nvidia / "asked").exists()
    assert not [d for d in choice.decisions if d.action == "read_fabric"]


def test_a_fabric_of_which_nvidia_smi_tells_nothing_is_waited_for_as_well(
    tmp_path: Path, nvidia: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of A100 nvidia-smi -q says N/A whatever the fabric manager does, only CUDA says 802 until it has begun:
    https://github.com/bottlerocket-os/bottlerocket/pull/3873 (a p4d)."""
    monkeypatch.setattr("agent.runtime_choice.FABRIC_POLL_S", 0.01)
    board = [line.replace("H100 80GB HBM3", "A100-SXM4-40GB") for line in BOARD]
    install_nvidia_smi(nvidia, board, reports=[fabric_report(*[("N/A", "N/A")] * 4)])
    asked = tmp_path / "asked"
    ready, early = on_cuda(n_gpus=4), f"{FABRIC}\n{ON_CPU}"
    program = says(tmp_path / "cuda", ready, 0, 2)
    begun = program.read_text()
    waits = says(tmp_path / "early", early, 0, 2).read_text().removeprefix("#!/bin/sh\n").removesuffix("exit 0\n")
    once = f"#!/bin/sh\necho >> {asked}; if [ $(wc -l < {asked}) -lt 3 ]; then\n{waits}exit 0\nfi\n"
    program.write_text(once + begun.removeprefix("#!/bin/sh\n"))
    choice = choose(tmp_path, [CUDA, GENERIC], cuda=program)
    assert choice.builds[0] == "cuda"
    assert choice.fallback is None
    assert len(asked.read_text()) == 3


def test_a_server_that_has_lost_a_gpu_is_not_measured_with_the_others(
    tmp_path: Path, nvidia: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = pci_bus(tmp_path / "two", ("0x10de", "0x030200"), ("0x10de", "0x030200"))
    monkeypatch.setattr("agent.gpu.PCI_DEVICES", str(bus))
    choice = choose(tmp_path, [CUDA, GENERIC], cuda=says(tmp_path / "cuda", on_cuda(), 0, 2))
    assert fallback(choice) == "gpu_lost"


@pytest.mark.parametrize(("n_used", "fault"), [(1, "not_all_gpus_used"), (2, "ok")])
def test_an_engine_that_leaves_a_gpu_out_is_not_taken(tmp_path: Path, nvidia: Path, n_used: int, fault: str) -> None:
    """It once took four GPUs for one (https://github.com/ggml-org/llama.cpp/pull/22533), and sees one part of MIG."""
    install_nvidia_smi(nvidia, [LIST_T4.format(index=index, free=14913) for index in range(2)])
    choice = choose(tmp_path, [CUDA, GENERIC], cuda=says(tmp_path / "cuda", on_cuda(n_gpus=n_used), 0, 2))
    assert faults(choice)["cuda"] == fault


def test_a_fault_of_the_gpu_is_met_once_whatever_the_number_of_builds(
    tmp_path: Path, nvidia: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.runtime_choice.FABRIC_PATIENCE_S", 0.0)
    builds = [{**CUDA, "name": "cuda+avx2"}, {**CUDA, "name": "cuda+sse42"}, GENERIC]
    broken = says(tmp_path / "cuda", FABRIC, 0, 2)
    choice = choose(tmp_path, builds, **{"cuda+avx2": broken, "cuda+sse42": broken})
    assert faults(choice) == {"cuda+avx2": "fabric_manager", "cuda+sse42": "fabric_manager", "generic": "ok"}
    assert sum("rc" in d.evidence for d in choice.decisions) == 2


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"min_driver": "560.35.03"}, "gpu_driver_too_old"),
        ({"compute_capabilities": ["8.0", "9.0"]}, "no_kernels_for_gpu"),
        ({"cpu_flags": ["no_such_instruction"]}, "missing_cpu_flags"),
    ],
)
def test_what_the_manifest_rules_out_is_not_started(
    tmp_path: Path, nvidia: Path, illegal: Path, extra: dict[str, Any], reason: str
) -> None:
    choice = choose(tmp_path, [{**CUDA, **extra}, GENERIC], cuda=illegal)
    assert faults(choice)["cuda"] == reason
    assert fallback(choice) == reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [(SMI_NO_DRIVER, "no_gpu_driver"), (SMI_MISMATCH, "gpu_driver_mismatch"), (SMI_LOST, "gpu_lost"),
     ("something new", "no_gpu_seen")],
)  # fmt: skip
def test_a_driver_that_fails_is_named(tmp_path: Path, nvidia: Path, error: str, reason: str) -> None:
    install_nvidia_smi(nvidia, error=error)
    choice = choose(tmp_path, [CUDA, GENERIC], cuda=says(tmp_path / "cuda", on_cuda(), 0, 2))
    assert fallback(choice) == reason
    assert choice.builds == ("generic",)


def test_a_gpu_server_and_a_runtime_without_a_gpu_build(tmp_path: Path, nvidia: Path) -> None:
    assert fallback(choose(tmp_path, [GENERIC])) == "no_gpu_build"


def test_when_every_probe_fails_for_an_unknown_reason_the_model_has_to_tell(tmp_path: Path, no_gpu: None) -> None:
    odd = says(tmp_path / "odd", "error: invalid parameter for argument: -lm", 1)
    choice = choose(tmp_path, [{"name": "old", "cpu_flags": []}], old=odd)
    assert choice.builds == ("old",)
    assert choice.broken == ""


def test_gpus_are_seen_on_the_bus_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = pci_bus(tmp_path / "pci", ("0x10de", "0x030200"), ("0x10de", "0x040300"), ("0x8086", "0x030000"))
    monkeypatch.setattr("agent.gpu.PCI_DEVICES", str(bus))
    assert gpus_on_bus() == 1
    monkeypatch.setattr("agent.gpu.PCI_DEVICES", str(tmp_path / "nowhere"))
    assert gpus_on_bus() is None


def test_a_gpu_without_its_driver_is_a_fall_back(
    tmp_path: Path, illegal: Path, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No nvidia-smi at all: only the bus tells that the CPU's numbers are not what the server is for."""
    bus = pci_bus(tmp_path / "pci", ("0x10de", "0x030200"))
    monkeypatch.setattr("agent.gpu.PCI_DEVICES", str(bus))
    choice = choose(tmp_path, [CUDA, GENERIC], cuda=illegal)
    assert faults(choice)["cuda"] == "no_gpu_driver"
    assert fallback(choice) == "no_gpu_driver"


def test_nvidias_tools_on_a_server_without_a_gpu_are_no_gpu(
    tmp_path: Path, nvidia: Path, illegal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvidia_smi(nvidia, error=SMI_NO_DRIVER)
    monkeypatch.setattr("agent.gpu.PCI_DEVICES", str(pci_bus(tmp_path / "empty")))
    choice = choose(tmp_path, [CUDA, GENERIC], cuda=illegal)
    assert faults(choice)["cuda"] == "no_gpu"
    assert choice.fallback is None


@pytest.fixture
def models(server: ModelServer, tmp_path: Path) -> dict[str, tuple[str, bytes]]:
    data = small_gguf(tmp_path / "small.gguf")
    return {"small": (server.put("/small", data), data)}


def test_a_whole_run_on_a_server_whose_gpu_cannot_be_used(
    agent_pyz: Path, tmp_path: Path, models: dict[str, tuple[str, bytes]], nvidia: Path, illegal: Path
) -> None:
    """The CUDA build falls to the CPU in silence, the first CPU build does not run here, the second one measures."""
    builds = [CUDA, {"name": "amx", "cpu_flags": []}, GENERIC]
    programs = {"cuda": says(tmp_path / "cuda", f"{NO_DEVICE}\n{ON_CPU}", 0, 2), "amx": illegal, "generic": FAKE}
    run = AgentRun(agent_pyz, tmp_path / "run", runtime_of_programs(tmp_path, builds, programs))
    run.put(plan_for(models))
    lines = run.finish()
    assert set(outcomes(lines).values()) == {"ok"}
    tried = {d["subject"]: d["reason"] for d in of_kind(lines, "Decision") if d["action"] == "probe_build"}
    assert tried == {"cuda": "no_gpu_seen", "amx": "illegal_instruction", "generic": "ok"}
    (fell,) = [d for d in of_kind(lines, "Decision") if d["action"] == "fall_back_to_cpu"]
    assert fell["reason"] == "no_gpu_seen"
    (probed,) = of_kind(lines, "Probed")
    assert probed["vram_free_bytes"] == [], "what cannot be used is not counted on"
    assert len(probed["hardware"]["gpus"]) == 1, "and yet the server has it"


def test_a_runtime_of_which_nothing_works_ends_before_the_download(
    agent_pyz: Path, tmp_path: Path, models: dict[str, tuple[str, bytes]], illegal: Path, server: ModelServer
) -> None:
    runtime = runtime_of_programs(tmp_path, [{"name": "amx", "cpu_flags": []}], {"amx": illegal})
    run = AgentRun(agent_pyz, tmp_path / "run", runtime)
    run.put(plan_for(models))
    lines = run.finish()
    assert set(outcomes(lines).values()) == {"no_working_build"}
    assert "illegal_instruction" in lines[-1]["results"][0]["detail"]
    assert not of_kind(lines, "DownloadStarted")
    assert run.processes() == []
