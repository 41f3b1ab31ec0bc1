"""The answers as tables for people. Every number comes with what is needed to trust it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import humanize
from rich.markup import escape
from rich.table import Table

from flows.render import out

Row = Mapping[str, Any]
FLAGS_LEGEND = "Flags are explained in docs/lake.md (v_trust); nothing is left out because of one."


def best(rows: Sequence[Row], title: str, n_all: int, fastest: Row | None) -> None:
    if not rows:
        out.print(f"No server reaches it: {escape(title)}.")
        if fastest:
            out.print(f"Fastest: {fastest['vendor']}/{fastest['server']} with {_speed(fastest['tok_per_s'])} tokens/s.")
        return
    table = Table(title=f"{escape(title)}: cheapest first", title_justify="left")
    for name, right in (
        ("server", 0), ("place", 0), ("USD/h", 1), ("tokens/s", 1), ("±", 1), ("n", 1), ("USD/1M tokens", 1),
        ("× best", 1), ("measured", 0), ("price read", 0), ("flags", 0),
    ):  # fmt: skip
        table.add_column(name, justify="right" if right else "left")
    for r in rows:
        sure = r.get("sure")
        table.add_row(
            f"{r['vendor']}/{r['server']}",
            r["place"] or "",
            _usd(r["price_usd_per_hour"]),
            _speed(r["tok_per_s"]) + ("" if sure is not False else " [yellow]?[/yellow]"),
            "" if r.get("half_width_pct") is None else f"{r['half_width_pct']:.1f} %",
            str(r.get("n_samples", "")),
            "" if r["usd_per_mtok"] is None else f"{r['usd_per_mtok']:.3g}",
            "" if r["ratio_to_best"] is None else f"{r['ratio_to_best']:.2f}",
            _day(r["observed_at"]),
            _day(r["price_read_at"]),
            _flags(r.get("flags") or ("random_weights" if r["weights"] == "random" else "")),
        )
    out.print(table)
    if n_all > len(rows):
        out.print(f"{n_all - len(rows)} more: --limit {n_all}")
    out.print("Single sequence. ±: half the 95 % interval; ?: its lower end is below the wanted speed. " + FLAGS_LEGEND)


def comparison(found: Any) -> None:
    table = Table(title="Median tokens/s ± standard deviation; ratio to the first server", title_justify="left")
    table.add_column("model")
    table.add_column("cell")
    for name in found.servers:
        price = found.usd_per_hour.get(name)
        table.add_column(f"{name}\n{'' if price is None else f'{price:.4g} USD/h'}", justify="right")
    last = ""
    for cell in found.cells:
        if last and cell["model"] != last:
            table.add_section()
        random = " *" if cell["weights"] == "random" else ""
        texts = [_compared(cell["servers"].get(name), name == found.servers[0]) for name in found.servers]
        table.add_row(
            cell["model"] + random if cell["model"] != last else "", f"{cell['task']}{cell['n_tokens']}", *texts
        )
        last = cell["model"]
    if not found.cells:
        out.print("These servers share no measured cell.")
        return
    table.add_section()
    ratios = [f"{found.overall[name]:.2f}×" if name in found.overall else "" for name in found.servers]
    table.add_row("geometric mean", "", *ratios)
    out.print(table)
    out.print("≈: the 95 % intervals meet, the difference may be noise. ↓: another one here is as fast for less money.")
    if any(cell["weights"] == "random" for cell in found.cells):
        out.print("* weights = random: files of the real architecture made here; speed is real, text is not.")


def _compared(row: Row | None, is_base: bool) -> str:
    if row is None:
        return "[dim]not measured[/dim]"
    spread = "" if row["sd"] is None else f" ± {_speed(row['sd'])}"
    ratio = "" if is_base else f"  {row['ratio']:.2f}×"
    noise = " ≈" if row["within_noise"] else ""
    flag = " [yellow]![/yellow]" if (row["flags"] or "").replace("random_weights", "").strip() else ""
    return f"{_speed(row['tok_per_s'])}{spread}{ratio}{noise}{' ↓' if row['dominated'] else ''}{flag}"


def coverage(rows: Sequence[Row]) -> None:
    if not rows:
        out.print("There is nothing in the lake to cover yet.")
        return
    models = list(dict.fromkeys(r["model"] for r in sorted(rows, key=lambda r: r["model_bytes"] or 0)))
    servers: dict[tuple[str, str], dict[str, Row]] = {}
    for r in rows:
        servers.setdefault((r["vendor"], r["server"]), {})[r["model"]] = r
    table = Table(
        title=f"Coverage of {rows[0]['sweep_id']}: measured cells of each plan, or why not", title_justify="left"
    )
    table.add_column("server")
    for model in models:
        size = max((r["model_bytes"] or 0 for r in rows if r["model"] == model), default=0)
        table.add_column(f"{model}\n[dim]{humanize.naturalsize(size)}[/dim]")
    for (vendor, server), cells in servers.items():
        table.add_row(f"{vendor}/{server}", *(_covered(cells.get(model)) for model in models))
    out.print(table)
    n_cells, n_measured = sum(r["n_cells"] for r in rows), sum(r["n_measured"] for r in rows)
    reasons = Counter(r["main_reason"] for r in rows if r["main_reason"])
    out.print(f"{n_measured} of {n_cells} cells measured on {len(servers)} servers.")
    if reasons:
        counted = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
        out.print(f"Main reason where something is missing, by server and model: {counted}.")


def _covered(row: Row | None) -> str:
    if row is None:
        return "[dim]not planned[/dim]"
    if row["n_measured"] == row["n_cells"]:
        return f"[green]✓ {row['n_measured']}[/green]"
    if row["n_measured"]:
        return f"{row['n_measured']}/{row['n_cells']} [yellow]{row['main_reason']}[/yellow]"
    bad = row["n_failed"] or row["n_not_reached"]
    return f"[red]✗ {row['main_reason']}[/red]" if bad else f"[yellow]– {row['main_reason']}[/yellow]"


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _usd(value: Any) -> str:
    return "unknown" if value is None else f"{float(value):.4g}"


def _day(value: datetime | None) -> str:
    return "" if value is None else value.strftime("%Y-%m-%d")


def _flags(text: str) -> str:
    return " ".join(f"[yellow]{flag}[/yellow]" for flag in text.split())
