"""NVIDIA GPUs through nvidia-smi: what there is, and a stream of how it is used."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import time
from typing import Any, Callable

from agent.child import OutputPipe, start_program
from agent.limits import read_text
from tasks.domain.gpu_faults import has_nvswitch, is_registering, parse_fabric

LIST_FIELDS = (
    "index", "name", "uuid", "driver_version", "memory.total", "memory.free", "compute_cap", "pcie.link.gen.current",
    "pcie.link.width.current", "power.limit", "ecc.mode.current", "mig.mode.current", "vbios_version",
)  # fmt: skip
# Of drivers that do not know a field any more, what it is called there.
RENAMED_FIELDS = {"clocks_throttle_reasons.active": "clocks_event_reasons.active"}
USE_FIELDS = (
    "index", "utilization.gpu", "memory.used", "memory.free", "clocks.sm", "clocks.mem", "power.draw",
    "temperature.gpu", "clocks_throttle_reasons.active",
)  # fmt: skip
PCI_DEVICES = "/sys/bus/pci/devices"
NVIDIA = "0x10de"
DISPLAY_CLASSES = ("0x0300", "0x0302")  # VGA and 3D controllers
MIB = 1 << 20
LIST_TIMEOUT_S = 20.0
QUERY_TIMEOUT_S = 60.0
FABRIC_POLL_S = 2.0


def _fields(line: str, names: tuple[str, ...]) -> dict[str, str] | None:
    values = [value.strip() for value in line.split(",")]
    return dict(zip(names, values)) if len(values) == len(names) else None


def _number(text: str) -> float | None:
    """nvidia-smi writes "[N/A]", "[Not Supported]" or "[Unknown Error]" where it has none."""
    try:
        return float(text)
    except ValueError:
        return None


def _bytes(text: str) -> int | None:
    mib = _number(text)
    return None if mib is None else int(mib * MIB)


def parse_list(text: str) -> list[dict[str, Any]]:
    """The output of `nvidia-smi --query-gpu=LIST_FIELDS --format=csv,noheader,nounits`."""
    gpus = []
    for line in text.splitlines():
        raw = _fields(line, LIST_FIELDS)
        if raw is None:
            continue
        gpus.append(
            {
                "index": int(raw["index"]),
                "name": raw["name"],
                "uuid": raw["uuid"],
                "driver_version": raw["driver_version"],
                "compute_capability": raw["compute_cap"],
                "memory_total_bytes": _bytes(raw["memory.total"]),
                "memory_free_bytes": _bytes(raw["memory.free"]),
                "pcie_gen": _number(raw["pcie.link.gen.current"]),
                "pcie_width": _number(raw["pcie.link.width.current"]),
                "power_limit_w": _number(raw["power.limit"]),
                "ecc": raw["ecc.mode.current"],
                "mig": raw["mig.mode.current"],
                "vbios_version": raw["vbios_version"],
            }
        )
    return gpus


def parse_use(line: str) -> dict[str, Any] | None:
    """One line of `nvidia-smi --query-gpu=USE_FIELDS`; None for a line that is none."""
    raw = _fields(line, USE_FIELDS)
    if raw is None or not raw["index"].isdigit():
        return None
    reasons = raw["clocks_throttle_reasons.active"]
    return {
        "index": int(raw["index"]),
        "utilization_pct": _number(raw["utilization.gpu"]),
        "memory_used_bytes": _bytes(raw["memory.used"]),
        "memory_free_bytes": _bytes(raw["memory.free"]),
        "sm_clock_mhz": _number(raw["clocks.sm"]),
        "memory_clock_mhz": _number(raw["clocks.mem"]),
        "power_w": _number(raw["power.draw"]),
        "temperature_c": _number(raw["temperature.gpu"]),
        "throttle_reasons": int(reasons, 16) if reasons.startswith("0x") else None,
    }


def gpus_on_bus() -> int | None:
    """NVIDIA GPUs that the PCI bus shows, with a driver or without: a server that has one must not pass for one
    without. None where there is no bus to look at."""
    if not os.path.isdir(PCI_DEVICES):
        return None
    return sum(
        read_text(f"{device}/vendor") == NVIDIA and read_text(f"{device}/class").startswith(DISPLAY_CLASSES)
        for device in glob.glob(f"{PCI_DEVICES}/*")
    )


def list_gpus() -> list[dict[str, Any]]:
    """Every GPU; empty where there is no nvidia-smi or it fails (then `error` is its text, as the only entry).

    GPUs of a board with NVSwitch have fabric_state and fabric_status too. Others are not asked: -q takes seconds.
    """
    gpus = _listed()
    if has_nvswitch(gpus):
        for gpu, (state, status) in zip(gpus, _fabric()):
            gpu.update(fabric_state=state, fabric_status=status)
    return gpus


def settled_gpus(clock: Callable[[], float], patience_s: float) -> list[dict[str, Any]]:
    """list_gpus, once the fabric manager has taken all of them in, or the patience is at its end."""
    gives_up_s = clock() + patience_s
    gpus = list_gpus()
    while is_registering(gpus) and clock() < gives_up_s:
        time.sleep(FABRIC_POLL_S)
        gpus = list_gpus()
    return gpus


def _fabric() -> list[tuple[str, str]]:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-q"], capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_fabric(done.stdout)


def _listed() -> list[dict[str, Any]]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(LIST_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIST_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return [{"error": f"nvidia-smi: {exc}"}]
    if done.returncode != 0:
        return [{"error": (done.stdout + done.stderr).strip()[-500:]}]
    return parse_list(done.stdout)


def _use_command() -> list[str]:
    """The query in the names that this driver knows: one that it does not know fails the whole."""

    def named(fields: tuple[str, ...]) -> list[str]:
        return ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]

    try:
        done = subprocess.run(named(USE_FIELDS), capture_output=True, text=True, timeout=LIST_TIMEOUT_S, check=False)
        refused = done.returncode != 0 and "not a valid field" in done.stdout + done.stderr
    except (OSError, subprocess.TimeoutExpired):
        refused = False
    return named(tuple(RENAMED_FIELDS.get(name, name) for name in USE_FIELDS) if refused else USE_FIELDS)


class GpuStream:
    """One nvidia-smi that prints a line per GPU and second; nothing where there is no nvidia-smi."""

    def __init__(self) -> None:
        self.latest: list[dict[str, Any]] = []
        self.pipe: OutputPipe | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        if shutil.which("nvidia-smi") is None:
            return
        command = [*_use_command(), "--loop=1"]
        self._process = start_program(command, stderr=subprocess.DEVNULL)
        self.pipe = OutputPipe(self._process.stdout)

    def read(self) -> None:
        """Take in new lines; `latest` has the newest of each GPU."""
        if self.pipe is None:
            return
        *lines, self._rest = (self._rest + self.pipe.read()).split(b"\n")
        by_index = {gpu["index"]: gpu for gpu in self.latest}
        for line in lines:
            gpu = parse_use(line.decode(errors="replace"))
            if gpu is not None:
                by_index[gpu["index"]] = gpu
        self.latest = [by_index[index] for index in sorted(by_index)]

    def memory_used_bytes(self) -> int | None:
        """Of all GPUs, as last read; None without a reading."""
        known = [gpu["memory_used_bytes"] for gpu in self.latest if gpu["memory_used_bytes"] is not None]
        return sum(known) if known else None

    def close(self) -> None:
        if self._process is not None and self.pipe is not None:
            self._process.kill()
            self._process.wait()
            self.pipe.close()
