"""The report in a real browser, opened from disk: what it shows, what one can do with it, and what it must not do."""

from __future__ import annotations

import csv
import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.analysis.report import write_report
from tasks.analysis.report.data import FLAGS, report_data
from tasks.domain.errors import ConfigError
from tasks.lake import land, open_lake, query
from tests.lake_fleet import write_fleet
from tests.unit.test_lake_questions import cells, later, run_rows

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
MODEL, CELL = "llama-7b", "model=llama-7b&phase=tg&n=128"
WIDTHS = (390, 820, 1440)


@pytest.fixture(scope="module")
def lake_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fleet")
    write_fleet(root, 120)
    hostile = run_rows("h", "<img src=x onerror=alert(1)>", cells(weights="real", detail="</script><b>bold</b>"))
    land(root, "h", hostile)
    return root


@pytest.fixture(scope="module")
def report(lake_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    with open_lake(lake_root, documented=False) as lake:
        made = write_report(lake, path, title="fleet <1>")
    assert made.n_servers == 121 and made.n_cells == 120 * 66 + 8 and made.n_bytes == path.stat().st_size
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        try:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except sync_api.Error as exc:
            pytest.skip(f"no Chromium can be started here: {str(exc).splitlines()[0]}")
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Open]:
    """Opens the report at an address; afterwards there must have been no error, no warning and no request."""
    contexts: list[Any] = []
    said: list[str] = []

    def start(fragment: str = "", width: int = 1440, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: said.append(str(e)))
        page.on("dialog", lambda d: said.append(f"dialog {d.message}"))
        page.on("request", lambda r: said.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
        page.goto(f"{report.as_uri()}#{fragment}")
        page.wait_for_selector("html[data-ready]", timeout=60_000)
        return page

    yield start
    for context in contexts:
        context.close()
    assert said == []


def rows_of(page: Any, section: str = "best", table: int = 0) -> list[list[str]]:
    """Texts of the rows of a section's table."""
    script = "t => [...t.tBodies[0].rows].map(r => [...r.cells].map(c => c.innerText.trim()))"
    return list(page.locator(f"#{section} table").nth(table).evaluate(script))


def names(page: Any, section: str = "best") -> list[str]:
    return list(
        page.locator(f"#{section} table").first.locator("tbody tr").evaluate_all("rs => rs.map(r => r.dataset.key)")
    )


def settled(page: Any) -> None:
    page.wait_for_timeout(350)


def test_it_answers_what_the_lake_answers(opened: Open, lake_root: Path) -> None:
    page = opened(f"{CELL}&min=20")
    with open_lake(lake_root, documented=False) as lake:
        found = query(lake, "FROM best_for_slo(?, 'tg', 128, 20)", [MODEL]).to_dicts()
    assert len(found) > 25
    assert names(page) == [f"{r['vendor']}/{r['server']}" for r in found[:25]]
    row, first = rows_of(page)[0], found[0]
    assert float(row[4]) == pytest.approx(float(first["price_usd_per_hour"]), rel=1e-2)
    assert float(row[5]) == pytest.approx(first["tok_per_s"], rel=1e-2)
    assert float(row[7].rstrip(" %")) == pytest.approx(first["half_width_pct"], rel=0.1)
    assert float(row[8]) == pytest.approx(first["usd_per_mtok"], rel=1e-2) and row[10] == str(first["n_samples"])
    assert first["observed_at"].strftime("%Y-%m-%d") in row[11]
    assert f"tokensweep best --model {MODEL} --phase tg --tokens 128 --min-tps 20" in page.locator("#best").inner_text()
    page.get_by_role("button", name=f"Show all {len(found)}").click()
    assert len(names(page)) == len(found)


def test_filters_narrow_and_the_address_holds_them(opened: Open) -> None:
    page = opened(CELL)
    everything = page.locator("#best-lead b").first.inner_text()
    page.locator("[name=min]").fill("30")
    settled(page)
    assert int(page.locator("#best-lead b").first.inner_text()) < int(everything)
    page.select_option("[name=vendor]", "hetzner")
    page.select_option("[name=hw]", "gpu")
    assert names(page) and all(name.startswith("hetzner/") for name in names(page))
    assert all("GPU" in row[3] for row in rows_of(page))
    shared = page.url
    assert "min=30" in shared and "vendor=hetzner" in shared and "hw=gpu" in shared
    again = opened(shared.partition("#")[2])
    assert names(again) == names(page) and again.locator("[name=min]").input_value() == "30"


def test_other_phases_models_and_prices(opened: Open) -> None:
    page = opened(CELL)
    page.locator(".seg span", has_text="pp prompt").click()
    assert page.locator("[name=n] option").all_inner_texts() == ["16", "128", "512", "1024", "4096", "16384"]
    page.select_option("[name=model]", "smollm-135m")
    page.select_option("[name=n]", "512")
    page.locator("[name=max]").fill("0.2")
    settled(page)
    assert "smollm-135m pp512" in page.locator("#best-lead").inner_text()
    assert all(float(row[4]) <= 0.2 for row in rows_of(page))
    page.locator("[name=q]").fill("neoverse")
    settled(page)
    assert names(page) and all("Neoverse" in row[3] for row in rows_of(page))


def test_the_table_sorts_both_ways(opened: Open) -> None:
    page = opened(CELL)

    def speeds() -> list[float]:
        return [float(row[5].replace(",", "")) for row in rows_of(page)]

    page.locator("[data-sort=speed]").click()
    assert speeds() == sorted(speeds(), reverse=True)
    assert (
        page.locator("th[aria-sort=descending]").inner_text() == "tok/s ↓" or page.locator("th[aria-sort]").count() == 1
    )
    page.locator("[data-sort=speed]").click()
    assert speeds() == sorted(speeds())


def test_nothing_that_fast_names_the_fastest(opened: Open) -> None:
    page = opened(f"{CELL}&min=1000000")
    assert re.search(r"None is that fast.* tok/s", page.locator("#best .empty").inner_text())
    assert page.locator("#pareto svg").count() > 0


@pytest.mark.parametrize("width", WIDTHS)
def test_every_tick_of_the_axes_has_its_own_label(opened: Open, width: int) -> None:
    page = opened(f"{CELL}&min=1", width)
    for axis in ("x", "y"):
        labels = page.locator(f"#pareto svg g[aria-label='{axis}-axis tick label'] text").all_text_contents()
        ticks = page.locator(f"#pareto svg g[aria-label='{axis}-axis tick'] path").count()
        assert len(labels) == ticks >= 2 and all(labels) and len(set(labels)) == len(labels)
    script = "texts => texts.map(t => t.getBoundingClientRect()).map(b => [b.left, b.right])"
    ends = sorted(page.locator("#pareto svg g[aria-label='x-axis tick label'] text").evaluate_all(script))
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(ends)), "labels lie on each other"


