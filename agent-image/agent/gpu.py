"""NVIDIA GPUs through nvidia-smi: what there is, and a stream of how it is used."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
import time
from typing import Any, Callable, Sequence

from agent.child import OutputPipe, start_program
from agent.limits import read_text
from agent.nvidia_smi import RC_INFOROM, ask, query, query_arguments, values_of
from tasks.domain.gpu_faults import has_nvswitch, is_registering, parse_fabric

LIST_FIELDS = (
    "index", "name", "uuid", "driver_version", "memory.total", "memory.free", "compute_cap", "pcie.link.gen.current",
    "pcie.link.width.current", "power.limit", "ecc.mode.current", "mig.mode.current", "vbios_version",
)  # fmt: skip
USE_FIELDS = (
    "index", "utilization.gpu", "memory.used", "memory.free", "clocks.sm", "clocks.mem", "power.draw",
    "temperature.gpu", "clocks_throttle_reasons.active",
)  # fmt: skip
PCI_DEVICES = "/sys/bus/pci/devices"
NVIDIA = "0x10de"
DISPLAY_CLASSES = ("0x0300", "0x0302")  # VGA and 3D controllers
MIB = 1 << 20
FABRIC_POLL_S = 2.0
FRESH_S = 5.0
"""A reading that is older says nothing about now: nvidia-smi hangs or has died, as it does when a GPU is lost."""
END_LIMIT_S = 2.0


def _number(text: str | None) -> float | None:
    """nvidia-smi writes "[N/A]", "[Not Supported]", "[Insufficient Permissions]" or the like where it has none."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _bytes(text: str | None) -> int | None:
    mib = _number(text)
    return None if mib is None else int(mib * MIB)


def parse_list(text: str, fields: Sequence[str] = LIST_FIELDS) -> list[dict[str, Any]]:
    """The output of `nvidia-smi --query-gpu=... --format=csv,noheader,nounits`, which was asked for these fields."""
    gpus = []
    for line in text.splitlines():
        raw = values_of(line, fields)
        if raw is None:
            continue
        gpus.append(
            {
                "index": int(raw["index"]),
                "name": raw.get("name", ""),
                "uuid": raw.get("uuid", ""),
                "driver_version": raw.get("driver_version", ""),
                "compute_capability": raw.get("compute_cap", ""),
                "memory_total_bytes": _bytes(raw.get("memory.total")),
                "memory_free_bytes": _bytes(raw.get("memory.free")),
                "pcie_gen": _number(raw.get("pcie.link.gen.current")),
                "pcie_width": _number(raw.get("pcie.link.width.current")),
                "power_limit_w": _number(raw.get("power.limit")),
                "ecc": raw.get("ecc.mode.current", ""),
                "mig": raw.get("mig.mode.current", ""),
                "vbios_version": raw.get("vbios_version", ""),
            }
        )
    return gpus


def parse_use(line: str, fields: Sequence[str] = USE_FIELDS) -> dict[str, Any] | None:
    """One line of such a query; None for a line that is none."""
    raw = values_of(line, fields)
    if raw is None:
        return None
    reasons = raw.get("clocks_throttle_reasons.active", "")
    return {
        "index": int(raw["index"]),
        "utilization_pct": _number(raw.get("utilization.gpu")),
        "memory_used_bytes": _bytes(raw.get("memory.used")),
        "memory_free_bytes": _bytes(raw.get("memory.free")),
        "sm_clock_mhz": _number(raw.get("clocks.sm")),
        "memory_clock_mhz": _number(raw.get("clocks.mem")),
        "power_w": _number(raw.get("power.draw")),
        "temperature_c": _number(raw.get("temperature.gpu")),
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
        _, text = ask(["-q"])
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_fabric(text)


def _listed() -> list[dict[str, Any]]:
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        rc, text, fields = query(LIST_FIELDS)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return [{"error": f"nvidia-smi: {exc}"}]
    if rc not in (0, RC_INFOROM):
        return [{"error": text.strip()[-500:]}]
    return parse_list(text, fields)


class GpuStream:
    """One nvidia-smi that prints a line per GPU and second; nothing where there is no nvidia-smi."""

    def __init__(self) -> None:
        self.pipe: OutputPipe | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._fields: tuple[str, ...] = USE_FIELDS
        self._rest = b""
        self._readings: dict[int, tuple[float, dict[str, Any]]] = {}
        if shutil.which("nvidia-smi") is None:
            return
        try:
            _, _, self._fields = query(USE_FIELDS)
        except (OSError, subprocess.TimeoutExpired):
            return
        self._process = start_program(
            ["nvidia-smi", *query_arguments(self._fields), "--loop=1"], stderr=subprocess.DEVNULL
        )
        self.pipe = OutputPipe(self._process.stdout)

    @property
    def latest(self) -> list[dict[str, Any]]:
        """The newest reading of each GPU, without those that are too old to be of now."""
        since_s = time.monotonic() - FRESH_S
        return [reading for _, (at_s, reading) in sorted(self._readings.items()) if at_s >= since_s]

    def read(self) -> None:
        """Take in new lines."""
        if self.pipe is None:
            return
        *lines, self._rest = (self._rest + self.pipe.read()).split(b"\n")
        for line in lines:
            gpu = parse_use(line.decode(errors="replace"), self._fields)
            if gpu is not None:
                self._readings[gpu["index"]] = (time.monotonic(), gpu)

    def memory_used_bytes(self) -> int | None:
        """Of all GPUs, as last read; None without a reading."""
        known = [gpu["memory_used_bytes"] for gpu in self.latest if gpu["memory_used_bytes"] is not None]
        return sum(known) if known else None

    def close(self) -> None:
        """One that hangs in the driver is left behind."""
        if self._process is not None and self.pipe is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_LIMIT_S)
            self.pipe.close()
