"""`tokensweep plan --max-usd`: what a budget would measure, and what it would only predict."""

from __future__ import annotations

from typing import Any

from flows import plan_tables, render
from flows.commands import print_json
from tasks.domain.choose import Selection, select
from tasks.domain.sweep_plan import PlannedServer
from tasks.domain.twins import Machine
from tasks.settings import Settings
from tasks.wiring import open_services

_HARDWARE = """
SELECT h.vendor, h.server, h.cpu_model, h.n_cores, h.l3_bytes, h.gpu_model, h.n_gpus, h.vram_total_bytes
FROM hardware AS h
JOIN server_runs AS r USING (sweep_id, server_run_id)
QUALIFY row_number() OVER (PARTITION BY h.vendor, h.server ORDER BY r.started_at DESC) = 1
"""
MEASURED = "measured already"


def show_choice(
    settings: Settings,
    preset_name: str,
    server: str,
    label: str,
    max_usd: float,
    as_json: bool,
    *,
    offline: bool,
    every: bool,
) -> None:
    """Twins are known by the CPU that the lake has seen in a server type, in our runs or imported ones."""
    from tasks.engine import engine_for
    from tasks.lake import open_lake, query
    from tasks.lake_access import lake_address
    from tasks.planning import prepare
    from tasks.presets import load_preset

    services = open_services(settings)
    preset = load_preset(preset_name, settings.presets)
    engine = engine_for(preset.weights, settings.cache_dir)
    with open_lake(lake_address(settings), documented=False) as lake:
        plan = prepare(preset, services, engine, label=label, only=server, offline=offline, lake=lake).plan
        seen = {(r["vendor"], r["server"]): r for r in query(lake, _HARDWARE).to_dicts()}
    wanted = [p for p in plan.servers if p.run or p.over_budget or p.why == MEASURED]
    skipped = [p for p in plan.servers if not (p.run or p.over_budget or p.why == MEASURED)]
    costs = {f"{p.offer.vendor}/{p.offer.name}": float(p.low_usd + p.high_usd) / 2 for p in wanted}
    fresh = frozenset(f"{p.offer.vendor}/{p.offer.name}" for p in wanted if p.why == MEASURED)
    machines = [_machine(p, seen.get((p.offer.vendor, p.offer.name), {})) for p in wanted]
    found = select(machines, lambda m: costs[m.name], max_usd, fresh=fresh)
    if as_json:
        print_json(_as_json(found, skipped, max_usd))
        return
    prices = {f"{p.offer.vendor}/{p.offer.name}": p.offer.usd_per_hour for p in wanted}
    plan_tables.choice(found, prices, skipped, max_usd, every=every)
    if n_unknown := sum(not m.cpu_model for m in machines):
        render.hint(
            f"tokensweep import sparecores DIR   # the CPU of {n_unknown:,} server types is not known: no twins"
        )


def _machine(planned: PlannedServer, seen: dict[str, Any]) -> Machine:
    offer = planned.offer
    return Machine(
        vendor=offer.vendor,
        server=offer.name,
        cpu_model=seen.get("cpu_model") or "",
        n_cpus=offer.vcpus,
        n_threads=seen.get("n_cores") or offer.vcpus,
        gpu_model=seen.get("gpu_model") or "",
        gpu_count=seen.get("n_gpus") or 0,
        memory_bytes=offer.memory_bytes,
        usd_per_hour=float(offer.usd_per_hour),
        l3_bytes=seen.get("l3_bytes") or 0,
        vram_bytes=seen.get("vram_total_bytes") or 0,
    )


def _as_json(found: Selection, skipped: list[PlannedServer], max_usd: float) -> dict[str, Any]:
    return {
        "max_usd": max_usd,
        "usd": found.usd,
        "expected_error": found.expected_error,
        "servers": [
            {
                "server": c.machine.name,
                "what": plan_tables.what(c),
                "usd": c.usd,
                "from": c.from_.name if c.from_ else None,
                "cpu_model": c.machine.cpu_model or None,
                "why": c.why or None,
            }
            for c in found.choices
        ],
        "skipped": [{"server": f"{p.offer.vendor}/{p.offer.name}", "why": p.why} for p in skipped],
    }