def test_models_that_no_shown_server_had_in_its_plan_have_no_column(opened: Open) -> None:
    page = opened(CELL)
    models = page.locator("#coverage table.cover thead th").all_inner_texts()
    assert len(models) == 7 and not any("small\n" in text for text in models)


def test_two_servers_side_by_side(opened: Open) -> None:
    page = opened(f"{CELL}&sort=speed")
    for k in range(2):
        page.locator("#best tbody tr").nth(k).locator("input").check()
    page.locator("#drawer").get_by_role("button", name="Compare 2").click()
    heads = page.locator("#compare table thead th").all_inner_texts()
    first, second = names(page)[:2]
    assert heads[2].startswith(first) and heads[3].startswith(second) and "× overall" in heads[3]
    row = next(r for r in rows_of(page, "compare") if r[1] == "tg128")
    a, b = (float(re.match(r"[\d.,]+", text)[0].replace(",", "")) for text in row[2:4])  # type: ignore[index]
    assert float(re.search(r"([\d.]+)×", row[3])[1]) == pytest.approx(b / a, abs=0.02)  # type: ignore[index]
    assert page.locator("#compare figure svg").count() >= 2
    page.locator("#drawer [data-drop]").first.click()
    assert page.locator("#compare .empty").count() == 1


def test_one_server_with_every_mark_and_reason(opened: Open) -> None:
    page = opened(CELL)
    page.locator("#coverage button.cell").filter(has_text="does not fit the memory").first.click()
    server = page.locator("#server-h").inner_text()
    assert f"server={server.replace('/', '%2F')}" in page.url
    text = page.locator("#server").inner_text()
    for mark in ("Price read", "Slowest–fastest", "Steal", "Download", "Peak", "Measured", "How", "1st"):
        assert mark in text, mark
    assert "infeasible: does not fit the memory" in text and "tokensweep explain" in text
    assert len(rows_of(page, "server")) == 66 and page.locator("#server figure svg").count() >= 2
    page.go_back()
    settled(page)
    assert page.locator("#server-h").inner_text() == "One server"


