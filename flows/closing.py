"""What a sweep says when it has ended: speeds with their spread, what was gated and why, phases, cost, what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from flows.render import ROWS_SHOWN, err, hint, out, warn
from flows.width import Cell, fitting, wanted_width

WIDE_PCT = 10  # as the flag wide_interval of v_trust
WIDE_SHARE = 0.25
_MARK = {
    "measured": "green",
    "gated": "yellow",
    "timed_out": "yellow",
    "infeasible": "yellow",
    "failed": "red",
    "not_reached": "red",
}


def closing(services: Any, result: Any) -> None:
    """The end of a sweep: speeds with their spread, what was gated and why, phases, where the data is, what next."""
    from tasks.publish import beside_the_ladder, doubts, results, run_phases

    if result.status in ("nothing_to_do", "over_budget"):
        out.print(f"Nothing to do in sweep {result.sweep_id}:")
        for server, why in result.skipped.items():
            out.print(f"  {server}: {why}")
        if "measured already" in result.skipped.values():
            hint(f"tokensweep run {result.preset} --label again   # to measure once more")
        return
    rows = results(services, result.sweep_id)
    _speeds(result.sweep_id, rows)
    _ended_otherwise(rows)
    _beside_the_ladder(beside_the_ladder(services, result.sweep_id))
    for doubt in doubts(services, result.sweep_id):
        warn(doubt)
    _uncertain(rows)
    _phases(run_phases(services, result.sweep_id))
    bad = [report for report in result.servers if report.outcome not in ("completed", "gated")]
    for report in bad[:ROWS_SHOWN]:
        err.print(f"{report.server}: {report.outcome}: {report.reason}: {report.detail}", style="red")
    if len(bad) > ROWS_SHOWN:
        err.print(f"… and {len(bad) - ROWS_SHOWN:,} more servers: tokensweep query 'FROM v_failures'", style="red")
    _footer(services, result, rows)


def _uncertain(rows: Sequence[Mapping[str, Any]]) -> None:
    """Where many intervals are wide, the machine or its host was busy, and no single number should be quoted."""
    measured = [r for r in rows if r["outcome"] == "measured"]
    wide = [r for r in measured if (r["half_width_pct"] or 0) > WIDE_PCT]
    if len(wide) >= WIDE_SHARE * len(measured) and wide:
        warn(
            f"{len(wide):,} of {len(measured):,} cells are uncertain by more than ±{WIDE_PCT} %, as on a busy machine: "
            "when it is idle (tokensweep doctor), measure again with --label"
        )


def _speeds(sweep_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    from tasks.artifacts import cell_text

    lengths = list(
        dict.fromkeys((r["task"], r["n_tokens"]) for r in sorted(rows, key=lambda r: (r["task"], r["n_tokens"])))
    )
    lines: dict[tuple[str, str], dict[tuple[str, int], Mapping[str, Any]]] = {}
    for r in rows:
        lines.setdefault((r["server"], r["model"]), {})[r["task"], r["n_tokens"]] = r
    servers = dict.fromkeys(server for server, _ in lines)
    shown = list(servers)[:ROWS_SHOWN]
    texts = {key: [_cell(cells.get(length), cell_text) for length in lengths] for key, cells in lines.items()}
    random = {key for key, cells in lines.items() if next(iter(cells.values()))["weights"] == "random"}
    names = [f"{task}{n}" for task, n in lengths]
    title = f"Sweep {sweep_id}: median tokens/s ± half-width of the 95 % interval"
    table = _wide(title, names, shown, texts, random)
    if wanted_width(table, out) > out.width:
        table = _stacked(title, names, shown, texts, random)
    out.print(table)
    if len(servers) > len(shown):
        out.print(f"… and {len(servers) - len(shown):,} more servers: tokensweep query 'FROM v_speed'\n")
    if any(r["weights"] == "random" for r in rows):
        out.print("* weights = random: files of the real architecture made here; speed is real, text is not.")


Key = tuple[str, str]
Texts = Mapping[Key, Sequence[str | Text]]


def _wide(title: str, names: Sequence[str], servers: Sequence[str], texts: Texts, random: Collection[Key]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("server")
    table.add_column("model")
    for name in names:
        table.add_column(name, justify="right")
    for server in servers:
        ours = [key for key in texts if key[0] == server]
        for key in ours:
            table.add_row(server if key == ours[0] else "", _model(key, random), *texts[key])
        table.add_section()
    return table


def _stacked(title: str, names: Sequence[str], servers: Sequence[str], texts: Texts, random: Collection[Key]) -> Table:
    """For narrow terminals: the server on a line of its own, what follows a number below it."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("server, model", overflow="fold")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for server in servers:
        table.add_row(Text(server, "bold"))
        for key in (key for key in texts if key[0] == server):
            below = (cell.replace(" ", "\n", 1) if isinstance(cell, str) else cell for cell in texts[key])
            table.add_row("  " + _model(key, random), *below)
    return table


