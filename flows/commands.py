"""What the commands do. Heavy imports are inside the functions: `tokensweep query` must not wait for Prefect."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from importlib import import_module
from typing import Any, Literal, cast

from flows import render
from flows.closing import closing
from flows.embedded import flush_prefect, prefect_api
from tasks.domain.errors import ConfigError, TokensweepError
from tasks.settings import Settings
from tasks.wiring import open_services


def print_json(value: Any) -> None:
    def plain(item: Any) -> Any:
        if isinstance(item, Decimal):
            return float(item)
        return item.isoformat() if hasattr(item, "isoformat") else str(item)

    sys.stdout.write(json.dumps(value, default=plain) + "\n")


def show_plan(
    settings: Settings,
    preset_name: str,
    server: str,
    label: str,
    as_json: bool,
    *,
    offline: bool = False,
    every: bool = False,
) -> None:
    from flows import plan_tables
    from tasks.clouds.sending import DEFAULT_LIMITS
    from tasks.domain.sweep_plan import at_once_usd
    from tasks.engine import engine_for
    from tasks.planning import prepare
    from tasks.presets import load_preset

    services = open_services(settings)
    preset = load_preset(preset_name, settings.presets)
    engine = engine_for(preset.weights, settings.cache_dir)
    prepared = prepare(preset, services, engine, label=label, only=server, offline=offline)
    if as_json:
        print_json(asdict(prepared.plan))
        return
    plan_tables.plan(prepared.plan, every=every)
    at_once = at_once_usd(prepared.plan, preset.max_parallel, DEFAULT_LIMITS.overrun_s)
    if at_once > prepared.plan.max_usd:
        render.warn(
            f"{preset.max_parallel} servers at once may reserve {at_once:,.2f} USD: those that find nothing left under "
            "the cap fail as over_cap, and run when the sweep is started again"
        )
    if any(s.over_budget for s in prepared.plan.servers):
        render.hint(
            f"tokensweep plan {preset_name} --max-usd {preset.max_usd}   # which of them that money measures best"
        )
    render.hint(f"tokensweep run {preset_name} --max-usd {preset.max_usd}")


def run_sweep(
    settings: Settings,
    preset_name: str,
    max_usd: float | None,
    server: str,
    label: str,
    yes: bool,
    as_json: bool,
    fan_out: Literal["auto", "inline", "workers"] = "auto",
) -> int:
    from flows.request import SweepRequest
    from tasks.presets import load_preset

    preset = load_preset(preset_name, settings.presets)
    cap = float(preset.max_usd) if max_usd is None else max_usd
    request = SweepRequest(preset=preset_name, mode="run", max_usd=cap, server=server, label=label, fan_out=fan_out)
    if not yes and sys.stdin.isatty():
        show_plan(settings, preset_name, server, label, as_json=False)
        if not render.confirm("Run it?"):
            return 0
    with prefect_api(settings.home) as wait_for_api:
        from prefect.exceptions import TerminationSignal

        from flows.stopping import exit_code
        from flows.sweep import begun, ended, sweep

        wait_for_api()
        try:
            with render.progress():
                result = cast("Any", asyncio.run(sweep(request)))
        except (TerminationSignal, KeyboardInterrupt, asyncio.CancelledError):
            render.warn(_stopped(settings, begun))
            return exit_code()
        except Exception as exc:
            if refusal := unreachable(exc):
                raise refusal from exc
            if not ended or isinstance(exc, TokensweepError):
                raise
            render.warn(f"Prefect's API has gone, what it shows of this sweep is incomplete: {type(exc).__name__}")
            result = ended[0]
        finally:
            flush_prefect()
    services = open_services(settings)
    if as_json:
        print_json(result.model_dump())
    else:
        closing(services, result)
    if result.left:
        return 6
    return {"nothing_to_do": 3, "some_failed": 4, "over_budget": 5}.get(result.status, 0)


def _stopped(settings: Settings, sweep_ids: Sequence[str]) -> str:
    """What has become of the servers of a sweep that was stopped, by the ledger."""
    try:
        rows = [row for sweep_id in sweep_ids for row in open_services(settings).ledger.open_rows(sweep_id)]
    except TokensweepError as exc:
        return f"stopped; what is left cannot be told: {exc} See `tokensweep leaks`"
    if not rows:
        return "stopped; what was created has been deleted, `tokensweep leaks` proves it"
    sent = sum(row.last_delete_unix_s is not None for row in rows)
    told = f"; the delete of {sent} of them has been sent" if sent else ""
    return f"stopped; {len(rows)} servers are not proven gone yet{told}; `tokensweep reap` sees to it, `leaks` shows it"


def unreachable(exc: Exception) -> ConfigError | None:
    """The error for people, where Prefect's server could not be reached before anything began; else None."""
    if not isinstance(exc, RuntimeError) or not str(exc).startswith("Failed to reach API at"):
        return None
    return ConfigError(f"{exc}: nothing was started.", next_step="Start that Prefect server, or unset PREFECT_API_URL.")


