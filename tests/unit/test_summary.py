"""What the Prefect UI shows of a sweep while it runs and when it has ended, without the UI."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from tasks.artifacts import SweepProgress
from tasks.settings import Settings
from tasks.summary import MOST_LINKS, summary
from tasks.wiring import open_services


async def test_progress_tells_what_failed_and_what_is_left(tmp_path: Path) -> None:
    services = open_services(Settings(home=tmp_path))
    progress = SweepProgress("s", 8, Decimal(10))
    assert progress.artifact_id is None, "no Prefect server is asked"
    ends = [("completed", ""), ("failed", "no_place_left"), ("gated", ""), ("interrupted", "server_lost")]
    texts = []
    for number, (outcome, reason) in enumerate([*ends, ("failed", "no_place_left")]):
        progress._shown_s = float("-inf")
        await progress.done(f"server-{number}", outcome, reason, services)
        texts.append(progress.text)
    assert "not completed" not in texts[0] and texts[0].startswith("1 of 8 servers done; 0.0000 USD spent")
    assert "3 not completed (no_place_left 2, server_lost 1)" in texts[-1]
    assert "; about " in texts[-1] and " left; " in texts[-1]
    assert texts[-1].endswith("last: server-4 (failed)")


def test_the_summary_has_ends_cost_by_vendor_and_links_to_what_failed() -> None:
    good = {"outcome": "completed", "reason": "complete", "detail": None}
    bad = {"outcome": "failed", "reason": "no_place_left", "detail": "none in\n eu-1 | eu-2"}
    rows = {("aws", f"good-{n}"): good for n in range(2)} | {("gcp", f"bad-{n}"): bad for n in range(MOST_LINKS + 3)}
    cost = {"vendor": "aws", "n_servers": 2, "n_servers_measured": 2, "billed_h": 1.5, "spent_usd": Decimal("0.75")}
    text = summary(rows, [{**cost, "usd_per_measured_cell": None}], {("gcp", "bad-1"): "http://ui/run/1"}, 60)
    assert text.startswith("# 2 of 60 servers completed\n")
    assert f"| {MOST_LINKS + 3} | failed | no_place_left |" in text and "| 5 | not reached | |" in text
    assert "| aws | 2 | 2 | 1.50 | 0.7500 |  |" in text
    assert "| [gcp/bad-1](http://ui/run/1) | failed | no_place_left | none in eu-1 \\| eu-2 |" in text
    assert "and 3 more" in text
