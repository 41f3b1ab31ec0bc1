"""The rows of resources: committed before anything is sent, moved forward only, guarded by their epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from tasks.domain.errors import ConfigError
from tasks.domain.lifecycle import (
    BudgetError,
    Intent,
    LedgerError,
    LedgerRow,
    ResourceState,
    StaleRowError,
    cost_usd,
    may_move,
)
from tasks.ledger import schema
from tasks.ledger.schema import resources, sweep_money
from tasks.ledger.store import Store

_COLUMNS = resources.c

# Written once: to build a statement and find it in SQLAlchemy's cache takes longer than SQLite takes to answer it.
_ROWS = sa.select(resources).order_by(_COLUMNS.intended_unix_s, _COLUMNS.attempt)
_OPEN = _ROWS.where(_COLUMNS.state != ResourceState.GONE.value)
_OF_SWEEP = _COLUMNS.sweep_id == sa.bindparam("sweep_id")
_ROWS_OF_SWEEP, _OPEN_OF_SWEEP = _ROWS.where(_OF_SWEEP), _OPEN.where(_OF_SWEEP)
_ROWS_OF_RUN = _ROWS.where(_COLUMNS.server_run_id == sa.bindparam("server_run_id"))
_NEWEST = sa.select(resources).order_by(_COLUMNS.intended_unix_s.desc(), _COLUMNS.attempt.desc()).limit(1)
_BY_INTENT = _NEWEST.where(_COLUMNS.intent_id == sa.bindparam("intent_id"))
_BY_CLOUD_ID = _NEWEST.where(_COLUMNS.vendor == sa.bindparam("vendor"), _COLUMNS.cloud_id == sa.bindparam("cloud_id"))
_INSERT = resources.insert()
_CHANGE = resources.update().where(
    _COLUMNS.intent_id == sa.bindparam("of_intent_id"), _COLUMNS.epoch == sa.bindparam("of_epoch")
)
_IS_GONE = _COLUMNS.state == ResourceState.GONE.value
_SPENT = sa.select(
    sa.func.sum(sa.case((_IS_GONE, _COLUMNS.cost_usd))), sa.func.sum(sa.case((~_IS_GONE, _COLUMNS.reserved_usd)))
).where(_OF_SWEEP)
_NEW_SWEEP = sa.text("INSERT INTO sweep_money (sweep_id, committed_usd) VALUES (:s, 0) ON CONFLICT DO NOTHING")
_COMMITTED = sweep_money.c.committed_usd
_COMMITTED_OF = sa.select(_COMMITTED).where(sweep_money.c.sweep_id == sa.bindparam("s"))
_USD, _CAP = (sa.bindparam(name, type_=schema.NanoUsd) for name in ("usd", "cap"))
_COMMIT = (
    sweep_money.update().where(sweep_money.c.sweep_id == sa.bindparam("s")).values(committed_usd=_COMMITTED + _USD)
)
_COMMIT_UNDER_CAP = _COMMIT.where(_COMMITTED + _USD <= _CAP)


@dataclass(frozen=True, kw_only=True)
class Spending:
    """A sweep's money: what GONE resources cost, and what is still reserved for the others."""

    settled_usd: Decimal
    reserved_usd: Decimal

    @property
    def committed_usd(self) -> Decimal:
        return self.settled_usd + self.reserved_usd


