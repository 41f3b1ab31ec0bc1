"""From a preset to a plan: server types and models looked up, what is done already left out, money counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from tasks.catalog import Catalog, Classifies
from tasks.clouds.base import ServerType, Traits
from tasks.clouds.hosts import SIMULATED, BringsHosts, Configurable
from tasks.domain.burst import burst_of
from tasks.domain.cells import Cell
from tasks.domain.errors import ConfigError, TokensweepError, UnsupportedError
from tasks.domain.money import Rate, to_usd
from tasks.domain.policies import policy_for
from tasks.domain.run_plan import ModelSpec, RunPlan
from tasks.domain.sweep_plan import Offer, PlannedServer, SweepPlan, plan_server, plan_sweep
from tasks.engine import Engine, engine_for, gpu_model_of, why_no_engine
from tasks.lake import Lake, completed_servers, measured_cells, open_lake
from tasks.lake.earlier import Known, known_cells
from tasks.lake.resume import Measured
from tasks.lake_access import lake_address
from tasks.models.catalogue import load_catalogue, select_models
from tasks.presets import Preset, load_preset
from tasks.wiring import Services

NO_PRICE = "none: "  # how a vendor's module begins the source of a price that it could not find
SYSTEM_DISK_BYTES = 12 * 10**9  # Ubuntu 24.04 with room for its logs, and the runtime
GPU_SYSTEM_DISK_BYTES = SYSTEM_DISK_BYTES + 60 * 10**9
"""Vendors' images with an NVIDIA driver have every CUDA beside it: about 50 GB of Amazon's are taken, of Microsoft's
microsoft-dsvm:ubuntu-hpc:2404 (64 GiB: packer/source.pkr.hcl of https://github.com/Azure/azhpc-images) all but 7."""


@dataclass(frozen=True)
class PreparedSweep:
    """A plan with all that is needed to carry it out. server_types: by "vendor/name", with the wanted places.
    measured: by vendor, what earlier runs of the sweep have measured. known: by vendor and type, what earlier runs of
    any sweep showed of the type or of its twins."""

    preset: Preset
    plan: SweepPlan
    models: tuple[ModelSpec, ...]
    server_types: dict[str, ServerType]
    measured: dict[str, Measured]
    known: Known

    def to_run(self) -> tuple[PlannedServer, ...]:
        return self.plan.to_run()


def server_types(cloud: Catalog, wanted: Sequence[str]) -> dict[str, ServerType]:
    """The types by name, patterns expanded over the catalogue, or the vendor's defaults.

    Raises ConfigError for a name that the vendor does not sell and for a pattern that fits none, and the vendor's own
    refusal (AuthError, RateLimitedError, ...) when it cannot be asked.
    """
    try:
        return _server_types(cloud, wanted)
    except UnsupportedError as exc:
        raise ConfigError(exc.message, reason=exc.reason, next_step=exc.next_step or "Nothing was started.") from exc
    except TokensweepError:
        raise
    except Exception as exc:
        if not isinstance(cloud, Classifies):
            raise
        raise cloud.classify(exc).to_error(f"{cloud.vendor}: its server types cannot be read") from exc


def known_type(cloud: Catalog, name: str) -> ServerType:
    """The type of that name; raises as `server_types` does, and never an error of the SDK's own."""
    return server_types(cloud, (name,))[name]


def _server_types(cloud: Catalog, wanted: Sequence[str]) -> dict[str, ServerType]:
    found: dict[str, ServerType] = {}
    catalog: Sequence[ServerType] = ()
    for entry in wanted or cloud.default_server_types():
        if not _is_pattern(entry):
            found[entry] = cloud.server_type(entry)
            continue
        catalog = catalog or cloud.catalog()
        pattern, n = _pattern_and_count(entry)
        fitting = _spread([kind for kind in catalog if fnmatchcase(kind.name, pattern)], n)
        if not fitting:
            raise ConfigError(
                f"{cloud.vendor}: no server type is named like {entry!r}.",
                next_step=f"For example, there are: {', '.join(kind.name for kind in catalog[:5])}.",
            )
        found |= {kind.name: kind for kind in fitting}
    return found


def _is_pattern(entry: str) -> bool:
    return any(sign in entry for sign in "*?[")


def _pattern_and_count(entry: str) -> tuple[str, int | None]:
    """`c3*:20` is the pattern `c3*` and 20; without a number every type that fits."""
    pattern, colon, n = entry.rpartition(":")
    return (pattern, int(n)) if colon and n.isdigit() else (entry, None)


def _spread(kinds: Sequence[ServerType], n: int | None) -> list[ServerType]:
    """So many of them, evenly over the whole list; all where there are no more."""
    if n is None or n >= len(kinds):
        return list(kinds)
    return [kinds[i * len(kinds) // n] for i in range(n)]


def in_places(kind: ServerType, wanted: Sequence[str]) -> ServerType:
    """The type with only those of its places that are wanted, and the price of the cheapest of them."""
    if not wanted and kind.prices.keys() <= set(kind.places):
        cheapest = min(kind.prices.values(), default=kind.price_per_hour)
        return kind if kind.price_per_hour == cheapest else replace(kind, price_per_hour=cheapest)
    places = tuple(place for place in kind.places if not wanted or any(fnmatchcase(place, w) for w in wanted))
    prices = {place: price for place, price in kind.prices.items() if place in places}
    return replace(kind, places=places, prices=prices, price_per_hour=min(prices.values(), default=kind.price_per_hour))


def model_specs(preset: Preset, services: Services) -> tuple[ModelSpec, ...]:
    """The models of the preset, smallest first; files with random weights are made if they are missing."""
    chosen = select_models(load_catalogue(), preset.models)
    if preset.weights == SIMULATED:
        specs = [model.simulated_spec() for model in chosen]
    elif preset.weights == "real":
        specs = [model.real_spec() for model in chosen]
    else:
        from tasks.models.synthesize import random_spec, synthesize  # with numpy and gguf

        folder = services.settings.cache_dir / "models"
        specs = [random_spec(model, synthesize(model, folder), ()) for model in chosen]
    return tuple(sorted(specs, key=lambda m: m.planned_bytes))


def prepare(
    preset: Preset,
    services: Services,
    engine: Engine,
    *,
    label: str = "",
    only: str = "",
    offline: bool = False,
    lake: Lake | None = None,
) -> PreparedSweep:
    """Plan the sweep. `only`: a single server type. offline: by the catalogue as it was last read here, for which no
    account is needed. lake: one that is open already. A second call with the same lake gives the same plan."""
    wanted = preset.model_copy(update={"servers": (only,)}).wanted() if only else preset.wanted()
    clouds: dict[str, Catalog] = {v: services.offline(v) if offline else services.cloud(v) for v in wanted}
    for cloud in clouds.values():
        _check_fit(cloud, preset)
    models = model_specs(preset, services)
    sweep_id = preset.sweep_id(f"llama.cpp {engine.llama_cpp_commit}", label)
    rates = services.settings.exchange_rates
    types: dict[str, ServerType] = {}
    servers: list[PlannedServer] = []
    earlier: dict[str, Measured] = {}
    done: dict[str, set[str]] = {}
    sold = {vendor: server_types(cloud, wanted[vendor]) for vendor, cloud in clouds.items()}
    with nullcontext(lake) if lake else open_lake(lake_address(services.settings), documented=False) as lake:
        names = [(vendor, name) for vendor, kinds in sold.items() for name in kinds]
        known = known_cells(lake, names, simulated=preset.weights == SIMULATED)
        for vendor in clouds:
            earlier[vendor] = measured_cells(lake, sweep_id, vendor=vendor)
            done[vendor] = _done(lake, sweep_id, models, preset, vendor, earlier[vendor])
    planned, cache_dir = _planner(models, preset, rates), services.settings.cache_dir
    for vendor, cloud in clouds.items():
        for name, offered in sold[vendor].items():
            kind = in_places(offered, preset.places)
            types[f"{vendor}/{name}"] = kind
            servers.append(planned(kind, cloud.traits, _cannot(kind, preset, cache_dir), name in done[vendor]))
    return PreparedSweep(preset, plan_sweep(sweep_id, servers, preset.max_usd), models, types, earlier, known)


def _check_fit(cloud: Catalog, preset: Preset) -> None:
    """Simulated servers measure simulated weights, and no others do; options must be understood."""
    own = cloud.weights if isinstance(cloud, BringsHosts) else ""
    if (own or preset.weights == SIMULATED) and own != preset.weights:
        raise ConfigError(
            f"The preset {preset.name} says weights: {preset.weights}, which servers of {cloud.vendor} do not measure.",
            next_step=f"Write weights: {own or 'real'}." if own else "Write weights: real or random.",
        )
    if cloud.vendor != preset.vendor or not preset.vendor_options:
        return
    if not isinstance(cloud, Configurable):
        raise ConfigError(f"The vendor {cloud.vendor} takes no vendor_options.", next_step="Nothing was started.")
    cloud.check_options(preset.vendor_options)


def prepare_request(
    services: Services, preset_name: str, max_usd: float | None, label: str = "", only: str = ""
) -> tuple[Engine, PreparedSweep]:
    """From the parameters of a flow to a plan: the preset with its cap, the engine that it takes, the sweep."""
    overrides: dict[str, Any] = {} if max_usd is None else {"max_usd": Decimal(str(max_usd))}
    preset = load_preset(preset_name, services.settings.presets, overrides)
    engine = engine_for(preset.weights, services.settings.cache_dir)
    return engine, prepare(preset, services, engine, label=label, only=only)


def configure_vendors(prepared: PreparedSweep, services: Services) -> None:
    """Tell the vendors that take options what the preset says; the others take none."""
    preset = prepared.preset
    for vendor in {kind.vendor for kind in prepared.server_types.values()}:
        cloud = services.cloud(vendor)
        if isinstance(cloud, Configurable):
            cloud.configure(dict(preset.vendor_options) if vendor == preset.vendor else {})


def _cannot(kind: ServerType, preset: Preset, cache_dir: Path) -> str:
    """Why this server type cannot be run at all, or ""."""
    if kind.price_source.startswith(NO_PRICE):
        return f"its price is not known: {kind.price_source.removeprefix(NO_PRICE)}"
    if not kind.places:
        return "it is not sold in any of the wanted places"
    if preset.weights == SIMULATED:
        return ""
    return _no_engine(cache_dir, kind.arch, gpu_model_of(kind))


@cache
def _no_engine(cache_dir: Path, arch: str, gpu_model: str) -> str:
    return why_no_engine(cache_dir, arch, gpu_model)


def _planner(
    models: Sequence[ModelSpec], preset: Preset, rates: Mapping[str, Rate]
) -> Callable[[ServerType, Traits, str, bool], PlannedServer]:
    """What plans a server type: with its vendor's traits, why it cannot be had, and whether it is done already.
    What is the same for all of thousands is worked out once."""
    ladder, today = preset.ladder(), datetime.now(UTC).date()
    n_repeats = policy_for(preset.policy, preset.policy_options).n_repeats
    disks_bytes = {gpu: boot_disk_bytes(models, gpu=gpu) for gpu in (False, True)}

    def planned(kind: ServerType, traits: Traits, cannot: str, done: bool) -> PlannedServer:
        return plan_server(
            _offer(kind, disks_bytes[kind.gpus > 0], rates, today, spot=preset.spot),
            models,
            ladder,
            n_repeats=n_repeats,
            max_usd=preset.max_usd_per_server,
            deadline_s=preset.deadline_s,
            done=done,
            cannot=cannot,
            billing_minimum_s=traits.billing_minimum_s,
            billing_increment_s=traits.billing_increment_s,
        )

    return planned


def _done(
    lake: Lake, sweep_id: str, models: Sequence[ModelSpec], preset: Preset, vendor: str, measured: Measured
) -> set[str]:
    """Servers that need no further run: one has completed, or interrupted ones have measured every cell between
    them."""
    wanted = {Cell(m.name, step.task, step.n_tokens) for m in models for step in preset.ladder()}
    whole = {server for server, cells in measured.items() if wanted <= set(cells)}
    return set(completed_servers(lake, sweep_id, vendor=vendor)) | whole


def _offer(kind: ServerType, disk_bytes: int, rates: Mapping[str, Rate], today: date, *, spot: bool) -> Offer:
    """The highest price of the wanted places, since any of them may be where the server comes to be."""
    price = max((kind.price_in(place, spot=spot) for place in kind.places), default=kind.price_per_hour)
    return Offer(
        vendor=kind.vendor,
        name=kind.name,
        vcpus=kind.vcpus,
        memory_bytes=kind.memory_bytes,
        disk_bytes=kind.disk_bytes or disk_bytes,
        usd_per_hour=to_usd(price, kind.currency, rates, today=today).usd,
        link_bytes_per_s=kind.link_bytes_per_s,
    )


def boot_disk_bytes(models: Sequence[ModelSpec], *, gpu: bool) -> int:
    """Where the disk is chosen at the create: the system, the two largest models (one runs while the next one comes),
    and a tenth to spare, in whole GB."""
    largest = sorted((m.planned_bytes for m in models), reverse=True)[:2]
    system_bytes = GPU_SYSTEM_DISK_BYTES if gpu else SYSTEM_DISK_BYTES
    return math.ceil((system_bytes + sum(largest) * 1.1) / 1e9) * 10**9


def run_plan(prepared: PreparedSweep, server: PlannedServer, server_run_id: str, urls: dict[str, str]) -> RunPlan:
    """What the agent on this server is told. `urls`: by model, for files that we serve ourselves."""
    preset, vendor = prepared.preset, server.offer.vendor
    specs = tuple(
        ModelSpec(**{**{k: getattr(m, k) for k in m.__dataclass_fields__}, "urls": (urls[m.name],)})
        if m.name in urls
        else m
        for m in prepared.models
    )
    measured = prepared.measured.get(vendor, {}).get(server.offer.name, {})
    cells = {Cell(m.name, step.task, step.n_tokens) for m in specs for step in preset.ladder()}
    return RunPlan(
        sweep_id=prepared.plan.sweep_id,
        server_run_id=server_run_id,
        server=server.offer.name,
        models=specs,
        ladder=preset.ladder(),
        policy=preset.policy,
        policy_options=dict(preset.policy_options),
        price_usd_per_hour=float(server.offer.usd_per_hour),
        billing_minimum_s=server.billing_minimum_s,
        billing_increment_s=server.billing_increment_s,
        max_usd=float(preset.max_usd_per_server),
        deadline_s=preset.deadline_s,
        guard=preset.guard,
        variants=preset.wanted_variants(on_credits=burst_of(vendor, server.offer.name) is not None),
        measured=tuple((cell, tuple(samples)) for cell, samples in sorted(measured.items())),
        known=tuple(k for k in prepared.known.get((vendor, server.offer.name), ()) if k.cell in cells),
    )


def usd(value: Decimal) -> str:
    return f"{value:.4f} USD"
