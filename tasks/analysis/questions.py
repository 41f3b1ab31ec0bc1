"""The questions behind `best`, `compare` and `coverage`: checked arguments in, rows of the lake's macros out."""

from __future__ import annotations

import difflib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from tasks.domain.errors import ConfigError
from tasks.lake import Lake, query

Row = dict[str, Any]
MOST_NAMED = 10


def best_servers(
    lake: Lake, model: str, task: str, n_tokens: int, min_tok_per_s: float, *, vendor: str = "", at: str = ""
) -> list[Row]:
    """Servers that reach the speed, cheapest first; with `at`, at the prices of that moment, or of that day's end.

    Each row has `ratio_to_best`: how many times the cheapest price per token it costs; `on_frontier`: faster than all
    that cost no more; `runs_on`: its GPUs, else its CPUs. Raises ConfigError, naming what there is, for a model or cell
    that was never measured, for a vendor that the lake has not, and for a moment that is none.
    """
    _check_cell(lake, model, task, n_tokens)
    _check_vendor(lake, vendor)
    macro = "best_for_slo_at(?, ?, ?, ?, CAST(? AS TIMESTAMPTZ))" if at else "best_for_slo(?, ?, ?, ?)"
    parameters = [model, task, n_tokens, min_tok_per_s, *([_moment(at)] if at else []), vendor, vendor]
    rows = query(lake, f"FROM {macro} WHERE ? = '' OR vendor = ?", parameters).to_dicts()
    known = [r["usd_per_mtok"] for r in rows if r["usd_per_mtok"]]
    hardware = _hardware(lake) if rows else {}
    fastest = 0.0
    for row in rows:
        row["ratio_to_best"] = row["usd_per_mtok"] / min(known) if known and row["usd_per_mtok"] else None
        row["on_frontier"] = row["price_usd_per_hour"] is not None and row["tok_per_s"] > fastest
        fastest = max(fastest, row["tok_per_s"])
        row["runs_on"] = hardware.get((row["vendor"], row["server"]))
    return rows


def _moment(text: str) -> str:
    """A day without a time means all of it. Raises ConfigError for what is neither."""
    with suppress(ValueError):
        return f"{date.fromisoformat(text)} 23:59:59.999999+00"
    try:
        datetime.fromisoformat(text)
    except ValueError as exc:
        raise ConfigError(f"{text!r} is no day: {exc}.", next_step="Write it like 2026-11-01.") from exc
    return text


def _hardware(lake: Lake) -> dict[tuple[str, str], str]:
    """What the newest run of each server found in it, for people."""
    sql = """
        SELECT vendor, server, arg_max(
            if(
                n_gpus > 0,
                n_gpus || ' × ' || coalesce(gpu_model, 'GPU'),
                n_cpus || ' × ' || coalesce(cpu_model, 'CPU')
            ),
            started_at
        ) AS runs_on
        FROM hardware JOIN server_runs USING (sweep_id, server_run_id, vendor, server) GROUP BY ALL
    """
    return {(vendor, server): str(text) for vendor, server, text in query(lake, sql).rows() if text}


def nearest_miss(lake: Lake, model: str, task: str, n_tokens: int, vendor: str = "") -> Row | None:
    """The fastest server (of a vendor) in a cell, for whom asked for more than there is."""
    sql = """
        SELECT vendor, server, tok_per_s_median AS tok_per_s FROM v_latest
        WHERE model = ? AND task = ? AND n_tokens = ? AND (? = '' OR vendor = ?) ORDER BY tok_per_s_median DESC LIMIT 1
    """
    rows = query(lake, sql, [model, task, n_tokens, vendor, vendor]).to_dicts()
    return rows[0] if rows else None


@dataclass(frozen=True)
class Comparison:
    """Servers side by side. `cells`: one row per cell that the first server and another share.

    Each cell holds `servers`: by name its speed, sd, ratio to the first, `within_noise` of the first, and `dominated`:
    another of them is at least as fast for no more money. `overall`: geometric mean of the ratios, by name.
    """

    servers: tuple[str, ...]
    cells: list[Row]
    overall: dict[str, float]
    usd_per_hour: dict[str, float | None]


