"""What the Prefect UI shows of a sweep: plan, progress, results and the leak proof, under keys that stay the same."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from decimal import Decimal
from functools import wraps
from typing import Any, ParamSpec
from uuid import UUID

import humanize
from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)

from tasks.domain.sweep_plan import SweepPlan
from tasks.leaks import LeakReport
from tasks.ledger import RunState
from tasks.occurrences import tell_budget, tell_leaks
from tasks.progress import say
from tasks.publish import results
from tasks.threads import in_thread
from tasks.wiring import Services

P = ParamSpec("P")
PUBLISH_S = 30.0
SHOW_EVERY_S, LOOK_EVERY_S = 2.0, 15.0
"""Progress of a large sweep; each is a call to Prefect and one or two to the ledger."""
MOST_REASONS = 5
WELL_ENDED = ("completed", "gated")

logger = logging.getLogger(__name__)


def best_effort(publish: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """What is only shown must not end a sweep when Prefect's API is away: then it is logged, and not shown."""

    @wraps(publish)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            async with asyncio.timeout(PUBLISH_S):  # wait_for may swallow a cancellation, until Python 3.12
                await publish(*args, **kwargs)
        except Exception as exc:
            logger.warning("%s: not shown: %s: %s", publish.__name__, type(exc).__name__, exc)

    return guarded


@best_effort
async def publish_plan(plan: SweepPlan) -> None:
    rows = [
        {
            "server": s.offer.name,
            "vCPUs": s.offer.vcpus,
            "memory GiB": round(s.offer.memory_bytes / 2**30, 1),
            "USD/h": f"{s.offer.usd_per_hour.normalize():f}",
            "minutes": f"{s.low_s / 60:.0f} to {s.high_s / 60:.0f}" if s.run else "",
            "USD": f"{s.low_usd} to {s.high_usd}" if s.run else "",
            "models": " ".join(s.models),
            "run": "yes" if s.run else f"no: {s.why}",
        }
        for s in plan.servers
    ]
    await acreate_table_artifact(rows, key="plan", description=f"Plan of {plan.sweep_id}, at most {plan.high_usd} USD")


class SweepProgress:
    """Servers done out of all, money out of the cap, the time that is left and what failed, as a bar that moves."""

    def __init__(self, sweep_id: str, total: int, cap_usd: Decimal) -> None:
        self.sweep_id, self.total, self.cap_usd, self.n_done = sweep_id, total, cap_usd, 0
        self.failures: Counter[str] = Counter()
        self.budget_told = False
        self._began_s = time.monotonic()
        self._shown_s = float("-inf")
        self.text = ""
        self.artifact_id: UUID | None = None

    @best_effort
    async def begin(self) -> None:
        created: Any = await acreate_progress_artifact(
            progress=0.0, key="progress", description=f"{self.sweep_id}: servers done of {self.total}"
        )
        self.artifact_id = created

    @best_effort
    async def done(self, server: str, outcome: str, reason: str, services: Services) -> None:
        """One more server of this process; four fifths of the cap are told once, as an event."""
        self.n_done += 1
        if outcome not in WELL_ENDED:
            self.failures[reason or outcome] += 1
        if self.n_done == self.total or time.monotonic() - self._shown_s >= SHOW_EVERY_S:
            await self._show(services, f"last: {server} ({outcome})")

    @best_effort
    async def look(self, services: Services, earlier: Collection[str]) -> None:
        """How far others are with the sweep's servers, by the ledger. earlier: runs that are not of this attempt."""
        if time.monotonic() - self._shown_s < LOOK_EVERY_S:
            return
        runs = [
            r for r in await in_thread(services.ledger.server_runs, self.sweep_id) if r.server_run_id not in earlier
        ]
        n_running = sum(run.state is RunState.RUNNING for run in runs)
        self.n_done = len({(run.vendor, run.server) for run in runs}) - n_running
        before = self.text
        await self._show(services, f"{n_running:,} under way")
        if self.text != before:
            say("", self.text, self.n_done / self.total)

    async def _show(self, services: Services, more: str) -> None:
        self._shown_s = time.monotonic()
        spent = await in_thread(services.ledger.spent, self.sweep_id)
        if not self.budget_told:
            self.budget_told = tell_budget(self.sweep_id, spent.committed_usd, self.cap_usd)
        money = f"{spent.settled_usd:.4f} USD spent and {spent.reserved_usd:.4f} reserved of {self.cap_usd}"
        parts = [f"{self.n_done:,} of {self.total:,} servers done", money, self._left(), self._failed(), more]
        self.text = "; ".join(part for part in parts if part)
        if self.artifact_id is not None:
            share = 100.0 * self.n_done / self.total
            await aupdate_progress_artifact(self.artifact_id, progress=share, description=self.text)

    def _left(self) -> str:
        """At the pace so far."""
        if not 0 < self.n_done < self.total:
            return ""
        left_s = (time.monotonic() - self._began_s) / self.n_done * (self.total - self.n_done)
        unit = "minutes" if left_s >= 120 else "seconds"
        return f"about {humanize.precisedelta(left_s, minimum_unit=unit, format='%0.0f')} left"

    def _failed(self) -> str:
        if not self.failures:
            return ""
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in self.failures.most_common(MOST_REASONS))
        return (
            f"{self.failures.total():,} not completed ({reasons}{', …' if len(self.failures) > MOST_REASONS else ''})"
        )