def _model(key: Key, random: Collection[Key]) -> str:
    return key[1] + (" *" if key in random else "")


def _cell(row: Mapping[str, Any] | None, text: Any) -> str | Text:
    if row is None:
        return ""
    if row["outcome"] == "measured":
        return str(text(row))
    return Text(row["outcome"], _MARK[row["outcome"]])


def _ended_otherwise(rows: Sequence[Mapping[str, Any]]) -> None:
    other = [r for r in rows if r["outcome"] != "measured"]
    if not other:
        return
    if len(other) > ROWS_SHOWN:
        _reasons(other)
        return
    found: list[dict[str, Cell]] = [
        {
            "server": r["server"],
            "cell": f"{r['model']} {r['task']}{r['n_tokens']}",
            "outcome": Text(r["outcome"], _MARK[r["outcome"]]),
            "reason": r["reason"],
            "evidence": r["detail"] or "",
        }
        for r in other
    ]
    out.print(fitting("Not measured, and why", found, out, text=("cell", "reason", "evidence"), spare=())[0])


def _reasons(other: Sequence[Mapping[str, Any]]) -> None:
    """Of a large sweep: how many cells ended so, the commonest first."""
    table = Table(title="Not measured, and why", title_justify="left")
    table.add_column("cells", justify="right")
    table.add_column("servers", justify="right")
    table.add_column("outcome")
    table.add_column("reason")
    for (outcome, reason), n in Counter((r["outcome"], r["reason"]) for r in other).most_common():
        on = {r["server"] for r in other if (r["outcome"], r["reason"]) == (outcome, reason)}
        table.add_row(f"{n:,}", f"{len(on):,}", Text(outcome, _MARK[outcome]), reason)
    out.print(table)
    out.print("Each with what was said: tokensweep query 'FROM v_failures', and of gates 'FROM v_gates'\n")


def _beside_the_ladder(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    table = Table(title="Beside the ladder", title_justify="left")
    for name in ("server", "model", "what", "changed to", "test", "tok/s"):
        table.add_column(name, justify="right" if name == "tok/s" else "left", overflow="fold")
    for r in rows[:ROWS_SHOWN]:
        lengths = "+".join(str(n) for n in (r["n_prompt"], r["n_gen"]) if n)
        several = f" x {r['n_sequences']}" if r["n_sequences"] else ""
        speed = r["outcome"] if r["tok_per_s_median"] is None else f"{r['tok_per_s_median']:.1f}"
        label = " ".join(str(part) for part in (r["label"], r["device_set"]) if part)
        table.add_row(r["server"], r["model"], r["kind"], label, f"{r['task'] or ''}{lengths}{several}", speed)
    out.print(table)
    if len(rows) > ROWS_SHOWN:
        out.print(f"… and {len(rows) - ROWS_SHOWN} more: tokensweep query 'FROM variants'")


def _phases(phases: Mapping[str, Mapping[str, float]]) -> None:
    names = list(dict.fromkeys(name for row in phases.values() for name in row))
    table = Table(title="Phases, in seconds", title_justify="left")
    table.add_column("server")
    for name in names:
        table.add_column(name, justify="right")
    for server, row in list(phases.items())[:ROWS_SHOWN]:
        table.add_row(server, *(f"{row[n]:.1f}" if n in row else "" for n in names))
    if wanted_width(table, out) <= out.width:
        out.print(table)
    else:
        out.print(Text("Phases, in seconds", "italic"))
        for server, row in list(phases.items())[:ROWS_SHOWN]:
            out.print(Text.assemble((server, "bold"), ": ", ", ".join(f"{n} {row[n]:.1f}" for n in names if n in row)))
    if len(phases) > ROWS_SHOWN:
        out.print(f"… and {len(phases) - ROWS_SHOWN:,} more servers: tokensweep query 'FROM v_phases'\n")


def _footer(services: Any, result: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    spent = services.ledger.spent(result.sweep_id)
    measured = sum(r["outcome"] == "measured" for r in rows)
    left = (f"{result.left} resources are left behind", "red") if result.left else "nothing is left behind"
    said = f"{measured} of {len(rows)} cells measured; cost {spent.settled_usd:.4f} USD; "
    out.print(Text.assemble(said, left, "."))
    out.print(f"Data: {services.settings.lake_root}")
    server = result.servers[0].server if result.servers else "SERVER"
    hint(f"tokensweep explain {server}")
    hint('tokensweep query "SELECT * FROM v_speed ORDER BY tok_per_s DESC"')
