"""python -m tests.benchmarks.fleet --servers N --workers W: a fleet of simulated servers, with faults, on this machine.

First the starts of `--plain` servers, at the pace of life, are compared with those of as many plain gated subflows
that only sleep (0: they are not). Then PostgreSQL, a Prefect server, workers and the controller are started, the sweep
is carried out and judged: every server has an outcome, the cap holds, nothing is left. `--inline` does it in one
process on SQLite instead, and counts the server's 5xx.
`--chaos` kills a worker, PostgreSQL, the Prefect server and the controller in its middle, and starts them again.
Exit code 1 when the sweep did not keep a promise.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from rich.console import Console

from tasks.clouds.sim import SimCloud
from tasks.ledger import Ledger
from tasks.settings import Settings
from tasks.wiring import open_services
from tests.benchmarks import this_machine
from tests.benchmarks.fleet_ssh import FleetSshd
from tests.benchmarks.fleet_starts import compare_starts, places, start_times, tell_starts
from tests.benchmarks.result import Result, Table, save, show
from tests.benchmarks.watch import ProcessWatch
from tests.e2e.product import CHECKOUT, Product, Running
from tests.flows.chaos import chaos
from tests.flows.installation import Installation

MOST_PASSES = 12
ACCESS = re.compile(r'"(GET|POST|PATCH|PUT|DELETE) (\S+) HTTP/[\d.]+" (\d{3})')
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


def main() -> int:
    args = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything started here is ended
    folder = Path(tempfile.mkdtemp(prefix="tokensweep-fleet-"))
    name = "fleet_inline" if args.inline else "fleet"
    result = Result(name, {k: v for k, v in vars(args).items() if k not in ("keep", "inline")})
    result.settings["commit"] = _commit()
    watch, began = this_machine.Watch(), time.monotonic()
    result.began = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    try:
        problems = []
        if args.plain and not args.inline:
            problems += compare_starts(args, folder / "starts", preset(args), result)
        problems += _inline(args, folder, result) if args.inline else _fleet(args, folder / "fleet", result)
    finally:
        if args.keep:
            print(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    result.machine, result.took_s = watch.facts(), time.monotonic() - began
    result.warnings += problems
    show(result, Console(width=None if sys.stdout.isatty() else 160))
    print(f"raw figures in {save(result)}")
    return 1 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fleet", description=__doc__)
    parser.add_argument("--servers", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=int, default=1, help="shards at once in a worker")
    parser.add_argument("--shard", type=int, default=100, help="servers in a shard")
    parser.add_argument("--parallel", type=int, default=100, help="server runs at once in a shard")
    parser.add_argument("--speedup", type=float, default=30.0, help="simulated seconds per second")
    parser.add_argument("--faults", type=float, default=0.02, help="rate of each class of faults")
    parser.add_argument("--ssh", type=float, default=0.0, help="share of the servers that is reached over real SSH")
    parser.add_argument("--plain", type=int, default=200, help="servers, and plain subflows, whose starts are compared")
    parser.add_argument("--minutes", type=float, default=30.0, help="the sweep must end within them")
    parser.add_argument("--chaos", action="store_true", help="kill everything in the middle, and start it again")
    parser.add_argument("--inline", action="store_true", help="one process, SQLite")
    parser.add_argument("--keep", action="store_true", help="leave the folder, with all logs")
    return parser


def preset(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "vendor": "sim",
        "servers": [f"*:{args.servers}"],
        "models": ["smollm-135m", "qwen1.5-0.5b", "gemma-2b"],
        "weights": "simulated",
        "pp": [16, 128, 512],
        "tg": [16, 128],
        "max_usd": float(args.servers),
        "max_usd_per_server": 1.0,
        "deadline_s": 3600,
        "max_parallel": args.parallel,
        "vendor_options": {"seed": args.servers, "speedup": args.speedup, "faults": args.faults},
    }


def _fleet(args: argparse.Namespace, folder: Path, result: Result) -> list[str]:
    folder.mkdir()
    if not args.ssh:
        return _sweep(args, folder, result, {}, dict)
    sshd = FleetSshd(folder / "sshd", args.ssh)
    with sshd.running():
        problems = _sweep(args, folder, result, sshd.settings, lambda: {"sshd and agents": sshd.pids()})
    return problems + sshd.tell(result)


def _sweep(
    args: argparse.Namespace,
    folder: Path,
    result: Result,
    settings: dict[str, str],
    besides: Callable[[], dict[str, list[int]]],
) -> list[str]:
    fleet = Installation(folder, folder / "cache", {"TOKENSWEEP_SHARD_SERVERS": str(args.shard)} | settings)
    product = fleet.product
    product.preset(**preset(args))
    controller: Running | None = None

    def roots() -> dict[str, list[int]]:
        return {
            "postgres": [fleet.postgres.process.pid],
            "prefect server": [fleet.server.pid] if fleet.server else [],
            "worker": [worker.pid for worker in fleet.workers],
            "controller": [controller.process.pid] if controller else [],
        } | besides()

    def role_of(name: str, command: str) -> str:
        return "shard" if name == "worker" and "worker start" not in command else name

    try:
        fleet.start_server()
        fleet.deploy()
        for _ in range(args.workers):
            fleet.start_worker(args.limit)
        prefect_db = sa.create_engine(fleet.postgres.url("psycopg", "prefect"))
        before, commits_before = _database_sizes(fleet), _ledger_commits(fleet)
        if args.chaos:
            survived = chaos(
                fleet, str(folder / "tiny.yaml"), args.servers, landed_first=args.servers // 10, paced=True
            )
            result.findings.append(
                f"killed with {survived.n_landed_before} of {args.servers} server runs landed and "
                f"{len(survived.samples)} cells measured; refused {survived.n_refused} early restarts"
            )
            after = product.samples()
            lost = [key for key, seconds in survived.samples.items() if after.get(key) != seconds]
            return [*(f"LOST: {key}" for key in lost), *judge(product, args.servers, result)]
        with ProcessWatch(roots, role_of) as seen:
            began = time.monotonic()
            controller = product.start("run", str(folder / "tiny.yaml"), "--yes", "--fan-out", "workers")
            done = controller.end(timeout_s=60.0 * args.minutes)
            took_s = time.monotonic() - began
        result.raw["rc"], result.raw["took_s"] = done.rc, took_s
        if done.rc not in (0, 4, 6):
            return [f"the sweep ended with {done}"[:2000]]
        starts = start_times(prefect_db, "server")
        tell_starts(result, "server", starts, places(args))
        _tell_processes(result, seen, args.servers)
        _tell_databases(result, before, _database_sizes(fleet), args.servers)
        result.raw["rows"] = _rows(prefect_db)
        n_commits = _ledger_commits(fleet) - commits_before
        result.findings.append(f"{n_commits / args.servers:.0f} transactions of the ledger per server run")
        result.findings.append(f"{args.servers} servers in {took_s:.0f} s")
        prefect_db.dispose()
        return judge(product, args.servers, result)
    finally:
        fleet.close()


def _inline(args: argparse.Namespace, folder: Path, result: Result) -> list[str]:
    product = Product(folder / "home", folder / "cache", {"PREFECT_SERVER_LOGGING_LEVEL": "INFO"})
    product.preset(**preset(args))
    controller = product.start("run", str(folder / "tiny.yaml"), "--yes")

    def role_of(name: str, command: str) -> str:
        return "prefect server" if "server start" in command or "uvicorn" in command else name

    began = time.monotonic()
    with ProcessWatch(lambda: {"controller": [controller.process.pid]}, role_of) as seen:
        done = controller.end(timeout_s=60.0 * args.minutes)
    took_s = time.monotonic() - began
    result.raw["rc"], result.raw["took_s"] = done.rc, took_s
    if done.rc not in (0, 4, 6):
        return [f"the sweep ended with {done}"[:2000]]
    database = product.home / "prefect" / "prefect.db"
    prefect_db = sa.create_engine(f"sqlite:///{database}")
    tell_starts(result, "server", start_times(prefect_db, "server"), args.parallel)
    _tell_processes(result, seen, args.servers)
    result.raw["rows"] = _rows(prefect_db)
    result.findings.append(
        f"{args.servers} servers in {took_s:.0f} s; Prefect's SQLite {database.stat().st_size / 1e6:.0f} MB"
    )
    return _tell_answers(result, product.home / "prefect-server.log", args.servers) + judge(
        product, args.servers, result
    )


# ---- what must be true ------------------------------------------------------------------------------


def judge(product: Product, n_servers: int, result: Result) -> list[str]:
    """The promises that the sweep did not keep; none is a pass. The reaper passes first, as it does in a fleet."""
    problems = []
    for _ in range(MOST_PASSES):
        if product.run("reap").rc == 0 and product.run("leaks").rc == 0:
            break
    else:
        problems.append(f"LEAK: {product.run('leaks')}")
    cloud = open_services(Settings(home=product.home)).cloud("sim")
    assert isinstance(cloud, SimCloud)
    bill = cloud.bill()
    if bill.usd_per_hour or [thing for thing in cloud.existing() if thing.ours]:
        problems.append(f"LEAK: the meter runs: {bill}")
    ledger = Ledger(product.environment.get("TOKENSWEEP_LEDGER_URL", f"sqlite:///{product.home}/ledger.sqlite"))
    sweeps = {run.sweep_id for run in ledger.server_runs()}
    committed = sum(float(ledger.spent(sweep_id).committed_usd) for sweep_id in sweeps)
    if len(sweeps) != 1 or not 0 < committed <= n_servers or bill.total_usd > n_servers:
        problems.append(f"MONEY: {committed} USD by the ledger, {bill.total_usd} by the meter, cap {n_servers}")
    runs = product.query(
        "SELECT server, outcome, reason FROM server_runs "
        "QUALIFY row_number() OVER (PARTITION BY server ORDER BY started_at DESC) = 1"
    )
    if len(runs) != n_servers or not all(run["outcome"] and run["reason"] for run in runs):
        problems.append(f"OUTCOMES: {len(runs)} of {n_servers} servers have one")
    cells = product.cells()
    if len(cells) != n_servers * 15 or not all(outcome and reason for outcome, reason in cells.values()):
        problems.append(f"CELLS: {len(cells)} of {n_servers * 15} have an outcome")
    outcomes = Counter(run["outcome"] for run in runs)
    measured = sum(outcome == "measured" for outcome, _ in cells.values())
    result.raw["outcomes"] = dict(outcomes)
    result.raw["reasons"] = dict(Counter(run["reason"] for run in runs).most_common())
    result.findings += [
        f"{len(runs)} of {n_servers} servers with an outcome: {dict(outcomes)}",
        f"{len(cells)} cells with an outcome, {measured} measured",
        f"{committed:.2f} USD by the ledger, {bill.total_usd:.2f} by the meter, cap {n_servers}; "
        f"{'nothing is' if not problems else 'SOMETHING IS'} left behind",
        f"calls to the cloud: {cloud.state.counts()}",
    ]
    return problems


# ---- figures ----------------------------------------------------------------------------------------


def _rows(prefect_db: sa.Engine) -> dict[str, int]:
    tables = (
        "flow_run",
        "flow_run_state",
        "task_run",
        "task_run_state",
        "events",
        "event_resources",
        "log",
        "artifact",
    )
    with prefect_db.connect() as db:
        return {t: db.execute(sa.text(f"SELECT count(*) FROM {t}")).scalar_one() for t in tables}


def _tell_processes(result: Result, seen: ProcessWatch, n_servers: int) -> None:
    columns = [
        "role",
        "processes at once",
        "peak MiB of one",
        "peak MiB of all",
        "threads",
        "CPU s",
        "CPU s per server run",
    ]
    table = Table("Processes", columns, [])
    for name, role in seen.roles.items():
        figures = [f"{role.peak_mib:.0f}", f"{role.sum_peak_mib:.0f}", str(role.most_threads), f"{role.cpu_s:.0f}"]
        table.rows.append([name, str(role.most_processes), *figures, f"{role.cpu_s / n_servers:.3f}"])
    total_s = sum(role.cpu_s for role in seen.roles.values())
    table.rows.append(["all", "", "", "", "", f"{total_s:.0f}", f"{total_s / n_servers:.3f}"])
    result.tables.append(table)
    result.raw["cpu_s"] = {name: role.cpu_s for name, role in seen.roles.items()}


def _database_sizes(fleet: Installation) -> dict[str, int]:
    with sa.create_engine(fleet.postgres.url("psycopg", "postgres")).connect() as db:
        return {
            name: db.execute(sa.text(f"SELECT pg_database_size('{name}')")).scalar_one()
            for name in ("prefect", "ledger")
        }


def _ledger_commits(fleet: Installation) -> int:
    sql = "SELECT xact_commit FROM pg_stat_database WHERE datname = 'ledger'"
    with sa.create_engine(fleet.postgres.url("psycopg", "postgres")).connect() as db:
        return int(db.execute(sa.text(sql)).scalar_one())


def _tell_databases(result: Result, before: dict[str, int], after: dict[str, int], n_servers: int) -> None:
    for name, n_bytes in after.items():
        grown = n_bytes - before[name]
        result.findings.append(
            f"database {name}: {grown / 1e6:.1f} MB more, {grown / n_servers / 1e3:.1f} kB per server run"
        )


def _tell_answers(result: Result, log: Path, n_servers: int) -> list[str]:
    """Of the access log of Prefect's server: calls by kind, and the 5xx, of which there must be none."""
    found = ACCESS.findall(log.read_text(errors="replace"))
    calls = Counter(f"{method} {ID.sub('ID', path)}" for method, path, _ in found)
    failed = Counter(f"{method} {ID.sub('ID', path)} {status}" for method, path, status in found if status[0] == "5")
    result.raw["calls"], result.raw["5xx"] = dict(calls.most_common()), dict(failed)
    result.findings.append(
        f"{len(found)} calls to Prefect, {len(found) / n_servers:.1f} per server run; 5xx: {dict(failed)}"
    )
    if not found:
        return ["the server's access log shows no call at all"]
    return [f"5xx: {dict(failed)}"] if failed else []


def _commit() -> str:
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
