"""The orders of a sweep's server runs, and the models that their servers download."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from urllib.parse import quote

from flows.server import ServerOrder
from tasks.domain.errors import ConfigError
from tasks.domain.sweep_plan import PlannedServer
from tasks.models.serve import ModelServer
from tasks.planning import PreparedSweep, run_plan
from tasks.wiring import Services

# In a larger sweep a server run is one bar in Prefect's timeline. Its steps would be ten task runs beside it, and
# storing them most of the work of the whole sweep: they are in the log and in the lake all the same.
MOST_WITH_BARS = 50


def server_order(
    prepared: PreparedSweep, planned: PlannedServer, services: Services, urls: dict[str, str]
) -> ServerOrder:
    sweep_id, name = prepared.plan.sweep_id, planned.offer.name
    kind = prepared.server_types[key(planned)]
    # Random, not counted: a lost ledger must not make a new run overwrite the rows of an old one.
    server_run_id = f"{sweep_id}.{name}.{uuid.uuid4().hex[:8]}"
    return ServerOrder(
        vendor=planned.offer.vendor,
        server=name,
        server_run_id=server_run_id,
        sweep_id=sweep_id,
        max_usd_sweep=float(prepared.plan.max_usd),
        plan=run_plan(prepared, planned, server_run_id, urls).to_json(),
        places=kind.places,
        disk_bytes=0 if kind.disk_bytes else planned.offer.disk_bytes,
        spot=prepared.preset.spot,
        bars=len(prepared.plan.servers) <= MOST_WITH_BARS,
    )


def key(planned: PlannedServer) -> str:
    return f"{planned.offer.vendor}/{planned.offer.name}"


def serve_models(prepared: PreparedSweep, services: Services, stack: ExitStack) -> dict[str, dict[str, str]]:
    """URL of each model by "vendor/server type", where it is not the one of the catalogue: on a mirror of the user's
    own, or, for local servers, on this machine. Raises ConfigError when a server has no way to made-up files."""
    base = services.settings.models_url.rstrip("/")
    if base:
        mirror = {m.name: f"{base}/{quote(m.file)}" for m in prepared.models}
        return dict.fromkeys(prepared.server_types, mirror)
    if prepared.preset.weights != "random":
        return {}
    far = sorted({kind.vendor for kind in prepared.server_types.values()} - {"local"})
    if far:
        raise ConfigError(
            f"Servers of {', '.join(far)} cannot reach the files with random weights, which lie on this machine.",
            next_step="Use weights: real, or serve them and set TOKENSWEEP_MODELS_URL.",
        )
    local = services.local()
    # A micro-VM's link is shaped by the kernel; a loopback server has none, so the file server shapes it.
    shaped_here = local.isolation == "loopback"
    links = {k.name: k.link_bytes_per_s for k in prepared.server_types.values()} if shaped_here else {}
    folder = services.settings.cache_dir / "models"
    files = stack.enter_context(ModelServer(folder, local.model_host(), links=links))
    stack.callback(local.close)
    return {
        key: {m.name: files.url(m.file, link=kind.name if kind.name in links else None) for m in prepared.models}
        for key, kind in prepared.server_types.items()
    }
