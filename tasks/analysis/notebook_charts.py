"""Charts for the notebook: Observable Plot with the same code and licence as in the report, in a frame of their own."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

_PAGE = """<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy"
content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<style>body{{margin:0;font:13px system-ui,sans-serif;color:light-dark(#17191c,#e9ebee);color-scheme:light dark}}
figcaption{{color:light-dark(#5c636d,#9aa3ae);margin:.2rem 0 .5rem}}svg{{background:none;overflow:visible}}</style>
<figure style="margin:0"><div id="plot"></div><figcaption>{caption}</figcaption></figure>
<script>{d3}</script><script>{plot}</script>
<script>const rows = {rows};
const width = document.body.clientWidth || 800;
document.getElementById("plot").append(Plot.plot({{width, ...({options})}}));</script>"""


def chart_page(rows: Sequence[Mapping[str, Any]], options: str, caption: str) -> str:
    """An HTML page with one chart. `options`: those of `Plot.plot` as JavaScript, over `rows`.

    The page makes no connection. `caption` says what the metric is.
    """
    vendor = resources.files("tasks.analysis.report") / "vendor"
    d3, plot = ((vendor / name).read_text(encoding="utf-8") for name in ("d3.min.js", "plot.umd.min.js"))
    data = json.dumps([dict(row) for row in rows], default=_plain).replace("</", "<\\/")
    return _PAGE.format(caption=html.escape(caption), d3=d3, plot=plot, rows=data, options=options)


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else float(value)
