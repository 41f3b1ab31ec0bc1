"""What is done before and after every sweep: end what nobody uses, save what a dead controller had measured."""

from __future__ import annotations

import fcntl
import logging
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.clouds.accounts import account_of
from tasks.clouds.deletion import classify
from tasks.domain.errors import TokensweepError
from tasks.domain.reaping import DEFAULT_RULES
from tasks.domain.run_plan import RunPlan
from tasks.leaks import not_listed
from tasks.ledger import RunState, ServerRun
from tasks.planning import known_type
from tasks.publish import RunRecord, land_now
from tasks.reaper import ReapReport, reap
from tasks.remote.spool import Spool
from tasks.wiring import Services

HEARTBEAT_FRESH_S = 120.0
PROVE_S = 30.0
UNKNOWN_AFTER_S = 600.0
"""A run writes its plan a moment before it is in the ledger."""

logger = logging.getLogger(__name__)

_passing = threading.Lock()


@dataclass(frozen=True)
class Recovered:
    """A run whose controller died. `landed`: its measured cells are in the lake now."""

    run: ServerRun
    landed: bool
    problem: str = ""


def recover(services: Services) -> list[Recovered]:
    """Land the spools of runs whose controller is provably dead. A second call finds nothing more to do.

    One that cannot be landed now (its vendor refuses, its plan cannot be read) stays for the next call, and keeps
    nobody else's from landing.
    """
    return [_recover_one(services, run) for run in services.ledger.abandoned_runs()]


def land_leftovers(services: Services) -> list[Recovered]:
    """Land every spool of this machine that nobody follows any more: of dead controllers, of runs whose landing
    failed, and of runs that a lost ledger does not know. A second call finds nothing more to do."""
    found = recover(services)
    done = {recovered.run.server_run_id for recovered in found}
    for plan_path in sorted(services.settings.spool_dir.glob("*.plan.json")):
        server_run_id = plan_path.name.removesuffix(".plan.json")
        run = services.ledger.server_run(server_run_id)
        begins = run is None and time.time() - plan_path.stat().st_mtime < UNKNOWN_AFTER_S
        if server_run_id in done or begins or (run is not None and run.state is RunState.RUNNING):
            continue
        if run is not None and run.state is RunState.LANDED:  # it was killed between landing and tidying up
            for path in services.settings.spool_dir.glob(f"{server_run_id}.*"):
                path.unlink(missing_ok=True)
            continue
        try:
            found.append(_recover_one(services, _taken_over(services, plan_path, run)))
        except Exception as exc:
            problem = str(exc) if isinstance(exc, TokensweepError) else f"{type(exc).__name__}: {exc}"
            found.append(Recovered(run or _unknown(server_run_id, plan_path), False, problem))
    return found


def _taken_over(services: Services, plan_path: Path, known: ServerRun | None) -> ServerRun:
    """The run of a spool as one of this process; for a run that the ledger knows as ended, or not at all."""
    plan = RunPlan.from_json(plan_path.read_text())
    spool = plan_path.with_name(f"{plan.server_run_id}.jsonl")
    vendor = known.vendor if known else RunRecord.read_beside(spool, 0.0).vendor
    return services.ledger_of(vendor).begin_run(
        plan.server_run_id, sweep_id=plan.sweep_id, server=plan.server, vendor=vendor, spool_path=str(spool)
    )


def _unknown(server_run_id: str, plan_path: Path) -> ServerRun:
    return ServerRun(
        server_run_id=server_run_id,
        sweep_id="",
        server="",
        vendor="",
        state=RunState.INTERRUPTED,
        spool_path=str(plan_path),
        started_unix_s=0.0,
        ended_unix_s=None,
        controller="",
        host="",
        pid=0,
    )


def _recover_one(services: Services, run: ServerRun) -> Recovered:
    try:
        return _land_spool(services, run)
    except TokensweepError as exc:
        return Recovered(run, False, str(exc))
    except Exception as exc:  # an SDK may raise anything while its account is opened
        logger.warning("%s", run.server_run_id, exc_info=exc)
        return Recovered(run, False, f"{run.vendor}: {type(exc).__name__}: {exc}")