class ResourceRows(Store):
    """Every method commits before it returns. Those that take a row return it as it is now, and raise
    StaleRowError when it has changed since it was read, LedgerError when the move is not allowed."""

    def intend(self, intent: Intent, *, cap_usd: Decimal | None = None) -> LedgerRow:
        """Commit the intent and reserve its worst-case cost under the sweep's cap, both or neither.

        Atomic under concurrency. Raises BudgetError when the reservation would pass the cap, StaleRowError when
        the intent exists already, ConfigError when a number of it is none.
        """
        _check(intent)
        with self._transaction() as conn:
            self._commit_money(conn, intent.sweep_id, intent.reserved_usd, cap_usd)
            values = asdict(intent) | {
                "state": ResourceState.INTENDED.value,
                "controller": self.controller,
                "intended_unix_s": self.now(),
            }
            conn.execute(_INSERT, values)
            return _read(conn, intent.intent_id)

    def found(self, intent: Intent, *, cloud_id: str, billed_from_unix_s: float, controller: str = "") -> LedgerRow:
        """Record a resource of ours that no row tells of, marked for deletion. A second call returns the first row."""
        _check(intent)
        values = asdict(intent) | {
            "state": ResourceState.DELETING.value,
            "controller": controller,
            "cloud_id": cloud_id,
            "intended_unix_s": billed_from_unix_s,
            "sent_unix_s": billed_from_unix_s,
            "live_unix_s": billed_from_unix_s,
            "deleting_unix_s": self.now(),
        }
        with self._transaction() as conn:
            if _find(conn, _BY_INTENT, intent_id=intent.intent_id) is None:
                self._commit_money(conn, intent.sweep_id, intent.reserved_usd, None)
                conn.execute(_INSERT, values)
            return _read(conn, intent.intent_id)

    def creating(self, row: LedgerRow) -> LedgerRow:
        return self._move(row, ResourceState.CREATING, sent_unix_s=self.now())

    def live(
        self, row: LedgerRow, *, cloud_id: str, address: str = "", ssh_port: int = 22, username: str = "root"
    ) -> LedgerRow:
        """The create was answered. A second call updates where it can be reached."""
        _check_id(row, cloud_id)
        reach = {"cloud_id": cloud_id, "address": address, "ssh_port": ssh_port, "username": username}
        if row.state is ResourceState.LIVE:
            return self._change(row, reach)
        return self._move(row, ResourceState.LIVE, live_unix_s=self.now(), **_no_absence(), **reach)

    def identify(self, row: LedgerRow, cloud_id: str) -> LedgerRow:
        """Record the immutable id of a row that has none, whatever its state."""
        _check_id(row, cloud_id)
        if row.cloud_id:
            return row
        seen_unix_s = row.sent_unix_s if row.sent_unix_s is not None else self.now()
        return self._change(row, {"cloud_id": cloud_id, "sent_unix_s": seen_unix_s, **_no_absence()})

    def deleting(self, row: LedgerRow) -> LedgerRow:
        """Mark it for deletion. A second call changes nothing."""
        if row.state is ResourceState.DELETING:
            return row
        return self._move(row, ResourceState.DELETING, deleting_unix_s=self.now(), **_no_absence())

    def delete_sent(self, row: LedgerRow, *, error: str = "") -> LedgerRow:
        """Count one delete that was sent; error: why the vendor did not take it."""
        sent = {} if error else {"last_delete_unix_s": self.now()}
        return self._change(row, {"delete_attempts": row.delete_attempts + 1, "last_error": error, **sent})

    def absent(self, row: LedgerRow, listed_unix_s: float) -> LedgerRow:
        """Note the first complete listing without it."""
        return self._change(row, {"absent_since_unix_s": listed_unix_s, "absent_by": self.clock})

    def present(self, row: LedgerRow) -> LedgerRow:
        """It was seen: an earlier absence was not true."""
        return row if row.absent_since_unix_s is None else self._change(row, _no_absence())

    def stuck(self, row: LedgerRow) -> LedgerRow:
        return row if row.stuck else self._change(row, {"stuck": True})

    def record_error(self, row: LedgerRow, error: str) -> LedgerRow:
        return self._change(row, {"last_error": error[:2000]})

    def gone(self, row: LedgerRow, proof: Mapping[str, Any]) -> LedgerRow:
        """Close the row with its proof; its reservation is replaced by what it really cost."""
        now_unix_s = self.now()
        cost = cost_usd(row, now_unix_s)
        values = {"gone_unix_s": now_unix_s, "cost_usd": cost, "stuck": False}
        with self._transaction() as conn:
            closed = _move(conn, row, ResourceState.GONE, {**values, "proof": json.dumps(dict(proof), sort_keys=True)})
            self._commit_money(conn, row.sweep_id, cost - row.reserved_usd, None)
            return closed

    def row(self, intent_id: str) -> LedgerRow | None:
        with self._transaction(write=False) as conn:
            return _find(conn, _BY_INTENT, intent_id=intent_id)

    def row_of(self, vendor: str, cloud_id: str) -> LedgerRow | None:
        """The newest row of a resource's immutable id."""
        with self._transaction(write=False) as conn:
            return _find(conn, _BY_CLOUD_ID, vendor=vendor, cloud_id=cloud_id)

    def open_rows(self, sweep_id: str | None = None) -> tuple[LedgerRow, ...]:
        """Everything that is not proven gone."""
        return self._rows(_OPEN) if sweep_id is None else self._rows(_OPEN_OF_SWEEP, sweep_id=sweep_id)

    def rows(self, sweep_id: str | None = None) -> tuple[LedgerRow, ...]:
        return self._rows(_ROWS) if sweep_id is None else self._rows(_ROWS_OF_SWEEP, sweep_id=sweep_id)

    def rows_of_run(self, server_run_id: str) -> tuple[LedgerRow, ...]:
        return self._rows(_ROWS_OF_RUN, server_run_id=server_run_id)

    def spent(self, sweep_id: str) -> Spending:
        with self._transaction(write=False) as conn:
            settled, reserved = conn.execute(_SPENT, {"sweep_id": sweep_id}).one()
        return Spending(settled_usd=settled or Decimal(0), reserved_usd=reserved or Decimal(0))

    def _rows(self, query: sa.Select[Any], **parameters: str) -> tuple[LedgerRow, ...]:
        with self._transaction(write=False) as conn:
            return tuple(_to_row(found) for found in conn.execute(query, parameters).mappings())

    def _change(self, row: LedgerRow, values: Mapping[str, Any]) -> LedgerRow:
        with self._transaction() as conn:
            return _change(conn, row, values)

    def _move(self, row: LedgerRow, to: ResourceState, **values: Any) -> LedgerRow:
        with self._transaction() as conn:
            return _move(conn, row, to, values)

    def _commit_money(self, conn: sa.Connection, sweep_id: str, usd: Decimal, cap_usd: Decimal | None) -> None:
        """Add to what the sweep has committed, unless that passes the cap: one update, so no two can both fit."""
        conn.execute(_NEW_SWEEP, {"s": sweep_id})
        amount = {"s": sweep_id, "usd": usd}
        if cap_usd is None:
            changed = conn.execute(_COMMIT, amount)
        else:
            changed = conn.execute(_COMMIT_UNDER_CAP, {**amount, "cap": cap_usd})
        if changed.rowcount != 1:
            committed = conn.execute(_COMMITTED_OF, {"s": sweep_id}).scalar_one()
            raise BudgetError(
                f"The sweep {sweep_id} has committed {committed:f} USD; {usd:f} more would pass its cap, {cap_usd:f}.",
                reason="over_cap",
                next_step="Raise the cap, or wait until servers that are being deleted are proven gone.",
            )


