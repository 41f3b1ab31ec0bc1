"""`tokensweep doctor`: what a sweep needs, checked without creating anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

from tasks.clouds.base import Examinable
from tasks.domain.errors import TokensweepError
from tasks.settings import Settings
from tasks.wiring import Services, open_services

MIN_DISK_FREE_BYTES = 3 * 2**30


@dataclass(frozen=True)
class Check:
    """ok None: it could not be told, which is no failure."""

    name: str
    ok: bool | None
    detail: str
    next_step: str = ""


def checks(settings: Settings) -> list[Check]:
    """Every check of this machine, then those of every vendor that is set up, all at once. Each says what was found
    and, when it failed, what to do."""
    here = [_guarded(name, run, settings) for name, run in CHECKS.items()]
    services = open_services(settings)
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda vendor: _vendor(vendor, services), services.accounts())
    return [*here, *chain.from_iterable(found)]


def _vendor(vendor: str, services: Services) -> list[Check]:
    """Identity, permissions, quotas, images and reachability, as the vendor's module looks at them."""
    try:
        cloud = services.cloud(vendor)
        if not isinstance(cloud, Examinable):
            return []
        found = cloud.doctor()
    except Exception as exc:  # a broken account must not hide what the others say
        return [Check(vendor, False, f"{type(exc).__name__}: {exc}", f"See docs/vendors/{vendor}.md.")]
    return [Check(f"{vendor} {check.name}", check.ok, check.detail, check.next_step) for check in found]


def _guarded(name: str, run: Callable[[Settings], Check], settings: Settings) -> Check:
    try:
        return run(settings)
    except TokensweepError as exc:
        return Check(name, False, exc.message, exc.next_step)
    except OSError as exc:
        return Check(name, False, f"{exc.strerror}: {exc.filename}", "Mend the path or set TOKENSWEEP_HOME.")


def _toolchain(settings: Settings) -> Check:
    found = [tool for tool in ("c++", "g++", "clang++") if shutil.which(tool)]
    detail = shutil.which(found[0]) if found else "no C++ compiler"
    return Check("C++ compiler", bool(found), str(detail), "Install g++ (Debian: apt-get install g++).")


def _runtime(settings: Settings) -> Check:
    folder = settings.cache_dir / "runtime"
    ready = sorted(p.parent.name for p in folder.glob("*/manifest.json"))
    detail = f"{', '.join(ready)} in {folder}" if ready else f"not built yet; the first sweep builds it in {folder}"
    return Check("llama.cpp runtime", True, detail)


def _ledger(settings: Settings) -> Check:
    runs = open_services(settings).ledger.server_runs()
    return Check("ledger", True, f"{settings.ledger}, {len(runs)} server runs")


def _lake(settings: Settings) -> Check:
    from tasks.lake import open_lake
    from tasks.lake_access import lake_address

    lake = open_lake(lake_address(settings), documented=False)
    detail = f"{settings.lake_root}, {len(lake.problems)} files skipped"
    return Check("lake", not lake.problems, detail, "; ".join(str(p) for p in lake.problems[:3]))


def _local(settings: Settings) -> Check:
    local = open_services(settings).local()
    names = ", ".join(local.default_server_types())
    return Check("vendor local", True, f"{local.isolation} ({local.isolation_reason}); server types {names}")


def _disk(settings: Settings) -> Check:
    settings.home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(settings.home).free
    detail = f"{free / 2**30:.1f} GiB free at {settings.home}"
    return Check("disk", free >= MIN_DISK_FREE_BYTES, detail, "A local sweep needs 3 GiB.")


def _load(settings: Settings) -> Check:
    load, cpus = os.getloadavg()[0], len(os.sched_getaffinity(0))
    detail = f"load {load:.1f} on {cpus} CPUs"
    return Check("idle machine", load < 0.5 * cpus, detail, "Numbers measured beside other work are too low.")


def _heartbeat(settings: Settings) -> Check:
    import time

    beat = open_services(settings).ledger.last_beat("local")
    detail = "never" if beat is None else f"{time.time() - beat:.0f} s ago"
    return Check("reaper's last pass", True, f"{detail}; a sweep makes one before it creates anything")


CHECKS: dict[str, Callable[[Settings], Check]] = {
    "C++ compiler": _toolchain,
    "llama.cpp runtime": _runtime,
    "ledger": _ledger,
    "lake": _lake,
    "vendor local": _local,
    "disk": _disk,
    "idle machine": _load,
    "reaper's last pass": _heartbeat,
}
