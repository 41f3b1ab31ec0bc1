"""`tokensweep report`: the lake as one HTML file that opens from disk, anywhere, for years."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from flows import render
from tasks.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(report)


def report(
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("report.html"),
    sweep: Annotated[str, typer.Option("--sweep", help="Only this sweep; the whole lake if left out.")] = "",
    title: Annotated[str, typer.Option(help="Title of the page.")] = "tokensweep",
) -> None:
    """Write the report: best servers for a speed, Pareto chart, coverage, curves, comparison, cost and proof."""
    from tasks.analysis.report import write_report
    from tasks.lake import open_lake
    from tasks.lake_access import lake_address

    began = time.monotonic()
    with open_lake(lake_address(Settings()), documented=False) as lake:
        for problem in lake.problems:
            render.warn(f"skipped {problem}")
        made = write_report(lake, out, sweep_id=sweep, title=title)
    seconds = time.monotonic() - began
    render.out.print(
        f"{out}: {made.n_cells} cells of {made.n_servers} servers, {made.n_bytes / 1e6:.1f} MB, {seconds:.1f} s"
    )
    render.hint(f"open it in a browser: {out.resolve().as_uri()}")
