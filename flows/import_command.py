"""`tokensweep import sparecores`: results that others have published, beside our own in the lake."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from flows import render
from flows.commands import print_json
from tasks.settings import Settings

app = typer.Typer(help="Take published results into the lake.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add `import` to the application."""
    root.add_typer(app, name="import")


@app.callback()
def _import() -> None:
    """Take published results into the lake."""


@app.command()
def sparecores(
    folder: Annotated[Path, typer.Argument(help="A clone of sc-inspector-data, or the folder of its trace tables.")],
    all_runs: Annotated[
        bool, typer.Option("--all-runs", help="Of trace tables: earlier runs of each server as well, to see drift.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Import the llama-bench results of Spare Cores; source, licence and date stay with every row."""
    from tasks.lake.sparecores import DATA_LICENCE, SOURCE_URL
    from tasks.lake.sparecores_land import import_sparecores
    from tasks.lake_access import lake_address

    began, n_processes = time.monotonic(), len(os.sched_getaffinity(0))
    found = import_sparecores(folder, lake_address(Settings()), n_processes=n_processes, all_runs=all_runs)
    seconds = time.monotonic() - began
    if as_json:
        values = {name: value for name, value in vars(found).items() if name != "unreadable"}
        print_json({**values, "unreadable": dict(found.unreadable), "seconds": round(seconds, 3)})
        return
    for what, n in sorted(found.unreadable.items()):
        render.warn(f"left out, {n:,} × {what}")
    render.out.print(
        f"{found.n_servers} servers, {found.n_runs} runs, {found.n_measured} measured of {found.n_cells} cells, "
        f"{found.n_samples} samples, {seconds:.1f} s\nSource: {SOURCE_URL}, {DATA_LICENCE}"
    )
    render.hint("tokensweep query \"SELECT vendor, count(*) FROM v_latest WHERE source <> 'tokensweep' GROUP BY 1\"")
