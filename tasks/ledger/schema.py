"""Tables of the ledger and its migrations: the same SQL on SQLite and PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any

import sqlalchemy as sa

from tasks.domain.lifecycle import LedgerError

NANO = Decimal(1_000_000_000)


class ExactUsd(sa.types.TypeDecorator[Decimal]):
    """A price, as the decimal text that the vendor gave."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else format(value, "f")

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Decimal | None:
        return None if value is None else Decimal(value)


class NanoUsd(sa.types.TypeDecorator[Decimal]):
    """An amount that SQL adds up: whole nano-dollars, rounded up, so that a cap is never passed by rounding."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else int((value * NANO).to_integral_value(ROUND_CEILING))

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Decimal | None:
        return None if value is None else Decimal(value) / NANO


metadata = sa.MetaData()
UnixS = sa.Double

migrations = sa.Table(
    "migrations",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("applied_unix_s", UnixS, nullable=False),
)

identity = sa.Table(
    "identity",
    metadata,
    sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1"), primary_key=True),
    sa.Column("ledger_id", sa.Text, nullable=False),
)

resources = sa.Table(
    "resources",
    metadata,
    sa.Column("intent_id", sa.Text, primary_key=True),
    sa.Column("sweep_id", sa.Text, nullable=False, index=True),
    sa.Column("server_run_id", sa.Text, nullable=False, index=True),
    sa.Column("vendor", sa.Text, nullable=False),
    sa.Column("place", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("server_type", sa.Text, nullable=False),
    sa.Column("deadline_unix_s", UnixS, nullable=False),
    sa.Column("usd_per_hour", ExactUsd, nullable=False),
    sa.Column("reserved_usd", NanoUsd, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("host_public_key", sa.Text, nullable=False),
    sa.Column("billing_minimum_s", sa.Integer, nullable=False),
    sa.Column("billing_increment_s", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("epoch", sa.Integer, nullable=False, default=0),
    sa.Column("stuck", sa.Boolean, nullable=False, default=False),
    sa.Column("controller", sa.Text, nullable=False, default=""),
    sa.Column("cloud_id", sa.Text, nullable=False, default=""),
    sa.Column("address", sa.Text, nullable=False, default=""),
    sa.Column("ssh_port", sa.Integer, nullable=False, default=22),
    sa.Column("username", sa.Text, nullable=False, default="root"),
    sa.Column("intended_unix_s", UnixS, nullable=False),
    sa.Column("sent_unix_s", UnixS),
    sa.Column("live_unix_s", UnixS),
    sa.Column("deleting_unix_s", UnixS),
    sa.Column("gone_unix_s", UnixS),
    sa.Column("absent_since_unix_s", UnixS),
    sa.Column("absent_by", sa.Text, nullable=False, default=""),
    sa.Column("delete_attempts", sa.Integer, nullable=False, default=0),
    sa.Column("last_delete_unix_s", UnixS),
    sa.Column("last_error", sa.Text, nullable=False, default=""),
    sa.Column("proof", sa.Text, nullable=False, default=""),
    sa.Column("cost_usd", NanoUsd),
    sa.Column("price_basis", sa.Text, nullable=False, default="", server_default=""),
    sa.Column("account", sa.Text, nullable=False, default="", server_default=""),
    sa.Index("resources_by_cloud_id", "vendor", "cloud_id"),
)

sweep_money = sa.Table(
    "sweep_money",
    metadata,
    sa.Column("sweep_id", sa.Text, primary_key=True),
    sa.Column("committed_usd", NanoUsd, nullable=False),
)
"""Per sweep, what is reserved by open rows plus what GONE rows really cost: one row, so one atomic update."""

server_runs = sa.Table(
    "server_runs",
    metadata,
    sa.Column("server_run_id", sa.Text, primary_key=True),
    sa.Column("sweep_id", sa.Text, nullable=False, index=True),
    sa.Column("server", sa.Text, nullable=False),
    sa.Column("vendor", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("spool_path", sa.Text, nullable=False),
    sa.Column("started_unix_s", UnixS, nullable=False),
    sa.Column("ended_unix_s", UnixS),
    sa.Column("controller", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
)

sweep_claims = sa.Table(
    "sweep_claims",
    metadata,
    sa.Column("sweep_id", sa.Text, primary_key=True),
    sa.Column("controller", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("unix_s", UnixS, nullable=False),
)

heartbeats = sa.Table(
    "heartbeats",
    metadata,
    sa.Column("reaper_id", sa.Text, primary_key=True),
    sa.Column("vendor", sa.Text, primary_key=True),
    sa.Column("account", sa.Text, primary_key=True),
    sa.Column("unix_s", UnixS, nullable=False),
)

stockouts = sa.Table(
    "stockouts",
    metadata,
    sa.Column("vendor", sa.Text, primary_key=True),
    sa.Column("server_type", sa.Text, primary_key=True),
    sa.Column("place", sa.Text, primary_key=True),
    sa.Column("spot", sa.Boolean, primary_key=True),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("unix_s", UnixS, nullable=False),
)

BASE_VERSION = 1
Migration = tuple[int, Callable[[sa.Connection], None]]


def _add_price_basis(conn: sa.Connection) -> None:
    conn.execute(sa.text("ALTER TABLE resources ADD COLUMN price_basis TEXT NOT NULL DEFAULT ''"))


def _add_stockouts(conn: sa.Connection) -> None:
    stockouts.create(conn)


def _add_sweep_claims(conn: sa.Connection) -> None:
    sweep_claims.create(conn)


def _add_accounts(conn: sa.Connection) -> None:
    """A heartbeat is good for minutes, so none of the old ones is carried over."""
    conn.execute(sa.text("ALTER TABLE resources ADD COLUMN account TEXT NOT NULL DEFAULT ''"))
    heartbeats.drop(conn)
    heartbeats.create(conn)


MIGRATIONS: Sequence[Migration] = (
    (2, _add_price_basis),
    (3, _add_stockouts),
    (4, _add_sweep_claims),
    (5, _add_accounts),
)
"""Steps from BASE_VERSION on, ascending. A new ledger gets `metadata` as it is and skips them."""


def version(conn: sa.Connection) -> int:
    """The ledger's version, 0 for an empty database."""
    if not sa.inspect(conn).has_table(migrations.name):
        return 0
    return conn.execute(sa.select(sa.func.max(migrations.c.version))).scalar() or 0


def newest(steps: Sequence[Migration] = MIGRATIONS) -> int:
    return max([BASE_VERSION, *(step for step, _ in steps)])


def migrate(conn: sa.Connection, now_unix_s: float, steps: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the ledger to the newest version, inside the caller's transaction. A second call does nothing.

    Raises LedgerError for a ledger that a newer tokensweep has written.
    """
    found = version(conn)
    if found > newest(steps):
        raise LedgerError(
            f"The ledger has version {found}; this tokensweep knows versions up to {newest(steps)}.",
            next_step="Use the tokensweep that wrote it; nothing was changed.",
        )
    if found == newest(steps):
        return
    if found == 0:
        metadata.create_all(conn)
        conn.execute(identity.insert().values(one=1, ledger_id=uuid.uuid4().hex[:12]))
        conn.execute(migrations.insert().values(version=newest(steps), applied_unix_s=now_unix_s))
        return
    for step, apply in steps:
        if step > found:
            apply(conn)
            conn.execute(migrations.insert().values(version=step, applied_unix_s=now_unix_s))