def _change(conn: sa.Connection, row: LedgerRow, values: Mapping[str, Any]) -> LedgerRow:
    if row.state is ResourceState.GONE:
        raise LedgerError(f"The ledger's row of {row.name} is closed.")
    guarded = {"of_intent_id": row.intent_id, "of_epoch": row.epoch}
    if conn.execute(_CHANGE, {**guarded, "epoch": row.epoch + 1, **values}).rowcount != 1:
        raise StaleRowError(f"The ledger's row of {row.name} has changed since epoch {row.epoch}.")
    return _read(conn, row.intent_id)


def _move(conn: sa.Connection, row: LedgerRow, to: ResourceState, values: Mapping[str, Any]) -> LedgerRow:
    if not may_move(row.state, to):
        raise LedgerError(f"The ledger's row of {row.name} is {row.state.value} and cannot become {to.value}.")
    return _change(conn, row, {"state": to.value, **values})


def _read(conn: sa.Connection, intent_id: str) -> LedgerRow:
    row = _find(conn, _BY_INTENT, intent_id=intent_id)
    if row is None:
        raise LedgerError(f"The ledger has no row {intent_id}.")
    return row


def _find(conn: sa.Connection, query: sa.Select[Any], **parameters: str) -> LedgerRow | None:
    found = conn.execute(query, parameters).mappings().first()
    return None if found is None else _to_row(found)


def _to_row(found: sa.RowMapping) -> LedgerRow:
    return LedgerRow(**{**found, "state": ResourceState(found["state"])})


def _no_absence() -> dict[str, Any]:
    return {"absent_since_unix_s": None, "absent_by": ""}


def _check_id(row: LedgerRow, cloud_id: str) -> None:
    if not cloud_id or row.cloud_id not in ("", cloud_id):
        raise LedgerError(f"The ledger's row of {row.name} has the id {row.cloud_id!r}: it cannot become {cloud_id!r}.")


def _check(intent: Intent) -> None:
    if not math.isfinite(intent.deadline_unix_s) or intent.deadline_unix_s <= 0:
        raise ConfigError(f"The deadline of {intent.name} is {intent.deadline_unix_s}: it must be unix seconds.")
    for what, usd in (("price", intent.usd_per_hour), ("reservation", intent.reserved_usd)):
        if not usd.is_finite() or usd < 0:
            raise ConfigError(f"The {what} of {intent.name} is {usd} USD: it must be a number of at least 0.")
