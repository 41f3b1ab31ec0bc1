"""The report of a large lake: how long it takes to build, how large it is, and when a browser paints it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from tasks.analysis.report import write_report
from tasks.lake import open_lake
from tests.benchmarks.result import Result, Table
from tests.benchmarks.spread import spread
from tests.lake_fleet import write_fleet

REPEATS = 5

# When the first contentful paint was, and when the page had been filled.
PAINTED = """() => new Promise(resolve => {
    const look = () => {
        const paint = performance.getEntriesByName("first-contentful-paint")[0];
        const ready = document.documentElement.dataset.readyAt;
        if (paint && ready) resolve([paint.startTime, Number(ready)]);
        else setTimeout(look, 5);
    };
    look();
})"""


def measure_report(result: Result, scratch: Path, n_servers: int) -> None:
    """Write the report of a fleet and open it from disk, each several times."""
    root, out = scratch / "report-lake", scratch / "report.html"
    n_cells = write_fleet(root, n_servers)
    took_s = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        with open_lake(root, documented=False) as lake:
            made = write_report(lake, out)
        took_s.append(time.perf_counter() - began)
    painted = first_paints(out)
    built = spread(took_s)
    row = [f"{n_cells:,}", f"{built.median:.1f}", f"{made.n_bytes / 1e6:.1f}"]
    if painted:
        first, ready = (spread([pair[k] / 1e3 for pair in painted]) for k in (0, 1))
        row += [f"{first.median:.2f}", f"{ready.median:.2f}"]
        result.findings.append(f"report of {n_cells:,} cells: first paint after {first.median:.2f} s, wanted below 1 s")
    else:
        row += ["no browser here", ""]
    result.tables.append(
        Table("the report", ["cells", "built in s", "MB", "first paint, s", "all filled in, s"], [row])
    )
    result.findings.append(
        f"report of {n_cells:,} cells: {built.median:.1f} s and {made.n_bytes / 1e6:.1f} MB, wanted below 10 s and 8 MB"
    )
    result.raw["report"] = {"took_s": took_s, "bytes": made.n_bytes, "painted_ms": painted}
    shutil.rmtree(root)


def first_paints(file: Path) -> list[tuple[float, float]]:
    """Milliseconds from the navigation to the first paint and to the filled page; empty without a Chromium."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        return []
    chromium = next(
        (p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None
    )
    found: list[tuple[float, float]] = []
    with sync_playwright() as play:
        try:
            browser: Any = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        except Error:
            return []
        for _ in range(REPEATS):
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(file.as_uri(), wait_until="commit")
            first, ready = page.evaluate(PAINTED)
            found.append((first, ready))
            page.close()
        browser.close()
    return found
