"""`tokensweep plan --max-usd`: what a budget would measure, and what it would only predict."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from flows import render
from flows.commands import print_json
from tasks.domain.choose import Choice, Selection, select
from tasks.domain.sweep_plan import PlannedServer
from tasks.domain.twins import Machine
from tasks.settings import Settings
from tasks.wiring import open_services

_HARDWARE = """
SELECT h.vendor, h.server, h.cpu_model, h.n_cores, h.gpu_model, h.n_gpus
FROM hardware AS h
JOIN server_runs AS r USING (sweep_id, server_run_id)
QUALIFY row_number() OVER (PARTITION BY h.vendor, h.server ORDER BY r.started_at DESC) = 1
"""
MEASURED = "measured already"


def show_choice(
    settings: Settings, preset_name: str, server: str, label: str, max_usd: float, as_json: bool, *, offline: bool
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
    plan = prepare(preset, services, engine, label=label, only=server, offline=offline).plan
    with open_lake(lake_address(settings), documented=False) as lake:
        seen = {(r["vendor"], r["server"]): r for r in query(lake, _HARDWARE).to_dicts()}
    wanted = [p for p in plan.servers if p.run or p.over_budget or p.why == MEASURED]
    costs = {f"{p.offer.vendor}/{p.offer.name}": float(p.low_usd + p.high_usd) / 2 for p in wanted}
    fresh = frozenset(f"{p.offer.vendor}/{p.offer.name}" for p in wanted if p.why == MEASURED)
    machines = [_machine(p, seen.get((p.offer.vendor, p.offer.name), {})) for p in wanted]
    found = select(machines, lambda m: costs[m.name], max_usd, fresh=fresh)
    if as_json:
        print_json(_as_json(found, max_usd))
    else:
        _show(found, max_usd, n_unknown=sum(not m.cpu_model for m in machines))


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
    )


def _what(choice: Choice) -> str:
    if choice.measure:
        return "measure"
    if choice.why == MEASURED:
        return "known"
    return "predict" if choice.from_ else "leave out"


def _as_json(found: Selection, max_usd: float) -> dict[str, Any]:
    return {
        "max_usd": max_usd,
        "usd": found.usd,
        "expected_error": found.expected_error,
        "servers": [
            {
                "server": c.machine.name,
                "what": _what(c),
                "usd": c.usd,
                "from": c.from_.name if c.from_ else None,
                "cpu_model": c.machine.cpu_model or None,
                "why": c.why or None,
            }
            for c in found.choices
        ],
    }


def _show(found: Selection, max_usd: float, n_unknown: int) -> None:
    table = Table(title=f"What {max_usd:,.2f} USD measure", title_justify="left")
    for name in ("server", "what", "USD", "from", "CPU"):
        table.add_column(name, justify="right" if name == "USD" else "left")
    for choice in found.choices:
        source = choice.from_.name if choice.from_ and choice.from_ is not choice.machine else choice.why
        usd = f"{choice.usd:.4f}" if choice.measure else ""
        table.add_row(choice.machine.name, _what(choice), usd, source, choice.machine.cpu_model)
    render.out.print(table)
    error = f"; median error of the predicted ±{found.expected_error:.0%}" if found.predicted else ""
    render.out.print(
        f"{len(found.measured)} measured for about {found.usd:,.2f} USD, {len(found.predicted)} predicted, "
        f"{len(found.known)} known already, {len(found.unreached)} left out{error}."
    )
    if n_unknown:
        render.hint(
            f"tokensweep import sparecores DIR  # {n_unknown} server types have no twin: their CPU is not known"
        )