def test_coverage_by_reason(opened: Open) -> None:
    page = opened(CELL)
    page.select_option("[data-cover]", "server_lost")
    shown = page.locator("#coverage table.cover tbody tr")
    assert shown.count() > 0 and all("server lost" in text for text in shown.all_inner_texts())
    assert "cover=server_lost" in page.url


def test_flags_are_shown_and_can_be_left_out(opened: Open) -> None:
    page = opened(f"{CELL}&sort=flags")
    assert page.locator("#best .tag.flag").count() > 0
    before = int(page.locator("#best-lead b").first.inner_text())
    page.locator("[name=trusted]").check()
    assert page.locator("#best .tag.flag").count() == 0
    assert 0 < int(page.locator("#best-lead b").first.inner_text()) < before
    assert page.locator("#flag-list dt").count() == len(FLAGS)


def test_the_keyboard_is_enough(opened: Open) -> None:
    page = opened(CELL)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "q"
    page.keyboard.press("Escape")
    first = page.locator("#best tbody button.link").first
    first.focus()
    page.keyboard.press("c")
    assert page.locator("#drawer .chip").count() == 1
    page.keyboard.press("Enter")
    assert page.locator("#server-h").inner_text() == names(page)[0]
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_what_is_shown_can_be_saved(opened: Open, tmp_path: Path) -> None:
    page = opened(f"{CELL}&min=50")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    download.value.save_as(tmp_path / "best.csv")
    rows = list(csv.DictReader((tmp_path / "best.csv").open()))
    assert len(rows) == int(page.locator("#best-lead b").first.inner_text())
    assert all(float(r["tok_per_s"]) >= 50 for r in rows) and rows[0]["price_read"].startswith("2026")


def test_cost_and_the_proof(opened: Open) -> None:
    text = opened(CELL).locator("#cost").inner_text()
    assert "resources were" in text or "Nothing was left behind" in text
    assert "USD per cell" in text and "Near misses" in text and "Median teardown" in text


