"""The hardware fingerprint: everything that may explain a number, read from /proc and /sys."""

from __future__ import annotations

import glob
import os
import platform
from pathlib import Path
from typing import Any

from agent.limits import cgroup_cpus, cgroup_memory_limit_bytes, meminfo, oom_kills, read_int, read_text, usable
from agent.part_file import boot_id, free_bytes

# Implementer and part of 64-bit ARM server cores, as the kernel's cputype.h has them.
ARM_CORES = {
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd84"): "Neoverse-V3",
    ("0x41", "0xd8e"): "Neoverse-N3",
    ("0xc0", "0xac3"): "Ampere-1",
    ("0xc0", "0xac4"): "Ampere-1A",
}
DMI_KEYS = ("sys_vendor", "product_name", "product_version", "board_vendor", "bios_vendor", "bios_version",
            "chassis_asset_tag")  # fmt: skip
CPU = "/sys/devices/system/cpu"


def cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo."""
    values: dict[str, str] = {}
    for line in read_text("/proc/cpuinfo").splitlines():
        name, colon, value = line.partition(":")
        if not colon:
            if values:
                break
            continue
        values[name.strip()] = value.strip()
    return values


def cpu_flags() -> frozenset[str]:
    """Instruction set extensions as /proc/cpuinfo names them (`flags` on x86, `Features` on ARM)."""
    info = cpuinfo()
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def _cpu() -> dict[str, Any]:
    info = cpuinfo()
    core = (info.get("CPU implementer", ""), info.get("CPU part", ""))
    here = usable()
    cpus = sorted(int(p.rsplit("cpu", 1)[1]) for p in glob.glob(f"{CPU}/cpu[0-9]*"))
    cores = {(read_text(f"{CPU}/cpu{n}/topology/physical_package_id"), read_text(f"{CPU}/cpu{n}/topology/core_id"))
             for n in cpus}  # fmt: skip
    return {
        "model_name": info.get("model name") or ARM_CORES.get(core, " ".join(core).strip()),
        "vendor": info.get("vendor_id") or info.get("CPU implementer", ""),
        "family": info.get("cpu family", ""),
        "model": info.get("model") or info.get("CPU part", ""),
        "stepping": info.get("stepping") or info.get("CPU revision", ""),
        "microcode": info.get("microcode", ""),
        "flags": sorted(cpu_flags()),
        "mhz": float(info["cpu MHz"]) if info.get("cpu MHz") else None,
        "max_mhz": (read_int(f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq") or 0) / 1000.0 or None,
        "governor": read_text(f"{CPU}/cpu0/cpufreq/scaling_governor"),
        "n_threads": len(cpus) or os.cpu_count(),
        "n_cores": len(cores) or None,
        "n_sockets": len({package for package, _ in cores}) or None,
        "n_numa_nodes": len(glob.glob("/sys/devices/system/node/node[0-9]*")) or 1,
        "threads_per_core": len(cpus) // len(cores) if cores else None,
        "l3_bytes": _l3_bytes(cpus),
        "allowed_cpus": list(here.cpu_ids),
        "n_usable_cpus": here.n_cpus,
        "cgroup_cpus": cgroup_cpus(),
    }


def _l3_bytes(cpus: list[int]) -> int | None:
    """All third-level caches together; each is shared by a list of CPUs and counted once."""
    caches: dict[str, int] = {}
    for n in cpus:
        for folder in glob.glob(f"{CPU}/cpu{n}/cache/index*"):
            size = read_text(f"{folder}/size")
            if read_text(f"{folder}/level") == "3" and size[-1:] in "KM" and size[:-1].isdigit():
                caches[read_text(f"{folder}/shared_cpu_list")] = int(size[:-1]) * (1024 if size[-1] == "K" else 1 << 20)
    return sum(caches.values()) or None


def _memory() -> dict[str, Any]:
    info = meminfo()
    here = usable()
    return {
        "total_bytes": info.get("MemTotal", 0),
        "swap_bytes": info.get("SwapTotal", 0),
        "effective_bytes": here.memory_total_bytes,
        "limited_by": here.memory_limited_by,
        "available_bytes": here.memory_available_bytes,
        "cgroup_limit_bytes": cgroup_memory_limit_bytes(),
        "transparent_hugepages": read_text("/sys/kernel/mm/transparent_hugepage/enabled"),
        "oom_kills": oom_kills(),
    }


def _virtualization() -> dict[str, Any]:
    dmi = {key: read_text(f"/sys/class/dmi/id/{key}").strip() for key in DMI_KEYS}
    return {
        "hypervisor": "hypervisor" in cpu_flags() or bool(read_text("/sys/hypervisor/type")),
        "hypervisor_type": read_text("/sys/hypervisor/type"),
        "container": os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"),
        "dmi": {key: value for key, value in dmi.items() if value},
    }


def _system() -> dict[str, Any]:
    release = dict(
        line.split("=", 1) for line in read_text("/etc/os-release").splitlines() if "=" in line and line[0] != "#"
    )
    libc_name, libc_version = platform.libc_ver()
    return {
        "os": release.get("PRETTY_NAME", "").strip('"'),
        "kernel": platform.release(),
        "arch": platform.machine(),
        "libc": f"{libc_name} {libc_version}".strip(),
        "python": platform.python_version(),
        "hostname": platform.node(),
        "boot_id": boot_id(),
        "boot_unix_s": boot_unix_s(),
        "uptime_s": float(read_text("/proc/uptime").split()[0]),
    }


def boot_unix_s() -> int | None:
    for line in read_text("/proc/stat").splitlines():
        if line.startswith("btime "):
            return int(line.split()[1])
    return None


def fingerprint(folder: Path) -> dict[str, Any]:
    """Hardware and system as one JSON-ready value; `folder` says whose disk is meant."""
    from agent.gpu import gpus_on_bus, list_gpus

    stat = os.statvfs(folder)
    return {
        "cpu": _cpu(),
        "memory": _memory(),
        "disk": {"total_bytes": stat.f_blocks * stat.f_frsize, "free_bytes": free_bytes(folder)},
        "gpus": list_gpus(),
        "gpus_on_bus": gpus_on_bus(),
        "virtualization": _virtualization(),
        "system": _system(),
    }