@best_effort
async def publish_results(services: Services, sweep_id: str) -> None:
    """The closing table: one row per server and model, a column per length, with the reason where there is no speed."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in await in_thread(results, services, sweep_id):
        row = rows.setdefault(
            (cell["server"], cell["model"]),
            {"server": cell["server"], "model": cell["model"], "weights": cell["weights"]},
        )
        row[f"{cell['task']}{cell['n_tokens']} tok/s"] = cell_text(cell)
    title = f"Results of {sweep_id}: median tokens/s ± half-width of the 95 % interval"
    await acreate_table_artifact(list(rows.values()), key="results", description=title)


def cell_text(cell: dict[str, Any]) -> str:
    """A cell for people: speed with its spread, or why there is none."""
    speed = cell["tok_per_s_median"]
    if speed is None:
        return f"{cell['outcome']}: {cell['reason']}"
    text = f"{speed:.1f}"
    if cell["half_width_pct"] is not None:
        text += f" ±{cell['half_width_pct']:.1f} %"
    if cell.get("cpu_fallback"):
        text += f" on the CPU ({cell['cpu_fallback']})"
    elif (offloaded := cell.get("layers_offloaded")) is not None and offloaded < (cell.get("layers_total") or 0):
        text += f" with {offloaded} of {cell['layers_total']} layers on the GPU"
    return text if cell["outcome"] == "measured" else f"{text} ({cell['reason']})"


@best_effort
async def publish_leaks(report: LeakReport) -> None:
    """Published when there is nothing too: that is the proof. What is left is also told as an event."""
    tell_leaks(report)
    lines = [f"# {report.verdict}", ""]
    if report.items or report.unproven:
        lines += ["| vendor | place | kind | name | age | USD/h | why |", "|---|---|---|---|---|---|---|"]
        for leak in (*report.items, *report.unproven):
            age = "unknown" if leak.age_s is None else humanize.precisedelta(leak.age_s, format="%0.0f")
            cells = (leak.vendor, leak.place, leak.kind, f"**{leak.name}**", age, leak.price, leak.why)
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", "`tokensweep reap` deletes them; the reaper tries it again at every pass.", ""]
    lines.append(f"Servers in use: {len(report.in_use)}. Unanswered creates looked for: {len(report.watched)}.")
    lines += ["", "Listed for this:", "", "| vendor | places | when | resources of ours | |", "|---|---|---|---|---|"]
    for listed in report.listed:
        places = ", ".join(listed.places)
        lines.append(f"| {listed.whose} | {places} | {listed.when} | {listed.n_resources} | {listed.state} |")
    await acreate_markdown_artifact("\n".join(lines), key="leaks", description="What is left behind, and the proof")
