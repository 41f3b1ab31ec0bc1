"""How fast server runs are started, beside plain gated subflows of Prefect that only sleep.

Servers run at the pace of life here: in time that is sped up 30 or 60 times the work of those that have started takes
the cores from the starts as it never does in a sweep, whose servers last 10 to 90 minutes each.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from flows.inline import STARTS_AT_ONCE_ON_WORKERS
from tests.benchmarks import plain_subflows
from tests.benchmarks.result import Result
from tests.benchmarks.watch import ProcessWatch
from tests.e2e.product import CHECKOUT
from tests.flows.installation import Installation

PLAIN_SLEEP_S = 60.0
PATIENCE_S = 300.0
MOST_PASSES = 12


def compare_starts(args: argparse.Namespace, folder: Path, preset: dict[str, Any], result: Result) -> list[str]:
    """`args.plain` of each, in as many processes, one after the other on a Prefect server and PostgreSQL of their own.
    The servers are cancelled once all have started; what that leaves behind is a problem."""
    n_shards = args.workers * args.limit
    folder.mkdir()
    fleet = Installation(folder, folder / "cache", {"TOKENSWEEP_SHARD_SERVERS": str(-(-args.plain // n_shards))})
    at_pace = {**preset["vendor_options"], "seed": args.plain, "speedup": 1.0}
    fleet.product.preset(
        **{**preset, "servers": [f"*:{args.plain}"], "max_usd": float(args.plain), "vendor_options": at_pace}
    )

    try:
        fleet.start_server()
        fleet.deploy()
        for _ in range(args.workers):
            fleet.start_worker(args.limit)
        prefect_db = sa.create_engine(fleet.postgres.url("psycopg", "prefect"))
        problems = _servers(fleet, str(folder / "tiny.yaml"), args.plain, prefect_db)
        _plain(args, fleet, result, n_shards)
        ours, theirs = (_starts_per_s(result, name, prefect_db) for name in ("server", plain_subflows.NAME))
        prefect_db.dispose()
        result.findings.append(f"starts of servers over starts of plain subflows: {ours / theirs:.2f}")
        return problems
    finally:
        fleet.close()


def _servers(fleet: Installation, preset: str, n: int, prefect_db: sa.Engine) -> list[str]:
    controller = fleet.product.start("run", preset, "--yes", "--fan-out", "workers")
    n_started = _until_started(prefect_db, "server", n)
    controller.signal(signal.SIGINT)
    controller.end(timeout_s=PATIENCE_S)
    for _ in range(MOST_PASSES):
        if fleet.product.run("reap").rc == 0 and fleet.product.run("leaks").rc == 0:
            break
    else:
        return [f"LEAK after the starts: {fleet.product.run('leaks')}"]
    return [] if n_started == n else [f"STARTS: {n_started} of {n} servers in {PATIENCE_S:.0f} s"]


def _plain(args: argparse.Namespace, fleet: Installation, result: Result, n_shards: int) -> None:
    """As many processes as there were shards at once, with as many subflows at once in each."""
    each = -(-args.plain // n_shards)
    options = map(str, (each, args.parallel, STARTS_AT_ONCE_ON_WORKERS, PLAIN_SLEEP_S))
    command = [sys.executable, "-m", plain_subflows.__name__, *options]
    running = [
        subprocess.Popen(
            command, env=fleet.product.env(), cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(n_shards)
    ]
    with ProcessWatch(lambda: {"plain": [p.pid for p in running]}, lambda name, _: name) as seen:
        for process in running:
            process.wait()
    role = seen.roles["plain"]
    result.findings.append(
        f"plain subflows: {role.cpu_s / (each * n_shards):.3f} CPU s each in their own processes, "
        f"peak {role.peak_mib:.0f} MiB"
    )


def _until_started(prefect_db: sa.Engine, flow: str, n: int) -> int:
    end = time.monotonic() + PATIENCE_S
    while (n_started := len(start_times(prefect_db, flow))) < n and time.monotonic() < end:
        time.sleep(1.0)
    return n_started


def _starts_per_s(result: Result, flow: str, db: sa.Engine) -> float:
    starts = start_times(db, flow)
    rate = (len(starts) - 1) / (starts[-1] - starts[0])
    result.raw[f"starts at the pace of life, {flow}"] = [round(s - starts[0], 3) for s in starts]
    result.findings.append(f"flow {flow}, at the pace of life: {len(starts)} started, {rate:.1f} a second")
    return rate


def places(args: argparse.Namespace) -> int:
    """Server runs at once in all processes of the fleet."""
    return int(args.parallel * args.workers * args.limit)


def start_times(prefect_db: sa.Engine, flow: str) -> list[float]:
    """When each run of the flow started, in unix seconds."""
    sql = "SELECT start_time FROM flow_run JOIN flow ON flow.id = flow_run.flow_id WHERE flow.name = :flow ORDER BY 1"
    with prefect_db.connect() as db:
        found = [row[0] for row in db.execute(sa.text(sql), {"flow": flow}) if row[0] is not None]
    return [datetime.fromisoformat(x).timestamp() if isinstance(x, str) else x.timestamp() for x in found]


def tell_starts(result: Result, flow: str, starts: list[float], n_places: int) -> None:
    """Starts a second over all, and while places were free: the first ones of every process."""
    first = starts[:n_places]
    result.raw[f"starts {flow}"] = [round(s - starts[0], 3) for s in starts]
    if len(first) > 1:
        whole_s, first_s = starts[-1] - starts[0], first[-1] - first[0]
        result.findings.append(
            f"flow {flow}: {len(starts)} started; the first {len(first)} in {first_s:.1f} s, "
            f"{(len(first) - 1) / first_s:.1f} a second; "
            f"all in {whole_s:.0f} s, {(len(starts) - 1) / whole_s:.1f} a second"
        )