def compare_servers(lake: Lake, names: Sequence[str], model: str = "") -> Comparison:
    """The price of each server is that of its newest measurement among those compared. Raises ConfigError for a server
    or a model that was never measured, a server that two vendors have, or less than two."""
    servers = [_server(lake, name) for name in names]
    if len(set(servers)) < 2:
        raise ConfigError("A comparison needs two different servers.", next_step="tokensweep compare A B")
    if model:
        _check_model(lake, model)
    sql = """
        SELECT vendor || '/' || server AS name, model, weights, task, n_tokens, tok_per_s_median AS tok_per_s,
            tok_per_s_median * tok_per_s_cv AS sd, tok_per_s_ci95_low AS low, tok_per_s_ci95_high AS high, n_samples,
            price_usd_per_hour, usd_per_mtok, measured_at, flags
        FROM v_trust WHERE list_contains(?, vendor || '/' || server) AND (? = '' OR model = ?)
        ORDER BY model, task, n_tokens
    """
    by_cell: dict[tuple[Any, ...], dict[str, Row]] = defaultdict(dict)
    prices: dict[str, float | None] = {}
    priced_at: dict[str, Any] = {}
    for row in query(lake, sql, [servers, model, model]).to_dicts():
        name = row.pop("name")
        by_cell[row.pop("model"), row.pop("weights"), row.pop("task"), row.pop("n_tokens")][name] = row
        if name not in prices or row["measured_at"] > priced_at[name]:
            priced_at[name] = row["measured_at"]
            prices[name] = None if row["price_usd_per_hour"] is None else float(row["price_usd_per_hour"])
    first = servers[0]
    cells = []
    ratios: dict[str, list[float]] = defaultdict(list)
    for (cell_model, weights, task, n_tokens), found in by_cell.items():
        if first not in found or len(found) < 2:
            continue
        for name, row in found.items():
            row["ratio"] = row["tok_per_s"] / found[first]["tok_per_s"]
            row["within_noise"] = None if name == first else _meet(row, found[first])
            row["dominated"] = any(_dominates(other, row) for other in found.values() if other is not row)
            ratios[name].append(row["ratio"])
        cells.append({"model": cell_model, "weights": weights, "task": task, "n_tokens": n_tokens, "servers": found})
    overall = {name: math.exp(sum(map(math.log, values)) / len(values)) for name, values in ratios.items()}
    return Comparison(tuple(servers), cells, overall, prices)


def coverage_rows(lake: Lake, *, sweep_id: str = "", vendor: str = "") -> list[Row]:
    """Rows of v_coverage; where no sweep is named, of the newest one (that has servers of the vendor).

    Raises ConfigError for a sweep that there is not, and for a vendor that is in none.
    """
    vendors: dict[str, set[str]] = defaultdict(set)
    for sweep, name in query(lake, "SELECT sweep_id, vendor FROM v_spend ORDER BY begun_at DESC").rows():
        vendors[sweep].add(name)
    sweeps = list(vendors)
    _check_vendor(lake, vendor)
    if sweep_id and sweep_id not in set(sweeps):
        raise ConfigError(
            f"The lake has no sweep {sweep_id!r}.{_did_you_mean(sweep_id, sweeps)}",
            next_step=f"Newest: {', '.join(sweeps[:5]) or 'none yet'}.",
        )
    wanted = sweep_id or next((sweep for sweep in sweeps if not vendor or vendor in vendors[sweep]), "")
    sql = "FROM v_coverage WHERE sweep_id = ? AND (? = '' OR vendor = ?)"
    return query(lake, sql, [wanted, vendor, vendor]).to_dicts()


def has_decisions(lake: Lake, sweep_id: str, server: str) -> bool:
    """Whether there is something to explain; imported results have no decisions."""
    sql = "SELECT 1 FROM decisions WHERE sweep_id = ? AND server = ? LIMIT 1"
    return query(lake, sql, [sweep_id, server]).height > 0


