"""`tokensweep`: the commands. Data goes to stdout, progress and hints to stderr; every read has --json.

Exit codes: 0 ok, 1 bug, 2 wrong usage or configuration, 3 nothing to do, 4 some servers failed, 5 over budget,
6 something is left behind.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Literal, NoReturn

import typer
from pydantic import ValidationError

from flows import (
    answers,
    catalog_command,
    choose_command,
    commands,
    export_command,
    import_command,
    prefect_setup,
    replay_command,
    report_command,
    what_if_command,
    worker,
)
from tasks.domain.errors import ConfigError, TokensweepError
from tasks.settings import Settings

EXIT_NOTHING_TO_DO = 3
EXIT_SOME_FAILED = 4
EXIT_LEAKS = 6
WRITTEN_AS: dict[str, Callable[[str], str]] = {
    "Settings": lambda field: f"TOKENSWEEP_{field.upper()}",
    "SweepRequest": lambda field: f"--{field.replace('_', '-')}",
}
"""How people name the fields of what is checked by Pydantic."""

app = typer.Typer(
    name="tokensweep",
    help="Measure how fast servers run LLMs, for as little money as it can be done, and never leave one behind.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(catalog_command.app, name="catalog")

Preset = Annotated[str, typer.Argument(help="A preset of deployments/presets, or the path of a YAML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Label = Annotated[str, typer.Option(help="Measure again under a new label.")]
Server = Annotated[str, typer.Option(help="Only this server type.")]
Sweep = Annotated[str, typer.Option("--sweep", help="Only the sweep of this id; all of them if left out.")]


@app.command()
def plan(
    preset: Preset = "local",
    server: Server = "",
    label: Label = "",
    offline: Annotated[bool, typer.Option("--offline", help="By the catalogue as it was last read here.")] = False,
    max_usd: Annotated[
        float | None, typer.Option(min=0.0, help="What this much would measure, and what only predict.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List every server type, and why each is not run.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a sweep would do and what it may cost. Creates nothing."""
    if max_usd is not None:
        choose_command.show_choice(Settings(), preset, server, label, max_usd, as_json, offline=offline, every=every)
        return
    commands.show_plan(Settings(), preset, server, label, as_json, offline=offline, every=every)


@app.command()
def run(
    preset: Preset = "local",
    max_usd: Annotated[float | None, typer.Option(help="Money cap; the preset's own if left out.")] = None,
    server: Server = "",
    label: Label = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask after the plan.")] = False,
    fan_out: Annotated[
        Literal["auto", "inline", "workers"],
        typer.Option(help="Carry it out in this process, or on the workers of a Prefect server."),
    ] = "auto",
    as_json: Json = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the flow's log.")] = False,
) -> None:
    """Run a sweep here, or take up where it stopped."""
    settings = Settings()
    prefect_setup.prepare(settings.home, verbose=verbose)
    raise typer.Exit(commands.run_sweep(settings, preset, max_usd, server, label, yes, as_json, fan_out))