def test_names_from_the_data_are_text(opened: Open) -> None:
    page = opened("model=small&phase=tg&n=16")
    assert "<img src=x onerror=alert(1)>" in rows_of(page)[0][2]
    assert page.locator("#best img").count() == 0 and page.title() == "fleet <1>: LLM speed of servers"
    page.locator("#best button.link").first.click()
    assert page.locator("#server b", has_text="bold").count() == 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_scrolls_sideways(opened: Open, width: int, scheme: str) -> None:
    page = opened(f"{CELL}&at=best", width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", background)[:3])) > 380
    assert light == (scheme == "light")
    assert page.locator("#pareto svg").first.is_visible()


def test_a_printed_page_has_the_tables_and_no_controls(opened: Open) -> None:
    page = opened(CELL)
    page.emulate_media(media="print")
    assert page.locator("#best table").is_visible() and page.locator("#methods").is_visible()
    assert not page.locator("#slo").is_visible() and not page.locator("nav").is_visible()


def test_an_address_that_names_nothing_shows_the_nearest(opened: Open) -> None:
    page = opened("model=none&n=100&server=x/y&cmp=a,b&phase=zz")
    assert page.locator("[name=n]").input_value() == "128" and names(page)
    assert page.locator("#drawer").is_hidden()


def test_the_file_holds_nothing_from_elsewhere(report: Path) -> None:
    text = report.read_text()
    assert not re.findall(r"""(?:src|href)=["']https?:""", text) and "url(http" not in text and "@import" not in text
    assert "default-src 'none'" in text


def test_an_empty_lake_and_an_unknown_sweep_say_so(tmp_path: Path, lake_root: Path) -> None:
    with open_lake(tmp_path / "none") as lake, pytest.raises(ConfigError, match="no cell to report"):
        write_report(lake, tmp_path / "r.html")
    with open_lake(lake_root) as lake:
        with pytest.raises(ConfigError, match="sweep 'x'"):
            write_report(lake, tmp_path / "r.html", sweep_id="x")
        assert not (tmp_path / "r.html").exists()
        made = write_report(lake, tmp_path / "r.html", sweep_id="s1")
    assert (made.n_cells, made.n_servers) == (8, 1)


def test_a_sweep_keeps_its_doubts_when_a_newer_one_has_measured_the_same(tmp_path: Path) -> None:
    old = run_rows("a", "x", cells(weights="real", cpu_fallback="no_gpu_driver", download_active=True))
    new = run_rows("b", "x", later(30), cells(weights="real", download_active=False), sweep_id="s2")
    for rows in (old, new):
        land(tmp_path, rows["server_runs"][0]["server_run_id"], rows)
    with open_lake(tmp_path, documented=False) as lake:
        found = {sweep: report_data(lake, sweep)["cells"] for sweep in ("s1", "s2", "")}
    flags = {
        sweep: {
            FLAGS[bit]
            for bits, outcome in zip(c["f"], c["outcome"]["i"], strict=True)
            if c["outcome"]["of"][outcome] == "measured"
            for bit in range(len(FLAGS))
            if bits & 1 << bit
        }
        for sweep, c in found.items()
    }
    assert flags["s1"] >= {"cpu_fallback", "download_active"}
    assert not flags["s2"] & {"cpu_fallback", "download_active"} and flags["s2"] == flags[""]


def test_noise_is_told_by_the_intervals_of_the_mean(browser: Any, tmp_path: Path) -> None:
    """Repeats of 100, 100, 100, 100 and 60 have a mean of 92 ± 22.2: 120 is no noise, though near the median."""
    uneven = {"median": 100.0, "mean": 92.0, "ci95_low": 69.8, "ci95_high": 114.2, "min": 60.0, "max": 100.0}
    steady = {"median": 120.0, "mean": 120.0, "ci95_low": 119.9, "ci95_high": 120.1, "min": 119.9, "max": 120.1}
    for name, speed in (("x", uneven), ("y", steady)):
        rows = run_rows(name, name, cells(weights="real"))
        for cell in rows["cells"]:
            if cell["outcome"] == "measured":
                cell.update({f"tok_per_s_{key}": value for key, value in speed.items()})
        land(tmp_path / "lake", name, rows)
    with open_lake(tmp_path / "lake", documented=False) as lake:
        write_report(lake, tmp_path / "report.html")
        assert not any(r["within_noise"] for r in query(lake, "FROM compare('x', 'y')").to_dicts())
    page = browser.new_page()
    page.goto(f"{(tmp_path / 'report.html').as_uri()}#cmp=local/x,local/y")
    page.wait_for_selector("html[data-ready]", timeout=60_000)
    compared = page.locator("#compare table").first.locator("tbody").inner_text()
    page.close()
    assert "1.20×" in compared and "≈" not in compared


def test_a_price_that_is_not_known_is_below_no_limit(opened: Open) -> None:
    page = opened(CELL)
    first = names(page)[0]
    page.evaluate("id => { D.runs.usd[D.servers[D.serverByName.get(id)].run] = null }", first)
    n_all = page.evaluate("candidates().length")
    page.locator("[name=max]").fill("100000")
    settled(page)
    assert page.evaluate("candidates().length") == n_all - 1


def test_a_hundred_thousand_cells_stay_a_small_file(tmp_path: Path) -> None:
    n_cells = write_fleet(tmp_path / "lake", 1600)
    with open_lake(tmp_path / "lake", documented=False) as lake:
        made = write_report(lake, tmp_path / "report.html")
    assert n_cells > 100_000 and made.n_cells == n_cells and made.n_bytes < 8_000_000
