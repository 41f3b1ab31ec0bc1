"""What the agent says about the machine: fingerprint, limits, telemetry, GPUs, builds."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from agent.gpu import GpuStream, list_gpus, parse_list, parse_use
from agent.hardware import cpu_flags, fingerprint
from agent.limits import usable
from agent.runtime import allowed_builds, read_manifest
from agent.telemetry import Telemetry


def test_the_fingerprint_agrees_with_what_another_program_sees(tmp_path: Path) -> None:
    values = fingerprint(tmp_path)
    json.dumps(values)
    assert values["cpu"]["n_threads"] == psutil.cpu_count()
    assert values["memory"]["total_bytes"] == psutil.virtual_memory().total
    assert values["cpu"]["allowed_cpus"] == sorted(psutil.Process().cpu_affinity() or [])
    assert values["cpu"]["model_name"]
    assert values["system"]["kernel"] == os.uname().release
    assert abs(values["disk"]["free_bytes"] - psutil.disk_usage(str(tmp_path)).free) < 1 << 30
    assert values["system"]["boot_unix_s"] == pytest.approx(psutil.boot_time(), abs=2)


def test_the_limits_file_bounds_memory_and_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = tmp_path / "limits.json"
    limits.write_text(json.dumps({"memory_bytes": 512 << 20, "cpus": 1}))
    monkeypatch.setenv("TOKENSWEEP_LIMITS", str(limits))
    here = usable()
    assert here.memory_total_bytes == 512 << 20
    assert here.memory_available_bytes <= 512 << 20
    assert here.memory_limited_by == "limits_file"
    assert here.n_cpus == 1


def _usable_in_child(prepare: str) -> dict[str, object]:
    program = f"{prepare}\nimport json\nfrom agent.limits import usable\nprint(json.dumps(vars(usable())))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOKENSWEEP_LIMITS": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    values: dict[str, object] = json.loads(done.stdout)
    return values


def test_an_rlimit_bounds_memory() -> None:
    here = _usable_in_child(f"import resource; resource.setrlimit({resource.RLIMIT_DATA}, (1 << 30, 1 << 30))")
    assert here["memory_total_bytes"] == 1 << 30
    assert here["memory_limited_by"] == "rlimit"


def test_affinity_bounds_cpus() -> None:
    first = min(os.sched_getaffinity(0))
    here = _usable_in_child(f"import os; os.sched_setaffinity(0, [{first}])")
    assert here["n_cpus"] == 1
    assert here["cpu_ids"] == [first]


def test_a_memory_cgroup_bounds_memory() -> None:
    folder = Path("/sys/fs/cgroup/memory/tokensweep-test-limits")
    if os.geteuid() != 0 or not folder.parent.is_dir():
        pytest.skip("making a memory cgroup (version 1) needs root and its hierarchy")
    folder.mkdir(exist_ok=True)
    try:
        (folder / "memory.limit_in_bytes").write_text(str(300 << 20))
        procs = str(folder / "cgroup.procs")
        here = _usable_in_child(f"import os; open({procs!r}, 'w').write(str(os.getpid()))")
    finally:
        time.sleep(0.05)
        folder.rmdir()
    assert here["memory_total_bytes"] == 300 << 20
    assert here["memory_limited_by"] == "cgroup"


def test_telemetry_tells_what_a_process_does() -> None:
    telemetry = Telemetry()
    program = "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
    busy = subprocess.Popen([sys.executable, "-c", program])
    try:
        time.sleep(0.2)
        telemetry.watch(busy.pid)
        first = telemetry.sample()
        time.sleep(1.0)
        second = telemetry.sample()
    finally:
        busy.kill()
        busy.wait()
    assert "allowed_cpu_busy" not in first
    assert 0.0 < second["allowed_cpu_busy"] <= 1.0
    assert second["bench_cpus"] > 0.05
    assert second["bench_rss_bytes"] > 1 << 20
    assert second["context_switches_per_s"] > 0
    assert abs(second["memory_available_bytes"] - psutil.virtual_memory().available) < 2 << 30
    for key in ("allowed_cpu_steal", "machine_cpu_busy", "net_rx_bytes_per_s", "load1", "sample_cpu_ms"):
        assert key in second, key
    telemetry.watch(0)
    assert "bench_cpus" not in telemetry.sample()


LISTED = """\
0, NVIDIA H100 80GB HBM3, GPU-5b2a6c9e-1111-2222-3333-444455556666, 580.95.05, 81559, 81004, 9.0, 5, 16, 700.00, \
Enabled, Disabled, 96.00.89.00.01
1, Tesla T4, GPU-0a0a0a0a-1111-2222-3333-444455556666, 580.95.05, 15360, 14913, 7.5, 3, 8, 70.00, [N/A], [N/A], \
90.04.96.00.A0
"""
USED = "0, 97, 40312, 40692, 1980, 2619, 512.34, 61, 0x0000000000000004"
USED_OLD = "1, [Not Supported], 312, 15048, 1590, 5001, [Unknown Error], 44, [Not Supported]"


def test_gpus_are_read_from_what_nvidia_smi_prints() -> None:
    h100, t4 = parse_list(LISTED)
    assert h100["name"] == "NVIDIA H100 80GB HBM3"
    assert h100["memory_total_bytes"] == 81559 << 20
    assert h100["compute_capability"] == "9.0"
    assert t4["ecc"] == "[N/A]"
    assert parse_list("Failed to initialize NVML: Driver/library version mismatch\n") == []


def test_gpu_use_is_read_and_what_is_unknown_is_none() -> None:
    used = parse_use(USED)
    assert used is not None
    assert (used["utilization_pct"], used["memory_used_bytes"], used["throttle_reasons"]) == (97.0, 40312 << 20, 4)
    old = parse_use(USED_OLD)
    assert old is not None
    assert (old["utilization_pct"], old["power_w"], old["throttle_reasons"]) == (None, None, None)
    assert parse_use("") is None
    assert parse_use("Unable to determine the device handle for GPU0: Unknown Error") is None


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that prints what nvidia-smi printed."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    loop = f"while echo '{USED}'; do sleep 0.05; done"
    program.write_text(f"#!/bin/sh\ncase \"$*\" in\n*--loop*) {loop};;\n*) cat <<'E'\n{LISTED}E\nesac\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def test_gpus_are_found_by_the_program(nvidia_smi: Path, tmp_path: Path) -> None:
    assert [gpu["index"] for gpu in fingerprint(tmp_path)["gpus"]] == [0, 1]
    nvidia_smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert list_gpus() == [{"error": "NVIDIA-SMI has failed"}]


def test_gpu_use_streams_until_closed(nvidia_smi: Path) -> None:
    stream = GpuStream()
    deadline = time.monotonic() + 60
    while not stream.latest and time.monotonic() < deadline:
        stream.read()
        time.sleep(0.02)
    assert [gpu["index"] for gpu in stream.latest] == [0]
    stream.close()
    assert stream.pipe is not None
    assert stream.pipe.ended


def test_a_driver_that_has_renamed_a_field_is_asked_by_its_new_name(nvidia_smi: Path) -> None:
    refused = 'Field "clocks_throttle_reasons.active" is not a valid field to query.'
    loop = f"while echo '{USED}'; do sleep 0.05; done"
    cases = f"*clocks_throttle*) echo '{refused}'; exit 2;;\n*clocks_event*--loop*) {loop};;"
    nvidia_smi.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\n')
    stream = GpuStream()
    deadline = time.monotonic() + 60
    while not stream.latest and time.monotonic() < deadline:
        stream.read()
        time.sleep(0.02)
    stream.close()
    assert [gpu["throttle_reasons"] for gpu in stream.latest] == [4]


def answering(program: Path, cases: str) -> None:
    """Make it answer by its arguments: `cases` of a shell's case."""
    program.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\n')


