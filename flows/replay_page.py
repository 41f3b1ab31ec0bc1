"""The charts of a replay as one HTML file that opens from disk: it makes no connection and needs nothing beside it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.replay.report import Report
    from tasks.replay.twin_check import TwinCheck

Row = dict[str, Any]
Named = Sequence[tuple[str, "Report"]]

ORACLE_USD = 0.28
"""Share of the recorded USD below which no policy could have gone: repeats stopped early, nothing hopeless begun."""

SPENT = {
    "repeats": "timed repeats",
    "warmup": "warm-up",
    "load": "loading",
    "wait": "waiting for downloads",
    "outside": "image and start, as recorded",
}

_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<style>
body{{font:15px/1.45 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark;
color:light-dark(#17191c,#e9ebee);background:light-dark(#fff,#17191c)}}
h1{{font-size:1.5rem}}h2{{font-size:1.1rem;margin:2.2rem 0 .2rem}}figure{{margin:0}}
figcaption,p{{color:light-dark(#5c636d,#9aa3ae);margin:.2rem 0 .6rem}}svg{{background:none;overflow:visible}}
</style><h1>{title}</h1><p>{subtitle}</p>
"""

_POINTS = """marks: [
  Plot.ruleX([{oracle}], {{stroke: "#c2410c", strokeDasharray: "4 3"}}),
  Plot.text([{{}}], {{x: {oracle}, frameAnchor: "top", dx: 4, dy: 8, textAnchor: "start", fill: "#c2410c",
    text: () => "no policy below {oracle}"}}),
  Plot.ruleY([0]),
  Plot.ruleY(rows, {{x1: "low", x2: "high", y: "lost", stroke: "{axis}", strokeOpacity: .35}}),
  Plot.dot(rows, {{x: "share", y: "lost", fill: "{axis}", r: 5, tip: true, title: "title"}}),
  Plot.text(rows, {{x: "share", y: "lost", text: "name", dx: 10, textAnchor: "start", fontSize: 11}})],
x: {{label: "{label} as a share of the record →", grid: true,
  domain: [0.25, Math.max(...rows.map(d => d.share)) + .12]}},
y: {{label: "↑ points lost, %", grid: true, domain: [0, 1.2 * Math.max(.05, ...rows.map(d => d.lost))]}},
marginTop: 40, marginLeft: 50, height: 380"""

_SHARES = """marks: [
  Plot.ruleX([1], {strokeDasharray: "4 3"}),
  Plot.ruleY(rows, {x1: "low", x2: "high", y: "name", fy: "what", stroke: "what", strokeWidth: 3, strokeOpacity: .5}),
  Plot.dot(rows, {x: "share", y: "name", fy: "what", fill: "what", r: 5, tip: true, title: "title"})],
x: {label: "share of the record, with its 95 % interval over servers →", grid: true, domain: [0, 1.1]},
y: {label: null}, fy: {label: null}, color: {legend: true}, marginLeft: 90, height: 360"""

_HOURS = """marks: [Plot.barX(rows, {x: "hours", y: "policy", fill: "what", order: rows.map(d => d.what), tip: true}),
  Plot.ruleX([0])],
x: {label: "server-hours →", grid: true}, y: {label: null}, color: {legend: true}, marginLeft: 90,
height: 90 + 40 * new Set(rows.map(d => d.policy)).size"""

_RELIABILITY = """marks: [
  Plot.line([{c: 0, h: 0}, {c: 100, h: 100}], {x: "c", y: "h", strokeDasharray: "4 3", strokeOpacity: .6}),
  Plot.line(rows, {x: "claimed", y: "held", stroke: "what"}),
  Plot.dot(rows, {x: "claimed", y: "held", fill: "what", r: 5, tip: true})],
x: {label: "claimed, % →", grid: true, domain: [0, 100]}, y: {label: "↑ held, %", grid: true, domain: [0, 100]},
color: {legend: true}, marginLeft: 50, height: 460, width: 520"""

_REASONS = """marks: [Plot.barX(rows, {x: "points", y: "reason", fill: "#2563eb", sort: {y: "-x"}, tip: true}),
  Plot.text(rows, {x: "points", y: "reason", text: "points", dx: 6, textAnchor: "start"}), Plot.ruleX([0])],
x: {label: "recorded points lost →", grid: true}, y: {label: null}, marginLeft: 190,
height: 60 + 28 * rows.length"""


@dataclass(frozen=True)
class Chart:
    """`options`: those of Plot.plot as JavaScript, over `rows`. caption: what is shown, and how to read it."""

    title: str
    caption: str
    rows: Sequence[Row]
    options: str


