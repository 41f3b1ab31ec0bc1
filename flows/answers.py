"""`tokensweep best | compare | coverage | compact`: the questions that a sweep is run for, each one command.

Exit codes as everywhere: 0 answered, 2 wrong question, 3 nothing meets it.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from flows import render
from tasks.settings import Settings

EXIT_NOTHING = 3

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Vendor = Annotated[str, typer.Option(help="Only this vendor.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (best, compare, coverage, compact):
        app.command()(command)


def best(
    model: Annotated[str, typer.Option(help="Name of the model.")],
    min_tps: Annotated[float, typer.Option(help="Least speed, tokens per second.")] = 0.0,
    phase: Annotated[Literal["pp", "tg"], typer.Option(help="Prompt processing or text generation.")] = "tg",
    tokens: Annotated[int, typer.Option(help="Length of the prompt or of the generated text.")] = 128,
    vendor: Vendor = "",
    at: Annotated[str, typer.Option(help="Take the prices of this day, e.g. 2026-11-01.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Rows of the table; --json and --csv give all.")] = 20,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Show the cheapest servers that run a model at a speed."""
    from flows import answer_tables
    from tasks.analysis.questions import best_servers, nearest_miss

    with _lake() as lake:
        rows = best_servers(lake, model, phase, tokens, min_tps, vendor=vendor, at=at)
        n_unpriced = len(best_servers(lake, model, phase, tokens, min_tps, vendor=vendor)) - len(rows) if at else 0
        fastest = None if rows else nearest_miss(lake, model, phase, tokens, vendor)
    if n_unpriced:
        render.warn(f"{n_unpriced:,} servers reach it of which no price was read by {at}: they are left out")
    if not _printed(rows, as_json, as_csv) and (rows or not n_unpriced):
        answer_tables.best(rows[:limit], f"{model} {phase}{tokens}, at least {min_tps:g} tokens/s", len(rows), fastest)
        if len(rows) > 1:
            a, b = (f"{r['vendor']}/{r['server']}" for r in rows[:2])
            render.hint(f"tokensweep compare {a} {b}")
    if not rows:
        raise typer.Exit(EXIT_NOTHING)


def compare(
    servers: Annotated[
        list[str], typer.Argument(help="Two or more, as SERVER or VENDOR/SERVER; the first is the base.")
    ],
    model: Annotated[str, typer.Option(help="Only this model.")] = "",
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Compare servers cell by cell: mean and spread, the ratio to the first, and what is only noise."""
    from flows import answer_tables
    from flows.commands import print_json
    from tasks.analysis.questions import compare_servers

    with _lake() as lake:
        found = compare_servers(lake, servers, model)
    if as_json:
        print_json(vars(found))
    elif as_csv:
        _printed([_flat(cell, name) for cell in found.cells for name in cell["servers"]], False, True)
    else:
        answer_tables.comparison(found)
        render.hint("tokensweep report --out report.html")
    if not found.cells:
        raise typer.Exit(EXIT_NOTHING)


def coverage(
    sweep: Annotated[str, typer.Option("--sweep", help="A sweep's id; the newest one if left out.")] = "",
    vendor: Vendor = "",
    limit: Annotated[int, typer.Option(min=1, help="Servers of the table; --json and --csv give all.")] = 40,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Show what a sweep measured on which server, and why the rest is missing."""
    from flows import answer_tables
    from tasks.analysis.questions import coverage_rows, has_decisions

    with _lake() as lake:
        rows = coverage_rows(lake, sweep_id=sweep, vendor=vendor)
        missing = next((r for r in rows if r["main_reason"]), None)
        explained = missing is not None and has_decisions(lake, missing["sweep_id"], missing["server"])
    if not _printed(rows, as_json, as_csv):
        answer_tables.coverage(rows, limit)
        if missing and explained:
            render.hint(f"tokensweep explain {missing['vendor']}/{missing['server']} --model {missing['model']}")
        elif not rows:
            render.hint("tokensweep run")
    if not rows:
        raise typer.Exit(EXIT_NOTHING)


def compact(
    min_files: Annotated[int, typer.Option(help="Leave sweeps with fewer files of their own alone.")] = 8,
    as_json: Json = False,
) -> None:
    """Put the many files of finished sweeps together, so that questions stay quick. Changes no answer."""
    from flows.commands import print_json
    from tasks.lake import compact as compact_lake
    from tasks.lake_access import lake_address

    done = compact_lake(lake_address(Settings()), min_files=min_files)
    if as_json:
        print_json([{"sweep_id": c.sweep_id, "n_runs": c.n_runs, "removed": len(c.removed)} for c in done])
        return
    for one in done:
        render.out.print(f"{one.sweep_id}: {one.n_runs} runs, {len(one.removed)} files became {len(one.written)}")
    if not done:
        render.out.print("Nothing to do.")


def _lake() -> Any:
    """The lake, with a warning for each file of it that was left out."""
    from tasks.lake import open_lake
    from tasks.lake_access import lake_address

    lake = open_lake(lake_address(Settings()), documented=False)
    for problem in lake.problems:
        render.warn(f"skipped {problem}")
    return lake


def _printed(rows: Sequence[dict[str, Any]], as_json: bool, as_csv: bool) -> bool:
    """Print the rows for programs, if that is asked for."""
    from flows.commands import print_json

    if as_json:
        print_json(rows)
    elif as_csv and rows:
        writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return as_json or as_csv


def _flat(cell: dict[str, Any], name: str) -> dict[str, Any]:
    keys = ("model", "weights", "task", "n_tokens")
    return {**{key: cell[key] for key in keys}, "server": name, **cell["servers"][name]}