def _land_spool(services: Services, run: ServerRun) -> Recovered:
    spool = Path(run.spool_path)
    plan_path = spool.with_suffix(".plan.json")
    with _alone_with(plan_path) as mine:
        if not plan_path.is_file():
            services.ledger_of(run.vendor).end_run(run.server_run_id, RunState.INTERRUPTED)
            return Recovered(run, False, "it had not begun to measure")
        newest = services.ledger.server_run(run.server_run_id)
        if not mine or (newest is not None and newest.state is RunState.LANDED):
            return Recovered(run, False, "another process is landing it, or just has")
        plan = RunPlan.from_json(plan_path.read_text())
        server_type = known_type(services.cloud(run.vendor), run.server)
        record = RunRecord.read_beside(spool, run.started_unix_s)
        if not _has_finished(spool):
            record.outcome, record.reason = "interrupted", "controller_died"
            record.detail = f"its controller (pid {run.pid} on {run.host}) ended without finishing it"
        land_now(plan, spool, record, server_type, services)
    return Recovered(run, True)


@contextmanager
def _alone_with(plan_path: Path) -> Iterator[bool]:
    """Whether nobody else is landing that run, for as long as the block takes. Two that did would be one too many: the
    second finds the spool of the first gone, and what it lands in place of the measured cells is empty."""
    with ExitStack() as held:
        try:
            plan = held.enter_context(plan_path.open("rb"))
            fcntl.flock(plan, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back by the kernel, however this process ends
        except FileNotFoundError:
            yield True
        except BlockingIOError:
            yield False
        else:
            yield True


def _has_finished(spool_path: Path) -> bool:
    """Whether the agent had said its last word: then only teardown and landing were missing."""
    with Spool(spool_path) as spool:
        return any(event.get("kind") == "Finished" for event in spool.read_all())


def pass_of_the_reaper(
    services: Services,
    *,
    vendors: Collection[str] | None = None,
    prove_s: float | None = None,
    dry_run: bool = False,
) -> ReapReport:
    """One pass over every vendor that is set up and can be opened, or over these and those that the ledger knows open
    resources of; leaves the heartbeat without which nothing is created.

    prove_s: how long to wait for proofs, by default as long as the vendors' listings need for them.
    """
    clouds, broken = services.clouds_that_open() if vendors is None else (services.clouds(vendors), {})
    if prove_s is None:
        prove_s = PROVE_S + 4 * max((cloud.traits.visibility_lag_s for cloud in clouds), default=0.0)
    report = reap(
        clouds,
        services.ledger_or_volatile()[0],
        time.time,
        time.sleep,
        prove_s=prove_s,
        dry_run=dry_run,
        reaper_id=f"sweep-{uuid.uuid4().hex[:8]}",
    )
    report.listed += not_listed(broken, time.time())
    return report


def heartbeat_is_fresh(services: Services, vendor: str) -> bool:
    """False where it cannot be told whose account that is: the gate of the create says why, in the vendor's words."""
    cloud, now_unix_s = services.cloud(vendor), services.clock(vendor).now()
    try:
        account = account_of(cloud)
    except Exception as exc:
        logger.warning("%s: the account of the credentials cannot be told: %s", vendor, classify(cloud, exc).message)
        return False
    beat_unix_s = services.ledger.last_beat(vendor, now_unix_s + DEFAULT_RULES.skew_s, account=account)
    return beat_unix_s is not None and now_unix_s - beat_unix_s < HEARTBEAT_FRESH_S


def ensure_heartbeat(services: Services, vendor: str) -> None:
    """Pass over the vendor once, unless that was done just now. Server runs that ask together share one pass."""
    if heartbeat_is_fresh(services, vendor):
        return
    with _passing:
        if not heartbeat_is_fresh(services, vendor):
            pass_of_the_reaper(services, vendors=(vendor,), prove_s=0.0)
