"""Server runs and heartbeats: which run is whose, which was left by a dead controller, when a reaper last passed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from tasks.domain.lifecycle import LedgerError
from tasks.domain.reaping import Liveness
from tasks.ledger.controller import hostname, liveness, this_process
from tasks.ledger.schema import heartbeats, resources, server_runs, sweep_claims
from tasks.ledger.store import Store

_BY_ID = sa.select(server_runs).where(server_runs.c.server_run_id == sa.bindparam("server_run_id"))
_LAST_BEAT = sa.select(sa.func.max(heartbeats.c.unix_s)).where(
    heartbeats.c.vendor == sa.bindparam("vendor"), heartbeats.c.unix_s <= sa.bindparam("until")
)
_LAST_BEAT_OF_ACCOUNT = _LAST_BEAT.where(heartbeats.c.account == sa.bindparam("account"))
_BEAT = sa.text(
    "INSERT INTO heartbeats (reaper_id, vendor, account, unix_s) VALUES (:reaper_id, :vendor, :account, :unix_s) "
    "ON CONFLICT (reaper_id, vendor, account) DO UPDATE SET unix_s = excluded.unix_s"
)
_LAST_DEADLINE = sa.select(sa.func.max(resources.c.deadline_unix_s)).where(
    resources.c.server_run_id == sa.bindparam("server_run_id")
)
_NEW_CLAIM = sa.text(
    "INSERT INTO sweep_claims (sweep_id, controller, host, pid, unix_s) VALUES (:sweep_id, '', '', 0, 0) "
    "ON CONFLICT DO NOTHING"
)
_CLAIM = sa.select(sweep_claims).where(sweep_claims.c.sweep_id == sa.bindparam("sweep_id")).with_for_update()

BEGINS_WITHIN_S = 300.0
"""From the beginning of a sweep to that of its first run, and from that of a run to the intent of its server."""
LANDS_WITHIN_S = 300.0
"""After its server's deadline a run has no more to do than to land."""