# What drivers before 495 say: https://github.com/huggingface/candle/issues/733. The others are of 535 and not of 470.
NO_SUCH_FIELD = 'Field "{}" is not a valid field to query.'
LISTED_470 = "0, Tesla V100-SXM2-16GB, GPU-0c, 470.182.03, 16160, 16157, 3, 16, 300.00, Enabled, [N/A], 88.00.80.00.01"


def test_a_field_that_the_driver_does_not_have_costs_no_more_than_itself(nvidia_smi: Path) -> None:
    cases = f"*compute_cap*) echo '{NO_SUCH_FIELD.format('compute_cap')}'; exit 2;;\n*) echo '{LISTED_470}';;"
    answering(nvidia_smi, cases)
    (gpu,) = list_gpus()
    assert (gpu["driver_version"], gpu["memory_free_bytes"], gpu["compute_capability"]) == (
        "470.182.03", 16157 << 20, "")  # fmt: skip
    used = USED.replace(", 512.34", "")
    cases = f"*power.draw*) echo '{NO_SUCH_FIELD.format('power.draw')}'; exit 2;;\n*--loop*) echo '{used}'; sleep 60;;"
    answering(nvidia_smi, cases)
    (reading,) = first_readings(GpuStream())
    assert (reading["temperature_c"], reading["power_w"]) == (61.0, None)


