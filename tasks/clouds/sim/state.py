"""What exists in the simulated cloud, in one SQLite file that all processes share.

A call is one transaction, so a process may be killed at any moment: its call has happened, or it has not. A commit
outlives the process, not the machine (synchronous=OFF): a cloud that a power cut takes along leaves nothing to bill.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from tasks.clouds.sim.errors import SimApiError
from tasks.domain.errors import ConfigError

NEVER = 1e12
_CALL_FAILED = (SimApiError, OSError, ValueError)
BUSY_TIMEOUT_S = 60.0
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One resource. What it will meet is decided when it is made.

    shown_from: when the API begins to show it. runs_from: when a server runs. dies: when the vendor ends it
    (`dies_as` gone) or stops it (stopped). ends: when it is gone, NEVER while nothing ends it.
    ignores, refuses: deletes that will be ignored and refused. survives: a side resource that outlives its server.
    shown_created: its birth as the API tells it. n_agent: which start of an agent on this server type it was.
    """

    id: str
    kind: str
    name: str
    place: str
    token: str
    server_type: str
    vcpus: int
    tags: dict[str, str]
    parent: str
    ours: bool
    usd_per_hour: Decimal
    created_unix_s: float
    shown_created_unix_s: float
    shown_from_unix_s: float
    runs_from_unix_s: float
    deadline_unix_s: float
    dies_unix_s: float = NEVER
    dies_as: str = ""
    deleting_unix_s: float = NEVER
    ends_unix_s: float = NEVER
    ignores: int = 0
    refuses: int = 0
    survives: bool = False
    host_public_key: str = ""
    agent_started_unix_s: float = NEVER
    n_agent: int = 0
    plan: str = ""


_COLUMNS = tuple(f.name for f in fields(Thing))
_SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE counts (subject TEXT NOT NULL, operation TEXT NOT NULL, n INTEGER NOT NULL,
                     PRIMARY KEY (subject, operation)) WITHOUT ROWID;
CREATE TABLE things ({", ".join(f"{name} NOT NULL" for name in _COLUMNS)}, PRIMARY KEY (id));
CREATE INDEX things_by_end ON things (ends_unix_s);
CREATE INDEX things_by_parent ON things (parent) WHERE parent <> '';
CREATE INDEX things_by_token ON things (token) WHERE token <> '';
CREATE INDEX things_by_name ON things (name);
PRAGMA user_version = {_VERSION};
"""


class SimState:
    """The file. Opening makes it if it is missing; any number of processes and threads may use it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._prepare()
        except (OSError, sqlite3.Error) as exc:
            raise ConfigError(
                f"The simulated cloud's state {path} cannot be used: {exc}.",
                next_step="Free the disk, or delete the folder to begin a new cloud.",
            ) from exc

    def _prepare(self) -> None:
        give_up_s = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as exc:  # the change to WAL ignores the busy timeout
                if "locked" not in str(exc) or time.monotonic() > give_up_s:
                    raise
                time.sleep(0.01)
        self._db.execute("PRAGMA synchronous=OFF")
        with self.transaction():
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
            if found == 0:
                for statement in _SCHEMA.split(";\n"):
                    if statement.strip():
                        self._db.execute(statement)
            elif found != _VERSION:
                raise ConfigError(
                    f"The simulated cloud's state {self.path} is of another version ({found}).",
                    next_step=f"Delete the folder {self.path.parent} to begin a new cloud.",
                )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, against every other process. What a call fails with does not undo what it did before."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except _CALL_FAILED:
                self._db.execute("COMMIT")
                raise
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # ---- small values -------------------------------------------------------------------------------

    def text(self, key: str) -> str:
        """The value as JSON, "" where there is none."""
        with self._lock:
            found = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return "" if found is None else str(found[0])

    def value(self, key: str) -> Any:
        text = self.text(key)
        return json.loads(text) if text else None

    def put_value(self, key: str, value: Any) -> None:
        self._db.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, json.dumps(value)),
        )

    def count(self, subject: str, operation: str) -> int:
        """The number of this call, from 1."""
        sql = """INSERT INTO counts VALUES (?, ?, 1)
                 ON CONFLICT (subject, operation) DO UPDATE SET n = n + 1 RETURNING n"""
        (n,) = self._db.execute(sql, (subject, operation)).fetchone()
        return int(n)

    def counts(self) -> dict[str, int]:
        """Calls so far by operation."""
        with self._lock:
            rows = self._db.execute("SELECT operation, sum(n) FROM counts GROUP BY operation").fetchall()
        return {operation: int(n) for operation, n in rows}

    # ---- things -------------------------------------------------------------------------------------

    def add(self, thing: Thing) -> None:
        values = [_to_column(getattr(thing, name)) for name in _COLUMNS]
        self._db.execute(f"INSERT INTO things VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608

    def change(self, thing_id: str, **values: Any) -> None:
        """Only of names of columns, all of them ours."""
        sets = ", ".join(f"{name} = ?" for name in values)
        self._db.execute(
            f"UPDATE things SET {sets} WHERE id = ?",  # noqa: S608
            (*map(_to_column, values.values()), thing_id),
        )

    def thing(self, thing_id: str) -> Thing | None:
        found = self._select("id = ?", thing_id)
        return found[0] if found else None

    def children(self, thing_id: str) -> list[Thing]:
        return self._select("parent = ? AND parent <> ''", thing_id)

    def of_token(self, token: str) -> list[Thing]:
        return self._select("token = ? AND token <> '' AND kind = 'server'", token)

    def of_name(self, name: str) -> list[Thing]:
        return self._select("name = ? AND kind = 'server'", name)

    def existing(self, now_unix_s: float) -> list[Thing]:
        return self._select("ends_unix_s > ?", now_unix_s)

    def all_things(self) -> list[Thing]:
        return self._select("true")

    def n_servers(self, server_type: str, place: str, now_unix_s: float) -> int:
        sql = "SELECT count(*) FROM things WHERE ends_unix_s > ? AND kind = 'server' AND server_type = ? AND place = ?"
        (n,) = self._db.execute(sql, (now_unix_s, server_type, place)).fetchone()
        return int(n)

    def vcpus_of(self, places: str, now_unix_s: float) -> int:
        """vCPUs of all servers whose place begins so."""
        sql = "SELECT coalesce(sum(vcpus), 0) FROM things WHERE ends_unix_s > ? AND kind = 'server' AND place GLOB ?"
        (n,) = self._db.execute(sql, (now_unix_s, places + "*")).fetchone()
        return int(n)

    def _select(self, condition: str, *values: Any) -> list[Thing]:
        with self._lock:
            rows = self._db.execute(f"SELECT * FROM things WHERE {condition}", values).fetchall()  # noqa: S608
        return [_thing(row) for row in rows]


def _to_column(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"))
    return str(value) if isinstance(value, Decimal) else value


def _thing(row: sqlite3.Row) -> Thing:
    values: dict[str, Any] = dict(row)
    values["tags"] = json.loads(values["tags"])
    values["usd_per_hour"] = Decimal(values["usd_per_hour"])
    for name in ("ours", "survives"):
        values[name] = bool(values[name])
    for name in ("vcpus", "ignores", "refuses", "n_agent"):
        values[name] = int(values[name])
    return Thing(**values)
