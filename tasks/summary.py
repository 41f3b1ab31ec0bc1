"""The end of a sweep on one page of the Prefect UI: how its servers ended and why, what each vendor cost, and a link to
each server that did not complete."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import get_client
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName, FlowRunFilterTags
from prefect.utilities.urls import url_for

from tasks.artifacts import WELL_ENDED, best_effort
from tasks.publish import ended_runs, spend
from tasks.threads import in_thread
from tasks.wiring import Services

MOST_LINKS = 50
THE_BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)

Server = tuple[str, str]
"""Vendor and server type."""


@best_effort
async def publish_summary(services: Services, sweep_id: str, n_servers: int) -> None:
    """Of the sweep as a whole, earlier attempts included. n_servers: that were to be run in this one."""
    rows = await in_thread(ended_runs, services, sweep_id, THE_BEGINNING, ())
    costs = await in_thread(spend, services, sweep_id)
    bad = [server for server, row in rows.items() if row["outcome"] not in WELL_ENDED][:MOST_LINKS]
    text = summary(rows, costs, await _links(sweep_id, bad), n_servers)
    await acreate_markdown_artifact(text, key="summary", description=f"How the servers of {sweep_id} ended, and cost")


def summary(
    rows: Mapping[Server, Mapping[str, Any]],
    costs: Sequence[Mapping[str, Any]],
    links: Mapping[Server, str],
    n_servers: int,
) -> str:
    """rows: the last run of each server. costs: v_spend. links: to the flow runs of servers."""
    good = sum(row["outcome"] in WELL_ENDED for row in rows.values())
    lines = [f"# {good:,} of {max(len(rows), n_servers):,} servers completed", ""]
    lines += ["| servers | outcome | reason |", "|--:|---|---|"]
    ends = Counter((row["outcome"], row["reason"] or "") for row in rows.values())
    lines += [f"| {n:,} | {outcome} | {reason} |" for (outcome, reason), n in ends.most_common()]
    if n_servers > len(rows):
        lines.append(f"| {n_servers - len(rows):,} | not reached | |")
    lines += [
        "",
        "| vendor | servers | measured | billed hours | USD | USD per measured cell |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for cost in costs:
        per_cell = "" if cost["usd_per_measured_cell"] is None else f"{cost['usd_per_measured_cell']:.6f}"
        lines.append(
            f"| {cost['vendor']} | {cost['n_servers']:,} | {cost['n_servers_measured']:,} "
            f"| {cost['billed_h'] or 0:.2f} | {cost['spent_usd'] or 0:.4f} | {per_cell} |"
        )
    bad = {server: row for server, row in rows.items() if row["outcome"] not in WELL_ENDED}
    if not bad:
        return "\n".join(lines)
    lines += ["", "## Not completed", "", "| server | outcome | reason | what was said |", "|---|---|---|---|"]
    for server, row in list(bad.items())[:MOST_LINKS]:
        name = "/".join(server)
        shown = f"[{name}]({links[server]})" if server in links else name
        said = " ".join((row["detail"] or "").replace("|", "\\|").split())
        lines.append(f"| {shown} | {row['outcome']} | {row['reason'] or ''} | {said[:200]} |")
    if len(bad) > MOST_LINKS:
        lines += ["", f"… and {len(bad) - MOST_LINKS:,} more: `tokensweep query 'FROM v_failures'`"]
    return "\n".join(lines)


async def _links(sweep_id: str, servers: Sequence[Server]) -> dict[Server, str]:
    """To the newest flow run of each."""
    if not servers:
        return {}
    wanted = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[f"sweep:{sweep_id}"]),
        name=FlowRunFilterName(any_=["/".join(server) for server in servers]),
    )
    async with get_client() as client:
        found = await client.read_flow_runs(flow_run_filter=wanted, limit=200)
    found.sort(key=lambda run: run.expected_start_time or THE_BEGINNING)
    urls = {run.name: url_for(run) for run in found}
    return {server: url for server in servers if (url := urls.get("/".join(server)))}
