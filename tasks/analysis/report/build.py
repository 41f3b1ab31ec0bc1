"""Put data, code and style into one HTML file that needs nothing else.

The charts are Observable Plot on D3 (`vendor/`, both ISC), 0.5 MB of text: vector graphics that print, scale, follow
the page's colours and can be read by assistive technology. The data are gzipped JSON in base64, which the page
unpacks. A content security policy in the file forbids it every connection.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tasks.analysis.report.data import report_data
from tasks.domain.errors import ConfigError
from tasks.lake import Lake

SCRIPTS = (
    "vendor/d3.min.js",
    "vendor/plot.umd.min.js",
    "page/model.js",
    "page/charts.js",
    "page/views.js",
    "page/app.js",
)


@dataclass(frozen=True)
class ReportMade:
    n_cells: int
    n_servers: int
    n_bytes: int


def write_report(lake: Lake, path: Path, *, sweep_id: str = "", title: str = "tokensweep") -> ReportMade:
    """Write the report of a lake, or of one sweep. Raises ConfigError where there is nothing to show."""
    data = report_data(lake, sweep_id)
    n_cells = len(data["cells"]["x"] or [])
    if not n_cells:
        what = f"sweep {sweep_id!r} of the lake" if sweep_id else "lake"
        raise ConfigError(f"The {what} has no cell to report.", next_step="See tokensweep coverage and tokensweep run.")
    text = page(data, title)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(
            f"The report cannot be written to {path}: {exc.strerror}.", next_step="Give another --out."
        ) from exc
    servers = set(zip(data["runs"]["vendor"]["i"], data["runs"]["server"], strict=True))
    return ReportMade(n_cells, len(servers), len(text.encode()))


def page(data: dict[str, Any], title: str) -> str:
    """The whole file as text."""
    packed = base64.b64encode(gzip.compress(json.dumps(data, separators=(",", ":")).encode(), 6, mtime=0)).decode()
    scripts = "\n".join(f"<script>{_closed(_read(name))}</script>" for name in SCRIPTS)
    filled = _read("page/page.html")
    for mark, value in (
        ("{{title}}", html.escape(title)),
        ("{{style}}", _read("page/style.css")),
        ("{{data}}", packed),
        ("{{scripts}}", scripts),
    ):
        filled = filled.replace(mark, value)
    return filled


def _read(name: str) -> str:
    return resources.files("tasks.analysis.report").joinpath(name).read_text(encoding="utf-8")


def _closed(script: str) -> str:
    """A script must not hold the end of its own element."""
    return script.replace("</script", "<\\/script")