def no_decisions(lake: Lake, server: str, model: str, sweep_id: str) -> ConfigError:
    """Why there is none: the server never ran, its results were imported, or it has no such model or sweep."""
    sql = """
        SELECT r.vendor || '/' || r.server AS name, bool_or(d.server_run_id IS NOT NULL) AS decided
        FROM server_runs AS r LEFT JOIN (SELECT DISTINCT sweep_id, server_run_id FROM decisions) AS d
        USING (sweep_id, server_run_id) GROUP BY 1 ORDER BY 1
    """
    ran = {str(name): bool(decided) for name, decided in query(lake, sql).rows()}
    found = [name for name in ran if server in (name, name.partition("/")[2])]
    if not found:
        ours = [name for name, decided in ran.items() if decided]
        near = _did_you_mean(server, [*ran, *(name.partition("/")[2] for name in ran)])
        more = f" and {len(ours) - MOST_NAMED:,} more" if len(ours) > MOST_NAMED else ""
        return ConfigError(
            f"The lake has no run of a server {server!r}.{near}",
            next_step=f"With decisions: {', '.join(ours[:MOST_NAMED]) or 'none yet; see tokensweep run'}{more}.",
        )
    if not any(ran[name] for name in found):
        cells = f"FROM v_coverage WHERE server = '{found[0].partition('/')[2]}'"
        return ConfigError(
            f"What the lake has of {found[0]} was imported, and comes without decisions.",
            next_step=f'How its cells ended: tokensweep query "{cells}".',
        )
    wanted = " and ".join(filter(None, (f"model {model!r}" * bool(model), f"sweep {sweep_id!r}" * bool(sweep_id))))
    return ConfigError(
        f"The lake has no decision about {found[0]} for {wanted}.", next_step=f"All: tokensweep explain {found[0]}."
    )


def _check_vendor(lake: Lake, vendor: str) -> None:
    known = query(lake, "SELECT DISTINCT vendor FROM server_runs ORDER BY 1")["vendor"].to_list() if vendor else []
    if known and vendor not in known:
        raise ConfigError(
            f"The lake has no server of {vendor!r}.{_did_you_mean(vendor, known)}",
            next_step=f"Vendors: {', '.join(known)}.",
        )


def _check_model(lake: Lake, model: str) -> list[tuple[str, int]]:
    """Tasks and lengths in which the model was measured; what was simulated is no measurement."""
    sql = """
        SELECT DISTINCT model, task, n_tokens FROM cells
        WHERE outcome = 'measured' AND weights IS DISTINCT FROM 'simulated'
    """
    cells = query(lake, sql).rows()
    models = sorted({m for m, _, _ in cells})
    if model not in models:
        raise ConfigError(
            f"The lake has no measurement of the model {model!r}.{_did_you_mean(model, models)}",
            next_step=f"Measured: {', '.join(models) or 'nothing yet; see tokensweep run'}.",
        )
    return [(t, n) for m, t, n in cells if m == model]


def _check_cell(lake: Lake, model: str, task: str, n_tokens: int) -> None:
    lengths = sorted(n for t, n in _check_model(lake, model) if t == task)
    if n_tokens not in lengths:
        raise ConfigError(
            f"{model} was never measured at {task}{n_tokens}.",
            next_step=f"Lengths of {task}: {', '.join(map(str, lengths)) or 'none'}.",
        )


def _server(lake: Lake, name: str) -> str:
    """The one `vendor/server` that a name means."""
    known = query(lake, "SELECT DISTINCT vendor || '/' || server AS name FROM v_latest")["name"].to_list()
    found = [k for k in known if name in (k, k.partition("/")[2])]
    if len(found) > 1:
        raise ConfigError(f"Several vendors have a server {name!r}.", next_step=f"Say which: {', '.join(found)}.")
    if not found:
        near = _did_you_mean(name, [*known, *(k.partition("/")[2] for k in known)])
        raise ConfigError(
            f"The lake has no measurement of a server {name!r}.{near}",
            next_step='All: tokensweep query "SELECT DISTINCT vendor, server FROM v_latest".',
        )
    return str(found[0])


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _meet(a: Row, b: Row) -> bool | None:
    if None in (a["low"], a["high"], b["low"], b["high"]):
        return None
    return bool(a["low"] <= b["high"] and b["low"] <= a["high"])


def _dominates(a: Row, b: Row) -> bool:
    if a["price_usd_per_hour"] is None or b["price_usd_per_hour"] is None:
        return False
    no_worse = a["price_usd_per_hour"] <= b["price_usd_per_hour"] and a["tok_per_s"] >= b["tok_per_s"]
    return bool(no_worse and (a["price_usd_per_hour"] < b["price_usd_per_hour"] or a["tok_per_s"] > b["tok_per_s"]))
