"""`tokensweep export sparecores`: results in the form that another database takes."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import typer

from flows import render
from tasks.settings import Settings

app = typer.Typer(help="Write results in the form of another project.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add `export` to the application."""
    root.add_typer(app, name="export")


@app.callback()
def _export() -> None:
    """Write results in the form of another project."""


@app.command()
def sparecores(
    out: Annotated[Path | None, typer.Option(help="File to write; standard output if left out.")] = None,
    form: Annotated[Literal["jsonl", "json", "csv"], typer.Option("--format", help="Form of the rows.")] = "jsonl",
    layout: Annotated[
        Literal["resource", "server"],
        typer.Option(help="resource: sparecores-crawler 0.10 and newer; server: with server_id and kernel_version."),
    ] = "resource",
    ids: Annotated[
        Path | None, typer.Option(help="CSV vendor,server,server_id for vendors whose ids are not the type's name.")
    ] = None,
    all_sources: Annotated[bool, typer.Option("--all-sources", help="Imported results as well.")] = False,
) -> None:
    """Write the newest measurements as benchmark_score rows of Spare Cores, checked before the first is written."""
    from tasks.analysis.sparecores_export import checked, read_ids, score_rows, untranslated
    from tasks.lake import open_lake
    from tasks.lake_access import lake_address

    with open_lake(lake_address(Settings()), documented=False) as lake:
        rows = score_rows(lake, layout=layout, ids=read_ids(ids) if ids else None, all_sources=all_sources)
    by = checked(rows)
    if out is None:
        _write(rows, form, sys.stdout)
    else:
        with out.open("w", encoding="utf-8", newline="") as file:
            _write(rows, form, file)
    render.err.print(f"{len(rows)} rows{f' in {out}' if out else ''}, checked against {by}")
    if n := untranslated(rows):
        render.warn(f"{n} rows of gcp and hcloud have the name of the server type as their id; --ids translates")
    if not rows:
        whose = "" if all_sources else " of our own; --all-sources takes imported ones as well"
        render.warn(f"only measurements of real weights are scores, and the lake has none{whose}")
        raise typer.Exit(3)


def _write(rows: list[dict[str, Any]], form: str, file: TextIO) -> None:
    if form == "json":
        json.dump(rows, file, indent=1)
        file.write("\n")
    elif form == "jsonl":
        file.writelines(json.dumps(row) + "\n" for row in rows)
    elif rows:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v, sort_keys=True) if isinstance(v, dict) else v for k, v in row.items()})