def show_status(settings: Settings, sweep_id: str, as_json: bool, watch_s: float = 0.0) -> None:
    services = open_services(settings)
    if sweep_id and not services.ledger.server_runs(sweep_id):
        known = list(dict.fromkeys(run.sweep_id for run in services.ledger.server_runs()))
        raise ConfigError(
            f"The ledger has no server run of a sweep {sweep_id!r}.",
            next_step=f"Sweeps: {', '.join(known[-5:]) or 'none yet; see tokensweep run'}.",
        )
    if as_json:
        runs = services.ledger.server_runs(sweep_id or None)
        spending = {s: services.ledger.spent(s) for s in dict.fromkeys(r.sweep_id for r in runs)}
        print_json(
            {
                "runs": [asdict(r) for r in runs],
                "spent": {s: asdict(v) for s, v in spending.items()},
                "open": [asdict(r) for r in services.ledger.open_rows(sweep_id or None)],
            }
        )
        return

    def view(width: int, height: int | None) -> Any:
        runs = services.ledger.server_runs(sweep_id or None)
        spending = {s: services.ledger.spent(s) for s in dict.fromkeys(r.sweep_id for r in runs)}
        alive = services.ledger.open_rows(sweep_id or None)
        return render.status(runs, spending, alive, services.now, width=width, height=height)

    if watch_s:
        render.watch(view, watch_s)
    render.out.print(view(render.out.width, None))


def show_metrics(settings: Settings, port: int, address: str) -> None:
    from flows.metrics import exposition, serve

    services = open_services(settings)
    if port:
        serve(services, port, address)
    else:
        sys.stdout.write(exposition(services))


def show_decisions(
    settings: Settings, server: str, model: str, sweep_id: str, as_json: bool, *, cell: str = ""
) -> None:
    """`cell`: its chain of evidence, deeper decisions indented below those that rest on them."""
    from tasks.analysis.questions import no_decisions
    from tasks.domain.evidence_chain import chain
    from tasks.lake import open_lake, query
    from tasks.lake_access import lake_address

    sql = """
        SELECT t_s, action, subject, reason, evidence, server_run_id FROM v_decisions
        WHERE ? IN (server, vendor || '/' || server) AND (? = '' OR subject LIKE ? || '%') AND (? = '' OR sweep_id = ?)
        ORDER BY server_run_id, t_s
    """
    lake = open_lake(lake_address(settings), documented=False)
    rows = query(lake, sql, [server, model, model, sweep_id, sweep_id]).to_dicts()
    if not rows:
        raise no_decisions(lake, server, model, sweep_id)
    told = [{**r, "evidence": json.loads(r["evidence"] or "{}")} for r in rows]
    if cell:
        runs = dict.fromkeys(r["server_run_id"] for r in told)
        chains = [chain([r for r in told if r["server_run_id"] == run], cell) for run in runs]
        told = [{**r, "depth": depth} for links in chains for depth, r in links]
        if not told:
            raise ConfigError(f"No decision about {cell!r}.", next_step=f"Look at: tokensweep explain {server}.")
    if as_json:
        print_json(told)
        return
    if cell:
        rows = [{**r, "action": "  " * r["depth"] + r["action"], "evidence": json.dumps(r["evidence"])} for r in told]
    render.decisions(server, rows)


