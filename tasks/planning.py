"""From a preset to a plan: server types and models looked up, what is done already left out, money counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from tasks.clouds.base import Cloud, ServerType
from tasks.domain.cells import Cell
from tasks.domain.errors import ConfigError, UnsupportedError
from tasks.domain.policies import policy_for
from tasks.domain.run_plan import ModelSpec, RunPlan
from tasks.domain.sweep_plan import Offer, PlannedServer, SweepPlan, plan_server, plan_sweep
from tasks.engine import Engine
from tasks.lake import completed_servers, measured_cells, open_lake
from tasks.models.catalogue import load_catalogue, select_models
from tasks.models.synthesize import random_spec, synthesize
from tasks.presets import Preset
from tasks.wiring import Services

OVERHEAD_S = 300.0  # create, connect, upload and teardown, beside the deadline of the run itself


@dataclass(frozen=True)
class PreparedSweep:
    """A plan with all that is needed to carry it out."""

    preset: Preset
    plan: SweepPlan
    models: tuple[ModelSpec, ...]
    server_types: dict[str, ServerType]

    def to_run(self) -> tuple[PlannedServer, ...]:
        return self.plan.to_run()


def server_types(cloud: Cloud, names: Sequence[str]) -> dict[str, ServerType]:
    """The types by name, or the vendor's defaults. Raises ConfigError for a name that the vendor does not sell."""
    try:
        return {name: cloud.server_type(name) for name in names or cloud.default_server_types()}
    except UnsupportedError as exc:
        raise ConfigError(exc.message, reason=exc.reason, next_step=exc.next_step or "Nothing was started.") from exc


def model_specs(preset: Preset, services: Services) -> tuple[ModelSpec, ...]:
    """The models of the preset, smallest first; files with random weights are made if they are missing."""
    chosen = select_models(load_catalogue(), preset.models)
    if preset.weights == "real":
        specs = [model.real_spec() for model in chosen]
    else:
        folder = services.settings.cache_dir / "models"
        specs = [random_spec(model, synthesize(model, folder), ()) for model in chosen]
    return tuple(sorted(specs, key=lambda m: m.planned_bytes))


def prepare(preset: Preset, services: Services, engine: Engine, *, label: str = "", only: str = "") -> PreparedSweep:
    """Plan the sweep. `only`: a single server type. A second call with the same lake gives the same plan."""
    cloud = services.cloud(preset.vendor)
    types = server_types(cloud, (only,) if only else preset.servers)
    models = model_specs(preset, services)
    sweep_id = preset.sweep_id(f"llama.cpp {engine.llama_cpp_commit}", label)
    done = _done(services, sweep_id, models, preset)
    policy = policy_for(preset.policy, preset.policy_options)
    servers = [
        plan_server(
            _offer(server_type),
            models,
            preset.ladder(),
            n_repeats=policy.n_repeats,
            max_usd=preset.max_usd_per_server,
            deadline_s=preset.deadline_s,
            done=name in done,
            billing_minimum_s=cloud.traits.billing_minimum_s,
            billing_increment_s=cloud.traits.billing_increment_s,
        )
        for name, server_type in types.items()
    ]
    return PreparedSweep(preset, plan_sweep(sweep_id, servers, preset.max_usd), models, types)


def _done(services: Services, sweep_id: str, models: Sequence[ModelSpec], preset: Preset) -> set[str]:
    """Servers that need no further run: one has completed, or interrupted ones have measured every cell between
    them."""
    lake = open_lake(services.settings.lake_root)
    wanted = {Cell(m.name, step.task, step.n_tokens) for m in models for step in preset.ladder()}
    whole = {server for server, cells in measured_cells(lake, sweep_id).items() if wanted <= set(cells)}
    return set(completed_servers(lake, sweep_id)) | whole


def _offer(server_type: ServerType) -> Offer:
    if server_type.currency != "USD":
        raise UnsupportedError(
            f"{server_type.vendor}: {server_type.name} is priced in {server_type.currency}, and no rate is known."
        )
    return Offer(
        vendor=server_type.vendor,
        name=server_type.name,
        vcpus=server_type.vcpus,
        memory_bytes=server_type.memory_bytes,
        disk_bytes=server_type.disk_bytes,
        usd_per_hour=server_type.price_per_hour,
        link_bytes_per_s=server_type.link_bytes_per_s,
    )


def run_plan(
    prepared: PreparedSweep, server: PlannedServer, server_run_id: str, services: Services, urls: dict[str, str]
) -> RunPlan:
    """What the agent on this server is told. `urls`: by model, for files that we serve ourselves."""
    preset = prepared.preset
    specs = tuple(
        ModelSpec(**{**{k: getattr(m, k) for k in m.__dataclass_fields__}, "urls": (urls[m.name],)})
        if m.name in urls
        else m
        for m in prepared.models
    )
    earlier = measured_cells(open_lake(services.settings.lake_root), prepared.plan.sweep_id)
    measured = earlier.get(server.offer.name, {})
    return RunPlan(
        sweep_id=prepared.plan.sweep_id,
        server_run_id=server_run_id,
        server=server.offer.name,
        models=specs,
        ladder=preset.ladder(),
        policy=preset.policy,
        policy_options=dict(preset.policy_options),
        price_usd_per_hour=float(server.offer.usd_per_hour),
        max_usd=float(preset.max_usd_per_server),
        deadline_s=preset.deadline_s,
        guard=preset.guard,
        measured=tuple((cell, tuple(samples)) for cell, samples in sorted(measured.items())),
    )


def usd(value: Decimal) -> str:
    return f"{value:.4f} USD"