class RunState(StrEnum):
    RUNNING = "running"
    LANDED = "landed"  # its rows are in the lake
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, kw_only=True)
class ServerRun:
    """One server run. spool_path: where its events are kept until they have landed. host and pid are for people."""

    server_run_id: str
    sweep_id: str
    server: str
    vendor: str
    state: RunState
    spool_path: str
    started_unix_s: float
    ended_unix_s: float | None
    controller: str
    host: str
    pid: int


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Who carries something out. held: it was not released. unix_s: when it last said so. liveness: of its process, as
    far as that can be seen from here."""

    held: bool
    liveness: Liveness
    unix_s: float


_ENDED = sa.select(server_runs.c.server_run_id).where(server_runs.c.state != RunState.RUNNING.value)


class ServerRuns(Store):
    def begin_run(
        self, server_run_id: str, *, sweep_id: str, server: str, vendor: str, spool_path: str = ""
    ) -> ServerRun:
        """Record that this process runs it. One that was interrupted, or whose controller is dead, is taken over.

        Raises LedgerError when it has landed, or when another controller that may be alive runs it.
        """
        values = {
            "sweep_id": sweep_id,
            "server": server,
            "vendor": vendor,
            "spool_path": spool_path,
            "state": RunState.RUNNING.value,
            "started_unix_s": self.now(),
            "ended_unix_s": None,
            "controller": self.controller,
            "host": hostname(),
            "pid": this_process().pid,
        }
        with self._transaction() as conn:
            old = _find(conn, server_run_id)
            if old is None:
                conn.execute(server_runs.insert().values(server_run_id=server_run_id, **values))
            else:
                _check_free(old, self.controller)
                mine = sa.and_(
                    server_runs.c.server_run_id == server_run_id,
                    server_runs.c.state == old.state.value,
                    server_runs.c.controller == old.controller,
                )
                if conn.execute(server_runs.update().where(mine).values(**values)).rowcount != 1:
                    raise LedgerError(f"The server run {server_run_id} was taken over by another controller just now.")
            return _read(conn, server_run_id)

    def may_still_run(self, run: ServerRun) -> bool:
        """Whether somebody may still carry it out. A controller that cannot be seen from here (a container, another
        machine) counts as dead when the deadline of its server has passed, and the time to land after it."""
        found = liveness(run.controller)
        if run.state is not RunState.RUNNING or found is not Liveness.UNKNOWN:
            return run.state is RunState.RUNNING and found is Liveness.ALIVE
        with self._transaction(write=False) as conn:
            deadline: float | None = conn.execute(_LAST_DEADLINE, {"server_run_id": run.server_run_id}).scalar()
        last_unix_s = run.started_unix_s + BEGINS_WITHIN_S if deadline is None else deadline
        return self.now() < last_unix_s + LANDS_WITHIN_S

    def claim_sweep(self, sweep_id: str) -> None:
        """This process carries the sweep out, from here to `release_sweep`: of two that begin at once, one does.

        Raises LedgerError while another one does. One that cannot be seen from here counts for BEGINS_WITHIN_S; after
        that its server runs show whether it lives.
        """
        mine = {"controller": self.controller, "host": hostname(), "pid": this_process().pid, "unix_s": self.now()}
        with self._transaction() as conn:
            conn.execute(_NEW_CLAIM, {"sweep_id": sweep_id})
            held = conn.execute(_CLAIM, {"sweep_id": sweep_id}).one()
            found = liveness(held.controller) if held.controller else Liveness.DEAD
            begins = found is Liveness.UNKNOWN and self.now() - held.unix_s < BEGINS_WITHIN_S
            if begins or found is Liveness.ALIVE:
                raise LedgerError(
                    f"The sweep {sweep_id} is running already: pid {held.pid} on {held.host} has begun it.",
                    reason="sweep_is_running",
                    next_step="See `tokensweep status`; a copy of it needs another --label.",
                )
            conn.execute(sweep_claims.update().where(sweep_claims.c.sweep_id == sweep_id).values(**mine))

    def renew_claim(self, sweep_id: str) -> None:
        """For those who cannot see this process: it is still at it."""
        with self._transaction() as conn:
            conn.execute(sweep_claims.update().where(self._mine(sweep_id)).values(unix_s=self.now()))

    def claim(self, sweep_id: str) -> Claim | None:
        """None where nobody has ever claimed it."""
        query = sa.select(sweep_claims).where(sweep_claims.c.sweep_id == sweep_id)
        with self._transaction(write=False) as conn:
            found = conn.execute(query).one_or_none()
        if found is None:
            return None
        held = bool(found.controller)
        return Claim(held=held, liveness=liveness(found.controller) if held else Liveness.UNKNOWN, unix_s=found.unix_s)

    def _mine(self, sweep_id: str) -> sa.ColumnElement[bool]:
        return sa.and_(sweep_claims.c.sweep_id == sweep_id, sweep_claims.c.controller == self.controller)

    def release_sweep(self, sweep_id: str) -> None:
        """This process does not carry it out any more. A second call does nothing."""
        with self._transaction() as conn:
            conn.execute(sweep_claims.update().where(self._mine(sweep_id)).values(controller=""))

    def end_run(self, server_run_id: str, state: RunState) -> ServerRun:
        """Record how it ended. A landed run stays landed."""
        with self._transaction() as conn:
            conn.execute(
                server_runs.update()
                .where(server_runs.c.server_run_id == server_run_id, server_runs.c.state != RunState.LANDED.value)
                .values(state=state.value, ended_unix_s=self.now())
            )
            return _read(conn, server_run_id)

    def server_run(self, server_run_id: str) -> ServerRun | None:
        with self._transaction(write=False) as conn:
            return _find(conn, server_run_id)

    def server_runs(self, sweep_id: str | None = None) -> tuple[ServerRun, ...]:
        query = sa.select(server_runs).order_by(server_runs.c.started_unix_s, server_runs.c.server_run_id)
        if sweep_id is not None:
            query = query.where(server_runs.c.sweep_id == sweep_id)
        with self._transaction(write=False) as conn:
            return tuple(_to_run(found) for found in conn.execute(query).mappings())

    def abandoned_runs(self, sweep_id: str | None = None) -> tuple[ServerRun, ...]:
        """Runs that count as running although their controller is provably dead."""
        return tuple(
            run
            for run in self.server_runs(sweep_id)
            if run.state is RunState.RUNNING and liveness(run.controller) is Liveness.DEAD
        )

    def ended_runs(self) -> frozenset[str]:
        """Ids of the runs that need no server any more."""
        with self._transaction(write=False) as conn:
            return frozenset(conn.execute(_ENDED).scalars())

    def beat(self, reaper_id: str, vendors: tuple[str, ...], *, account: str = "") -> None:
        """A reaper has passed over these vendors with a complete listing of each; account: whose it was."""
        with self._transaction() as conn:
            for vendor in vendors:
                values = {"reaper_id": reaper_id, "vendor": vendor, "account": account, "unix_s": self.now()}
                conn.execute(_BEAT, values)

    def last_beat(self, vendor: str, until_unix_s: float = math.inf, *, account: str | None = None) -> float | None:
        """When a reaper last passed over the vendor, in unix seconds; None for never. until_unix_s: what is later was
        told by a clock that is ahead, and says nothing. account: None for whichever."""
        values = {"vendor": vendor, "until": until_unix_s} | ({} if account is None else {"account": account})
        with self._transaction(write=False) as conn:
            query = _LAST_BEAT if account is None else _LAST_BEAT_OF_ACCOUNT
            found: float | None = conn.execute(query, values).scalar()
        return found


def _check_free(old: ServerRun, controller: str) -> None:
    if old.state is RunState.LANDED:
        raise LedgerError(
            f"The server run {old.server_run_id} has landed already.", next_step="Start a new server run."
        )
    if old.state is RunState.RUNNING and old.controller != controller:
        found = liveness(old.controller)
        if found is not Liveness.DEAD:
            raise LedgerError(
                f"The server run {old.server_run_id} belongs to process {old.pid} on {old.host} ({found.value}).",
                next_step="Wait for it to end. If that host is gone for good, end the run there or start a new one.",
            )


def _find(conn: sa.Connection, server_run_id: str) -> ServerRun | None:
    found = conn.execute(_BY_ID, {"server_run_id": server_run_id}).mappings().first()
    return None if found is None else _to_run(found)


def _read(conn: sa.Connection, server_run_id: str) -> ServerRun:
    run = _find(conn, server_run_id)
    if run is None:
        raise LedgerError(f"The ledger has no server run {server_run_id}.")
    return run


def _to_run(found: sa.RowMapping) -> ServerRun:
    values: dict[str, Any] = dict(found)
    return ServerRun(**{**values, "state": RunState(values["state"])})
