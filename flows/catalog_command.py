"""`tokensweep catalog`: what vendors sell and for how much, read from them or taken from a public dump."""

from __future__ import annotations

from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer

from flows import render
from flows.commands import print_json
from tasks.settings import Settings

app = typer.Typer(help="Server types and prices: read them, import them, list them.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command()
def refresh(
    vendor: Annotated[str, typer.Argument(help="A vendor; all that are set up if left out.")] = "",
    as_json: Json = False,
) -> None:
    """Read server types and prices from the vendors and keep them with their date."""
    from tasks import catalog
    from tasks.wiring import open_services

    services = open_services(Settings())
    clouds = [services.cloud(vendor)] if vendor else services.clouds()
    kept = {cloud.vendor: catalog.refresh(cloud, Path(services.settings.lake_root)) for cloud in clouds}
    if as_json:
        print_json({name: {"file": str(path), "n_types": n_types} for name, (path, n_types) in kept.items()})
        return
    for name, (path, n_types) in kept.items():
        render.out.print(f"{name}: {n_types} server types in {path}")


@app.command("import-sparecores")
def import_sparecores(
    dump: Annotated[Path, typer.Argument(help="A checkout of the public repository SpareCores/sc-data-dumps.")],
    prices: Annotated[Path, typer.Option(help="Parquet or CSV: vendor, server, region, price_usd_hour.")],
    read_on: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="When the prices were read; else the file's date.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take server types over from a dump of the Spare Cores Navigator, so that planning works without any account."""
    from tasks.clouds.traits import TRAITS
    from tasks.sparecores_catalog import import_dump

    when = read_on.replace(tzinfo=UTC) if read_on else None
    done = import_dump(dump, prices, Path(Settings().lake_root), vendors=TRAITS, read_at=when)
    if as_json:
        files = [str(path) for path in done.files]
        print_json({"n_types": done.n_types, "left_out": done.left_out, "skipped": done.skipped, "files": files})
        return
    for vendor, n_types in done.n_types.items():
        render.out.print(f"{vendor}: {n_types} server types")
    for reason, n_types in done.left_out.most_common():
        render.out.print(f"left out, {reason}: {n_types}")
    if done.skipped:
        render.out.print("--json says which, and why.", style="dim")


@app.command("list")
def list_types(
    vendor: Annotated[str, typer.Argument(help="A vendor.")],
    pattern: Annotated[str, typer.Argument(help="Names like this, for example 'm7i.*'.")] = "*",
    as_json: Json = False,
) -> None:
    """List what was read of a vendor, cheapest first. Asks no network."""
    import polars as pl

    from tasks.clouds.traits import TRAITS
    from tasks.domain.errors import ConfigError
    from tasks.lake.server_types import newest_reading

    if vendor not in TRAITS:
        raise ConfigError(f"There is no vendor {vendor!r}.", next_step=f"Known: {', '.join(sorted(TRAITS))}.")
    frame = newest_reading(Path(Settings().lake_root), vendor)
    if frame is None:
        raise ConfigError(
            f"{vendor}: its server types were never read here.",
            next_step=f"tokensweep catalog refresh {vendor}, or tokensweep catalog import-sparecores.",
        )
    fitting = [name for name in frame["name"].unique() if fnmatchcase(name, pattern)]
    chosen = frame.filter(pl.col("name").is_in(fitting)).sort("price_per_hour", "name", "place")
    if as_json:
        print_json(chosen.to_dicts())
    else:
        columns = ("name", "place", "vcpus", "memory_bytes", "arch", "gpus", "gpu_model", "price_per_hour", "currency")
        render.frame(chosen.select(columns))