def show_query(settings: Settings, sql: str, list_views: bool, as_json: bool, as_csv: bool) -> None:
    from tasks.lake import open_lake, query
    from tasks.lake_access import lake_address

    comments_asked = list_views or not sql or "comment" in sql.lower()
    lake = open_lake(lake_address(settings), documented=comments_asked)
    if list_views or not sql:
        sql = """
            SELECT view_name AS name, comment FROM duckdb_views() WHERE NOT internal
            UNION ALL
            SELECT DISTINCT function_name || '(' || array_to_string(parameters, ', ') || ')', comment
            FROM duckdb_functions() WHERE NOT internal ORDER BY 1
        """
    frame = query(lake, sql)
    for problem in lake.problems:
        render.warn(f"skipped {problem}")
    if as_csv:
        sys.stdout.write(frame.write_csv())
    elif as_json:
        print_json(frame.to_dicts())
    else:
        render.frame(frame)


def reap(settings: Settings, dry_run: bool, force: bool, as_json: bool) -> int:
    from tasks import reaper
    from tasks.leaks import not_listed
    from tasks.maintenance import recover

    services = open_services(settings)
    ledger, whole = services.ledger_or_volatile()
    clouds, broken = services.clouds_that_open()
    report = reaper.reap(clouds, ledger, time.time, time.sleep, dry_run=dry_run, force=force)
    report.listed += not_listed(broken, time.time())
    recovered = recover(services) if whole and not dry_run else []
    if as_json:
        print_json(
            {
                "gone": [r.name for r in report.gone],
                "waiting": [r.name for r in report.waiting],
                "of_another_account": [{"name": r.name, "account": r.account} for r in report.elsewhere],
                "braked": [asdict(d) for d in report.braked],
                "errors": report.errors,
                "listed": [asdict(x) for x in report.listed],
                "recovered": [{"server_run_id": r.run.server_run_id, "landed": r.landed} for r in recovered],
            }
        )
    else:
        render.reap_report(report, recovered)
    return 0 if report.finished or dry_run else 6


def show_leaks(settings: Settings, as_json: bool) -> int:
    from tasks.leaks import leaks

    services = open_services(settings)
    clouds, broken = services.clouds_that_open()
    ledger, _ = services.ledger_or_volatile()
    report = leaks(clouds, ledger, time.time, rates=settings.exchange_rates, broken=broken)
    if as_json:
        print_json(asdict(report) | {"clean": report.clean})
    else:
        render.leaks(report)
    return 0 if report.clean else 6


def _applied(what: str, *arguments: str) -> Any:
    """What `flows/limits.py` or `flows/automations.py` have put on the Prefect server of PREFECT_API_URL."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise ConfigError(
            f"{what.capitalize()} live on a Prefect server.", next_step="Set PREFECT_API_URL to its address."
        )
    import httpx

    try:
        return asyncio.run(import_module(f"flows.{what}").apply(*arguments))
    except httpx.TransportError as exc:
        raise ConfigError(
            f"The Prefect server {url} does not answer: {exc}.", next_step="Start it, or mend PREFECT_API_URL."
        ) from exc


def apply_limits(as_json: bool) -> None:
    done = _applied("limits")
    if as_json:
        print_json(done)
        return
    for name, what in done.items():
        render.out.print(f"{name}: {what}")


def apply_automations(notify_block: str, as_json: bool) -> None:
    applied = _applied("automations", notify_block)
    if as_json:
        print_json(asdict(applied))
        return
    for name in applied.made:
        render.out.print(f"made: {name}")
    for name in applied.replaced:
        render.out.print(f"replaced: {name}")


def doctor(settings: Settings, as_json: bool) -> int:
    from flows.doctor import checks

    found = checks(settings)
    if as_json:
        print_json([asdict(c) for c in found])
    else:
        render.checks(found)
    return 0 if all(c.ok is not False for c in found) else 2