def write_page(
    path: Path, reports: Named, *, gates: Mapping[float, float], twins: TwinCheck | None, unseen: bool
) -> None:
    """Write the page. reports: the policy first, then others by name. gates: for each quantile that a prediction
    claims, the share that held; twins: of a plan that measures one of each twin group."""
    first = reports[0][1]
    how = "Each server was predicted by coefficients fitted without it." if unseen else "Coefficients as shipped."
    subtitle = (
        f"{first.total.n_runs} recorded server runs, {first.total.recorded_h:,.0f} hours, "
        f"{first.total.recorded_usd:,.0f} USD, {first.total.points:,} points. {how}"
    )
    path.write_text(_page("Gates against the record", subtitle, _charts(reports, gates, twins)), encoding="utf-8")


def _charts(reports: Named, gates: Mapping[float, float], twins: TwinCheck | None) -> list[Chart]:
    name, first = reports[0]
    read = "Further left is cheaper, further down loses less; the lines are 95 % intervals over servers."
    charts = [
        Chart("Points lost against USD", read, frontier_rows(reports, "usd"), _frontier("USD", "#2563eb")),
        Chart("Points lost against hours", read, frontier_rows(reports, "hours"), _frontier("hours", "#0f766e")),
        Chart(f"{name}, by vendor", "The vertical line is the record.", _vendor_rows(first), _SHARES),
        Chart("Where the hours go", "All policies on the same runs.", _hour_rows(reports), _HOURS),
    ]
    reasons = [{"reason": reason, "points": n} for reason, n in first.lost_by_reason.items()]
    if reasons:
        charts.append(Chart(f"{name}: why points were lost", "How the lost cells ended.", reasons, _REASONS))
    reliable = reliability_rows(gates, twins)
    if reliable:
        caption = "On the dashed line a prediction holds as often as it claims: on servers it was not fitted on."
        charts.append(Chart("How far predictions can be trusted", caption, reliable, _RELIABILITY))
    return charts


def _frontier(label: str, colour: str) -> str:
    return _POINTS.format(oracle=ORACLE_USD if label == "USD" else "NaN", axis=colour, label=label)


def frontier_rows(reports: Named, what: str) -> list[Row]:
    """One point for each policy: `what` is usd or hours."""
    rows = []
    for name, found in reports:
        share, lost = getattr(found.total, what), found.total.lost_share.value * 100
        title = f"{name}\n{share.value:.3f} of recorded\n{lost:.3f} % lost, {found.total.gained} gained"
        rows.append(
            {"name": name, "share": share.value, "low": share.low, "high": share.high, "lost": lost, "title": title}
        )
    return rows


def _vendor_rows(found: Report) -> list[Row]:
    return [
        {"name": line.name, "what": label, "share": share.value, "low": share.low, "high": share.high,
         "title": f"{line.name}, {line.n_runs} runs: {share.value:.3f}"}
        for line in found.by_vendor
        for label, share in (("USD", line.usd), ("hours", line.hours))
        if share.value > 0
    ]  # fmt: skip


def _hour_rows(reports: Named) -> list[Row]:
    return [
        {"policy": name, "what": label, "hours": found.spent_h.get(key, 0.0)}
        for name, found in reports
        for key, label in SPENT.items()
    ]


def reliability_rows(gates: Mapping[float, float], twins: TwinCheck | None) -> list[Row]:
    """Claimed and held, in per cent."""
    rows = [
        {"what": "gates: speeds below the claimed quantile", "claimed": q * 100, "held": h * 100}
        for q, h in sorted(gates.items())
    ]
    if twins is not None:
        rows += [
            {"what": "twins: speeds inside the interval", "claimed": c * 100, "held": h * 100}
            for c, h in sorted(twins.unseen.items())
        ]
    return rows


def _page(title: str, subtitle: str, charts: Sequence[Chart]) -> str:
    vendor = resources.files("tasks.analysis.report") / "vendor"
    scripts = "".join(
        f"<script>{(vendor / name).read_text(encoding='utf-8')}</script>" for name in ("d3.min.js", "plot.umd.min.js")
    )
    body = "".join(_figure(f"chart{i}", chart) for i, chart in enumerate(charts))
    return _HEAD.format(title=html.escape(title), subtitle=html.escape(subtitle)) + scripts + body


def _figure(name: str, chart: Chart) -> str:
    rows = json.dumps(list(chart.rows)).replace("</", "<\\/")
    return (
        f"<h2>{html.escape(chart.title)}</h2><figure><figcaption>{html.escape(chart.caption)}</figcaption>"
        f'<div id="{name}"></div></figure><script>{{const rows = {rows};'
        f'const width = document.getElementById("{name}").clientWidth || 800;'
        f'document.getElementById("{name}").append(Plot.plot({{width, ...({{{chart.options}}})}}));}}</script>\n'
    )