def test_a_warning_that_is_only_about_the_inforom_hides_no_gpu(nvidia_smi: Path) -> None:
    """Exit status 14 of nvidia-smi(1): https://github.com/NVIDIA/gpu-operator/issues/285."""
    warning = "WARNING: infoROM is corrupted at gpu 0000:0B:00.0"
    answering(nvidia_smi, f"*) cat <<'E'\n{LISTED}{warning}\nE\nexit 14;;")
    assert [gpu["index"] for gpu in list_gpus()] == [0, 1]


def first_readings(stream: GpuStream) -> list[dict[str, object]]:
    deadline = time.monotonic() + 60
    while not stream.latest and time.monotonic() < deadline:
        stream.read()
        time.sleep(0.02)
    try:
        return stream.latest
    finally:
        stream.close()


@pytest.mark.parametrize("end", ["sleep 60", "exit 15"])
def test_readings_of_an_nvidia_smi_that_hangs_or_has_died_are_not_those_of_now(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """As it does when a GPU is lost: https://github.com/NVIDIA/gpu-monitoring-tools/issues/46."""
    answering(nvidia_smi, f"*--loop*) echo '{USED}'; {end};;")
    stream = GpuStream()
    deadline = time.monotonic() + 60
    while not stream.latest and time.monotonic() < deadline:
        stream.read()
        time.sleep(0.02)
    assert stream.memory_used_bytes() == 40312 << 20
    monkeypatch.setattr("agent.gpu.FRESH_S", 0.0)
    stream.read()
    assert (stream.latest, stream.memory_used_bytes()) == ([], None)
    stream.close()


def test_only_builds_that_this_cpu_has_the_instructions_for_are_allowed() -> None:
    flags = sorted(cpu_flags())
    manifest = {
        "builds": [
            {"name": "cuda", "backend": "cuda", "cpu_flags": []},
            {"name": "impossible", "cpu_flags": ["no_such_instruction"]},
            {"name": "here", "cpu_flags": flags},
            {"name": "generic", "cpu_flags": []},
        ]
    }
    assert allowed_builds(manifest) == ("here", "generic")
    assert allowed_builds({**manifest, "arch": "pdp11"}) == ()
    assert allowed_builds({**manifest, "min_glibc": "2.2"}) == ("here", "generic")
    assert allowed_builds({**manifest, "min_glibc": "99.1"}) == ()


def test_a_missing_or_broken_manifest_allows_nothing(tmp_path: Path) -> None:
    assert allowed_builds(read_manifest(tmp_path)) == ()
    (tmp_path / "manifest.json").write_text("[1")
    assert allowed_builds(read_manifest(tmp_path)) == ()