@app.command()
def status(
    sweep: Sweep = "",
    watch: Annotated[float, typer.Option(min=0.0, help="Show it anew every so many seconds, until Ctrl-C.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Show how far the sweeps are: server runs, servers that live, money spent and reserved."""
    commands.show_status(Settings(), sweep, as_json, watch)


@app.command()
def metrics(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Serve them on this port until Ctrl-C; else print them once.")
    ] = 0,
    address: Annotated[
        str, typer.Option(help="Where they are served; 0.0.0.0 for a Prometheus on another machine or in a container.")
    ] = "127.0.0.1",
) -> None:
    """Figures for dashboards, as Prometheus reads them: servers, money, the reaper's last pass."""
    commands.show_metrics(Settings(), port, address)


@app.command()
def explain(
    server: Annotated[str, typer.Argument(help="A server type.")],
    model: Annotated[str, typer.Option(help="Only this model.")] = "",
    cell: Annotated[str, typer.Option(help="Only this cell and what led to it, e.g. 'llama-7b tg512'.")] = "",
    sweep: Sweep = "",
    as_json: Json = False,
) -> None:
    """Show every decision about a server's cells, with its evidence."""
    commands.show_decisions(Settings(), server, model, sweep, as_json, cell=cell)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="SQL for DuckDB, over the views of the lake.")] = "",
    list_views: Annotated[bool, typer.Option("--list", help="List the views and macros.")] = False,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Ask the lake."""
    commands.show_query(Settings(), sql, list_views, as_json, as_csv)


@app.command()
def reap(
    dry_run: Annotated[bool, typer.Option(help="Decide, but delete nothing.")] = False,
    force: Annotated[bool, typer.Option(help="Go on where the brake on mass deletion holds.")] = False,
    as_json: Json = False,
) -> None:
    """Delete what nobody may use any more, prove it, and save what a dead controller had measured."""
    settings = Settings()
    prefect_setup.prepare(settings.home, patient=False)
    raise typer.Exit(commands.reap(settings, dry_run, force, as_json))


@app.command()
def leaks(as_json: Json = False) -> None:
    """List what is left behind in all vendors, with age and price. Exit code 6 if there is anything."""
    settings = Settings()
    prefect_setup.prepare(settings.home, patient=False)
    raise typer.Exit(commands.show_leaks(settings, as_json))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check what a sweep needs here. Creates nothing."""
    settings = Settings()
    prefect_setup.prepare(settings.home)
    raise typer.Exit(commands.doctor(settings, as_json))


@app.command()
def automations(
    notify: Annotated[str, typer.Option(help="Notification block, as type/name: slack-webhook/ops.")] = "",
    as_json: Json = False,
) -> None:
    """Put our automations on the Prefect server of PREFECT_API_URL: a crash starts the reaper, leaks are told."""
    commands.apply_automations(notify, as_json)


@app.command()
def limits(as_json: Json = False) -> None:
    """Put limits per vendor, shared by all workers, on the Prefect server of PREFECT_API_URL. Those there stay."""
    commands.apply_limits(as_json)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the Prefect server.")] = 4200,
) -> None:
    """Start a Prefect server with the sweep form, the cron reaper and this machine as worker. Ctrl-C ends it."""
    from flows.control_room import serve_ui

    settings = Settings()
    raise typer.Exit(asyncio.run(serve_ui(settings, port)))


for group in (answers, report_command, export_command, import_command, replay_command, what_if_command, worker):
    group.register(app)


def main() -> None:
    """Entry point: errors that we raise on purpose become one line and their exit code; so do wrong settings, and files
    and folders that this user may not reach."""
    os.environ.setdefault("DO_NOT_TRACK", "1")  # of Prefect's client; its server is told where we start one
    try:
        app()
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except TokensweepError as exc:
        sys.stderr.write(f"tokensweep: {exc}\n")
        code = exc.exit_code
    except ValidationError as exc:
        if exc.title not in WRITTEN_AS:
            raise
        sys.stderr.write(f"tokensweep: {_wrong_values(exc)} Nothing was started.\n")
        code = ConfigError.exit_code
    except OSError as exc:
        if exc.filename is None:
            raise
        sys.stderr.write(f"tokensweep: {exc.filename}: {exc.strerror}. Mend that, or name another place.\n")
        code = ConfigError.exit_code
    leave(code)


def _wrong_values(exc: ValidationError) -> str:
    """What is wrong with settings or options, by the name under which people wrote them."""
    written_as = WRITTEN_AS[exc.title]
    return " ".join(
        f"{written_as('_'.join(map(str, e['loc'])))}: {e['msg']}, not {e['input']!r}." for e in exc.errors()
    )


def leave(code: int) -> NoReturn:
    """End now. Threads that an interrupted sweep has given up on (a build, an SSH try) must not hold up the exit."""
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
