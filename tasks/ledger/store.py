"""The ledger's database: one transaction per call, committed to disk before the call returns."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
import tenacity
from sqlalchemy.pool import NullPool, StaticPool

from tasks.domain.errors import ConfigError
from tasks.domain.lifecycle import LedgerError, StaleRowError
from tasks.ledger import schema
from tasks.ledger.controller import hostname, this_process

BUSY_TIMEOUT_S = 30.0
AWAY_S = 60.0
URL_VARIABLE = "TOKENSWEEP_LEDGER_URL"


def ledger_url(state_dir: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The ledger's URL: $TOKENSWEEP_LEDGER_URL, or SQLite in the state folder."""
    return environ.get(URL_VARIABLE) or f"sqlite:///{state_dir.absolute() / 'ledger.sqlite'}"


class Store:
    """A connection factory and its transactions. Any number of processes and threads may use one ledger.

    SQLite runs in WAL mode with synchronous=FULL, so a commit is on disk when it returns; it needs a local disk,
    and several hosts need PostgreSQL. Raises LedgerError when the ledger cannot be opened.
    """

    away_s = 0.0
    """How long a PostgreSQL server that has answered once may be away, restarting, before that is an error."""
    is_volatile = False
    """In memory alone, in place of one that cannot be opened."""

    def __init__(self, url: str, *, now: Callable[[], float] = time.time) -> None:
        self.url = _checked(url)
        self._open(now)
        self.away_s = AWAY_S

    @classmethod
    def volatile(cls, *, now: Callable[[], float] = time.time) -> Self:
        """A ledger in memory, for a reaper whose real one cannot be opened: it then goes by tags alone."""
        store = cls.__new__(cls)
        store.url = sa.engine.make_url("sqlite://")
        store._open(now)
        store.is_volatile = True
        return store

    def _open(self, now: Callable[[], float]) -> None:
        self.now = now
        self._engine = _engine(self.url)
        with self._transaction(write=False) as conn:
            if self.url.get_backend_name() == "sqlite":
                self._check_pages(conn)
            found = schema.version(conn)
        if found != schema.newest():  # so that what cannot be written can still be read
            with self._transaction() as conn:
                if self.url.get_backend_name() == "postgresql":
                    conn.execute(sa.text("SELECT pg_advisory_xact_lock(7305112)"))  # any number, always the same
                schema.migrate(conn, now())
        with self._transaction(write=False) as conn:
            self.ledger_id: str = conn.execute(sa.select(schema.identity.c.ledger_id)).scalar_one()

    def timed_by(self, now: Callable[[], float]) -> Self:
        """The same ledger, in which what is recorded from here on is timed by another clock: a vendor's own."""
        other = copy.copy(self)
        other.now = now
        return other

    @property
    def controller(self) -> str:
        """The tag of this process, which owns what it creates."""
        return this_process().tag()

    @property
    def clock(self) -> str:
        """Names the clock of this host: times of another one compare only within the tolerated skew."""
        return f"{hostname()}/{this_process().boot}"

    @contextmanager
    def _transaction(self, *, write: bool = True) -> Iterator[sa.Connection]:
        """Everything inside is committed together, or not at all. Database errors become LedgerError."""
        try:
            with self._connect() as conn:
                conn = conn.execution_options(tokensweep_write=write)
                with conn.begin():
                    yield conn
        except sa.exc.IntegrityError as exc:
            raise StaleRowError(f"The ledger already has this record: {exc.orig}.") from exc
        except sa.exc.SQLAlchemyError as exc:
            raise self._unusable(exc) from exc

    def _connect(self) -> sa.Connection:
        """A server that restarts is waited for: nothing has been sent yet, so asking again does no harm."""
        if self.url.get_backend_name() != "postgresql":
            return self._engine.connect()
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(sa.exc.OperationalError),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=3.0),
            stop=tenacity.stop_after_delay(self.away_s),
            reraise=True,
        )
        return again(self._engine.connect)

    def _check_pages(self, conn: sa.Connection) -> None:
        damage = conn.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if damage != "ok":
            raise self._unusable(damage)

    def _unusable(self, exc: sa.exc.SQLAlchemyError | str) -> LedgerError:
        cause = getattr(exc, "orig", None) or exc
        return LedgerError(
            f"The ledger {self.url.render_as_string()} cannot be used: {cause}.",
            reason="ledger_unusable",
            next_step="Nothing is created without it. Free the disk or mend the file; if it is corrupt, move it "
            "away: the reaper finds what is ours by its tags.",
        )


def _checked(url: str) -> sa.URL:
    example = "Give sqlite:////a/path/ledger.sqlite or postgresql://user:password@host/database."
    try:
        parsed = sa.engine.make_url(url)
    except sa.exc.ArgumentError as exc:
        raise ConfigError("The ledger's URL cannot be read.", next_step=example) from exc
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigError(f"The ledger cannot be kept in {parsed.get_backend_name()}.", next_step=example)
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError(f"The ledger {url} would be lost with the process.", next_step=example)
    return parsed


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        try:
            return sa.create_engine(url, pool_pre_ping=True, pool_size=5, max_overflow=20)
        except ModuleNotFoundError as exc:
            raise ConfigError(
                f"The ledger {url.render_as_string()} needs a database driver that is not installed: {exc}.",
                next_step="For PostgreSQL install psycopg (pip install 'psycopg[binary]').",
            ) from exc
    try:
        if url.database and not url.database.startswith("file:"):
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise LedgerError(
            f"The folder of the ledger {url} cannot be made: {exc}.", next_step="Nothing is created without a ledger."
        ) from exc
    # No pool: a connection that is kept would be shared with forked children, which corrupts SQLite files.
    pool = NullPool if url.database else StaticPool
    engine = sa.create_engine(url, poolclass=pool, connect_args={"timeout": BUSY_TIMEOUT_S})
    sa.event.listen(engine, "connect", _set_up_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # sqlite3's own BEGIN is deferred; _begin_sqlite says what we need
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] not in ("wal", "memory"):
                connection.execute("PRAGMA journal_mode=WAL")
            break
        except connection.OperationalError as exc:
            # The change to WAL ignores the busy timeout, and two processes may open a new ledger at once.
            if "locked" not in str(exc) or time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(conn: sa.Connection) -> None:
    """A writer takes the lock before it reads, so that what it read still holds when it writes."""
    write = conn.get_execution_options().get("tokensweep_write", True)
    conn.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
