"""The answers as tables for people. Every number comes with what is needed to trust it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import humanize
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from flows.render import out
from flows.width import fitting, without

Row = Mapping[str, Any]
FLAGS_LEGEND = "Flags are explained in docs/lake.md (v_trust); nothing is left out because of one."


def best(rows: Sequence[Row], title: str, n_all: int, fastest: Row | None) -> None:
    if not rows:
        out.print(f"No server reaches it: {title}.")
        if fastest:
            out.print(f"Fastest: {fastest['vendor']}/{fastest['server']} with {_speed(fastest['tok_per_s'])} tokens/s.")
        return
    shown: list[Mapping[str, str | Text]] = [
        {
            "server": Text.assemble((f"{r['vendor']}/{r['server']}", "bold"), " *" if r.get("on_frontier") else ""),
            "runs on": _hardware(r.get("runs_on") or ""),
            "place": " ".join(filter(None, (r["place"], "spot" if r["spot"] else ""))),
            "> USD/h": _usd(r["price_usd_per_hour"]),
            "> tokens/s": Text.assemble(_speed(r["tok_per_s"]), ("" if r.get("sure") is not False else " ?", "yellow")),
            "> ±": "" if r.get("half_width_pct") is None else f"{r['half_width_pct']:.1f} %",
            "> n": str(r.get("n_samples") or ""),
            "> USD/1M tokens": "" if r["usd_per_mtok"] is None else f"{r['usd_per_mtok']:.3f}",
            "> × best": "" if r["ratio_to_best"] is None else f"{r['ratio_to_best']:.2f}",
            "measured": _day(r["observed_at"]),
            "price read": _day(r["price_read_at"]),
            "flags": _flags(r.get("flags") or ("random_weights" if r["weights"] == "random" else "")),
        }
        for r in rows
    ]
    table, left_out = fitting(
        f"{title}: cheapest first",
        shown,
        out,
        text=("runs on", "flags"),
        spare=("price read", "place", "runs on", "> × best", "measured"),
    )
    out.print(table)
    if n_all > len(rows):
        out.print(f"{n_all - len(rows):,} more: --limit {n_all}")
    said = ["One sequence at a time.", "±: half the 95 % interval of the mean."]
    if any(r.get("on_frontier") for r in rows):
        said.append("*: faster than all that cost no more.")
    if any(r.get("sure") is False for r in rows):
        said.append("?: the interval reaches below the wanted speed.")
    if all(r["price_read_at"] is None for r in rows):
        said.append("These prices are of no known day.")
    if any(r.get("flags") for r in rows):
        said.append(FLAGS_LEGEND)
    if left_out:
        said.append(without(left_out))
    out.print(" ".join(said), style="dim")


def _hardware(text: str) -> str:
    """What makers write into names of processors and nobody needs."""
    return re.sub(r"\((R|TM)\)|( \d+-Core)? Processor\b| CPU @ [\d.]+GHz|^NVIDIA | CPU$", "", text).replace("  ", " ")


def comparison(found: Any) -> None:
    title = "Median tokens/s ± standard deviation; ratio to the first server"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("cell", no_wrap=True)
    for name in found.servers:
        price = found.usd_per_hour.get(name)
        shown_price = "no price" if price is None else f"{_usd(price)} USD/h"
        heading = name.replace("/", "/\n", 1) if len(found.servers) * 24 > out.width else name
        table.add_column(Text.assemble(f"{heading}\n", (shown_price, "dim")), justify="right", overflow="fold")
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
    shown = [row for cell in found.cells for row in cell["servers"].values()]
    said = []
    if any(row["within_noise"] for row in shown):
        said.append("≈: the 95 % intervals meet, the difference may be noise.")
    if any(row["dominated"] for row in shown):
        said.append("↓: another one here is as fast for less money.")
    if any(_suspicious(row) for row in shown):
        said.append("!: flagged; " + FLAGS_LEGEND[0].lower() + FLAGS_LEGEND[1:])
    if said:
        out.print(" ".join(said), style="dim")
    if any(cell["weights"] == "random" for cell in found.cells):
        out.print("* weights = random: files of the real architecture made here; speed is real, text is not.")


def _compared(row: Row | None, is_base: bool) -> Text:
    if row is None:
        return Text("not measured", "dim")
    spread = "" if row["sd"] is None else f" ± {_speed(row['sd'])}"
    ratio = "" if is_base else f"  {row['ratio']:.2f}×"
    noise = " ≈" if row["within_noise"] else ""
    text = f"{_speed(row['tok_per_s'])}{spread}{ratio}{noise}{' ↓' if row['dominated'] else ''}"
    return Text.assemble(text, (" !" if _suspicious(row) else "", "yellow"))


def _suspicious(row: Row) -> bool:
    return bool((row["flags"] or "").replace("random_weights", "").strip())


def coverage(rows: Sequence[Row], limit: int) -> None:
    if not rows:
        out.print("There is nothing in the lake to cover yet: no sweep has run.")
        return
    models = list(dict.fromkeys(r["model"] for r in sorted(rows, key=lambda r: r["model_bytes"] or 0)))
    servers: dict[tuple[str, str], dict[str, Row]] = {}
    for r in rows:
        servers.setdefault((r["vendor"], r["server"]), {})[r["model"]] = r
    title = f"Coverage of {rows[0]['sweep_id']}: measured cells of each plan, or why not"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("server", no_wrap=True)
    for model in models:
        size = max((r["model_bytes"] or 0 for r in rows if r["model"] == model), default=0)
        table.add_column(Text.assemble(f"{model}\n", (humanize.naturalsize(size), "dim")), overflow="fold")
    for (vendor, server), cells in list(servers.items())[:limit]:
        table.add_row(f"{vendor}/{server}", *(_covered(cells.get(model)) for model in models))
    out.print(table)
    if len(servers) > limit:
        out.print(f"{len(servers) - limit:,} more: --limit {len(servers)}, or --vendor NAME")
    if len({vendor for vendor, _ in servers}) > 1:
        out.print(fitting("By vendor", _by_vendor(rows), out, text=("most often missing",), spare=())[0])
    n_cells, n_measured = sum(r["n_cells"] for r in rows), sum(r["n_measured"] for r in rows)
    out.print(f"{n_measured:,} of {n_cells:,} cells measured on {len(servers):,} servers.")
    reasons = Counter(r["main_reason"] for r in rows if r["main_reason"])
    if reasons:
        counted = ", ".join(f"{_words(reason)} {n:,}" for reason, n in reasons.most_common())
        out.print(f"Main reason where something is missing, by server and model: {counted}.")


def _by_vendor(rows: Sequence[Row]) -> list[dict[str, str | Text]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["vendor"], []).append(row)
    return [
        {
            "vendor": vendor,
            "> servers": f"{len({r['server'] for r in some}):,}",
            "> with a measurement": f"{len({r['server'] for r in some if r['n_measured']}):,}",
            "> cells": f"{sum(r['n_cells'] for r in some):,}",
            "> measured": f"{sum(r['n_measured'] for r in some) / sum(r['n_cells'] for r in some):.0%}",
            "most often missing": _words(
                next((r for r, _ in Counter(r["main_reason"] for r in some if r["main_reason"]).most_common(1)), "")
            ),
        }
        for vendor, some in sorted(found.items())
    ]


def _covered(row: Row | None) -> Text:
    if row is None:
        return Text("not planned", "dim")
    reason = _words(row["main_reason"]).replace("shorter cell too slow", "shorter too slow")
    if row["n_measured"] == row["n_cells"]:
        return Text(f"✓ {row['n_measured']}", "green")
    if row["n_measured"]:
        return Text.assemble(f"{row['n_measured']}/{row['n_cells']} ", (reason, "yellow"))
    bad = row["n_failed"] + row["n_not_reached"] >= row["n_cells"] / 2
    return Text(f"✗ {reason}", "red") if bad else Text(f"– {reason}", "yellow")


def _words(reason: str | None) -> str:
    return (reason or "").replace("_", " ")


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _usd(value: Any) -> str:
    """Four decimals, and more only for what is smaller: the digits of a column stand under each other."""
    return "unknown" if value is None else f"{float(value):.4f}" if float(value) >= 0.001 else f"{float(value):.2g}"


def _day(value: datetime | None) -> str:
    return "" if value is None else value.strftime("%Y-%m-%d")


def _flags(text: str) -> Text:
    return Text(" ".join(text.split()), "yellow")
