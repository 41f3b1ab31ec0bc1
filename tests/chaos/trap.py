"""A controller that something happens to: a call that fails, an answer that is lost, its death, at a chosen point.

A point is one request to a vendor or one commit to the ledger. Where a vendor's SDK speaks HTTP, the request is the
HTTP request itself: all five SDKs go through urllib3, so one hook there sees every one of them, those included that
an SDK sends by itself.
"""

from __future__ import annotations

import copy
import io
import re
import sqlite3
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import parse_qs, urlsplit

import sqlalchemy as sa
import urllib3
from urllib3.connectionpool import HTTPConnectionPool

from tasks.clouds.accounts import account_of
from tasks.clouds.base import Classified, Cloud, CreateSpec, ErrorKind, Listing, Ref, Resource, Scope
from tasks.domain.lifecycle import LedgerError
from tasks.ledger import Ledger
from tasks.ledger.store import _engine

T = TypeVar("T")
PRODUCT = str(Path(__file__).resolve().parents[2] / "tasks")


class Death(BaseException):
    """Stands for `kill -9` within one process: from then on every call of the dead controller raises it."""


class How(StrEnum):
    """What happens at a point."""

    REFUSED = "fails before it is sent"
    LOST = "takes effect, and its answer is lost"
    GARBLED = "takes effect, and its answer is no answer"
    DIES_BEFORE = "death before it is sent"
    DIES_AFTER = "death after it took effect"


CALL_FATES = tuple(How)
COMMIT_FATES = (How.REFUSED, How.LOST, How.DIES_BEFORE, How.DIES_AFTER)
DEATHS = (How.DIES_BEFORE, How.DIES_AFTER)


class Point(NamedTuple):
    """The n-th time that this is called. Not counted over all calls, because adapters list places in parallel."""

    what: str
    n: int

    @property
    def is_commit(self) -> bool:
        return self.what.startswith("commit ")

    @property
    def only_asks(self) -> bool:
        """Whether it changes nothing: a GET, or an AWS action that describes."""
        verb = self.what.rpartition(" ")[2] if self.what.startswith("POST / ") else self.what.partition(" ")[0]
        return verb in ("GET", "HEAD", "get", "list_owned") or verb.startswith("Describe")

    @property
    def fates(self) -> tuple[How, ...]:
        return COMMIT_FATES if self.is_commit else CALL_FATES

    @property
    def distinct_fates(self) -> tuple[How, ...]:
        """All that can be told apart afterwards.

        Before, after or without a question, the world is the same: a death at it leaves what a death after the last
        effect leaves, and a lost answer is a refused request. Both failures of a question are tried at its first time,
        and one of them at each time after that.
        """
        if not self.only_asks:
            return self.fates
        failures = (How.REFUSED, How.GARBLED)
        return failures if self.n == 0 else (failures[self.n % 2],)

    @property
    def fates_with_deaths(self) -> tuple[How, ...]:
        """`distinct_fates`, and at questions a death too: the state is no other one, but time has passed."""
        return (*self.distinct_fates, How.DIES_AFTER) if self.only_asks else self.fates


class NoAnswerError(Exception):
    """What a cloud without HTTP raises when its answer is lost or is none."""


@dataclass
class Trap:
    """Counts the points that a controller reaches, and lets the planned happen there. watch: told of each point.

    dies_at: death before the n-th point of all, for those who need not know its name.
    """

    fates: Mapping[Point, How] = field(default_factory=dict)
    dies_at: int | None = None
    points: list[Point] = field(default_factory=list)
    sites: set[tuple[str, int]] = field(default_factory=set)
    met: set[Point] = field(default_factory=set)
    dead: bool = False
    watch: Callable[[Point], None] = lambda point: None
    _counts: Counter[str] = field(default_factory=Counter)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def around(self, what: str, act: Callable[[], T], lost: Callable[[], Exception], garbled: Callable[[], T]) -> T:
        _, how = self._reach(what)
        if how is How.DIES_BEFORE:
            self.die()
        if how is How.REFUSED:
            raise lost()
        result = act()
        if how is How.DIES_AFTER:
            self.die()
        if how is How.LOST:
            raise lost()
        if how is How.GARBLED:
            return garbled()
        self.check_alive()
        return result

    def die(self) -> None:
        self.dead = True
        raise Death

    def check_alive(self) -> None:
        if self.dead:
            raise Death

    def _reach(self, what: str) -> tuple[Point, How | None]:
        with self._lock:
            self.check_alive()
            point = Point(what, self._counts[what])
            self._counts[what] += 1
            self.points.append(point)
            self.sites |= _product_lines()
            how = How.DIES_BEFORE if len(self.points) - 1 == self.dies_at else self.fates.get(point)
            if how is not None:
                self.met.add(point)
        self.watch(point)
        self.check_alive()
        return point, how


def _product_lines() -> set[tuple[str, int]]:
    """The lines of the product that are being executed by this thread."""
    lines: set[tuple[str, int]] = set()
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PRODUCT):
            lines.add((path[len(PRODUCT) + 1 :], frame.f_lineno))
        frame = frame.f_back
    return lines


_COMPILED: dict[Any, Any] = {}
_DIALECTS: dict[str, sa.Dialect] = {}
"""One cache of compiled SQL for all ledgers: thousands are opened, and each would compile the same again."""


@cache
def _blank() -> bytes:
    ledger = Ledger.volatile()
    return sqlite_of(ledger).serialize()


def sqlite_of(ledger: Ledger) -> sqlite3.Connection:
    """The one connection of a ledger in memory."""
    with ledger._engine.connect() as conn:
        driver = conn.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


class MortalLedger(Ledger):
    """A ledger in memory. `seen_by` gives a controller's own sight of it, with a trap at every commit."""

    trap: Trap | None = None
    controller_tag = ""
    host = ""

    @classmethod
    def opened(cls, content: bytes = b"", *, now: Callable[[], float]) -> Self:
        """A new one with an identity of its own, or a copy of another one's content (`sqlite_of(it).serialize()`)."""
        ledger = cls.__new__(cls)
        ledger.url, ledger.now = sa.engine.make_url("sqlite://"), now
        engine = _engine(ledger.url)
        engine.dialect = _DIALECTS.setdefault("sqlite", engine.dialect)
        engine.update_execution_options(compiled_cache=_COMPILED)
        ledger._engine = engine
        driver = sqlite_of(ledger)
        driver.deserialize(content or _blank())
        if not content:
            driver.execute("UPDATE identity SET ledger_id = ?", [uuid.uuid4().hex[:12]])
        (ledger.ledger_id,) = driver.execute("SELECT ledger_id FROM identity").fetchone()
        return ledger

    @property
    def controller(self) -> str:
        return self.controller_tag or super().controller

    @property
    def clock(self) -> str:
        return self.host or super().clock

    def seen_by(self, trap: Trap | None, controller_tag: str = "", *, ahead_s: float = 0.0) -> Self:
        """The same ledger from a process of its own, on a host whose clock is ahead of the true time."""
        now, view = self.now, copy.copy(self)
        view.trap, view.controller_tag = trap, controller_tag
        if ahead_s:
            view.now, view.host = (lambda: now() + ahead_s), f"host-{ahead_s:.0f}-s-ahead"
        return view

    @contextmanager
    def _transaction(self, *, write: bool = True) -> Iterator[sa.Connection]:
        trap = self.trap
        if trap is None:
            with super()._transaction(write=write) as conn:
                yield conn
            return
        trap.check_alive()
        if not write:
            with super()._transaction(write=False) as conn:
                yield conn
            return
        _, how = trap._reach(f"commit {_ledger_method()}")
        if how is How.DIES_BEFORE:
            trap.die()
        if how is How.REFUSED:
            raise LedgerError("The ledger's disk is full.", reason="ledger_unusable")
        with super()._transaction() as conn:
            yield conn
        if how is How.DIES_AFTER:
            trap.die()
        if how is How.LOST:
            raise LedgerError("The connection to the ledger was lost during the commit.", reason="ledger_unusable")
        trap.check_alive()


def _ledger_method() -> str:
    """The public method of the ledger that is committing."""
    frame: FrameType | None = sys._getframe(2)
    name = ""
    while frame is not None:
        if "/tasks/ledger/" in frame.f_code.co_filename and not frame.f_code.co_name.startswith("_"):
            name = frame.f_code.co_name
        frame = frame.f_back
    return name


class TrappedCloud:
    """The protocol with a trap at every call, for clouds that do not speak HTTP. `over_http`: the trap is there."""

    def __init__(self, cloud: Cloud, trap: Trap, *, over_http: bool, on_create: Callable[[CreateSpec], None]) -> None:
        self._cloud, self._trap, self._over_http, self._on_create = cloud, trap, over_http, on_create
        self.vendor, self.traits = cloud.vendor, cloud.traits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cloud, name)

    def account(self) -> str:
        return account_of(self._cloud)

    def create(self, spec: CreateSpec) -> Resource:
        self._trap.check_alive()
        self._on_create(spec)
        return self._around("create", lambda: self._cloud.create(spec))

    def get(self, ref: Ref) -> Resource | None:
        return self._around("get", lambda: self._cloud.get(ref))

    def list_owned(self) -> Listing:
        return self._around("list_owned", self._cloud.list_owned)

    def delete(self, ref: Ref) -> None:
        return self._around("delete", lambda: self._cloud.delete(ref))

    def classify(self, exc: BaseException) -> Classified:
        if isinstance(exc, NoAnswerError):
            return Classified(
                kind=ErrorKind.UNKNOWN, scope=Scope.ZONE, may_exist=True, code="no_answer", message=str(exc)
            )
        return self._cloud.classify(exc)

    def _around(self, what: str, act: Callable[[], T]) -> T:
        if self._over_http:
            self._trap.check_alive()
            result = act()
            self._trap.check_alive()
            return result

        def garbled() -> T:
            raise NoAnswerError("the answer is no JSON")

        return self._trap.around(what, act, lambda: NoAnswerError("the connection was dropped"), garbled)


_HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
_IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{8,}|\d+", re.IGNORECASE)


@contextmanager
def trapped_http(trap: Trap) -> Iterator[None]:
    """Every HTTP request of this process goes through the trap, whichever SDK sends it."""
    original = HTTPConnectionPool._make_request

    def make_request(pool: HTTPConnectionPool, conn: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        def garbled() -> Any:
            return urllib3.HTTPResponse(
                body=io.BytesIO(_HTML),
                status=502,
                reason="Bad Gateway",
                headers={"Content-Type": "text/html", "Content-Length": str(len(_HTML))},
                preload_content=kwargs.get("preload_content", True),
                decode_content=kwargs.get("decode_content", True),
                request_method=method,
            )

        body = kwargs.get("body", args[0] if args else None)
        return trap.around(
            _operation(pool.host, method, url, body),
            lambda: original(pool, conn, method, url, *args, **kwargs),
            lambda: urllib3.exceptions.ProtocolError("Connection aborted.", ConnectionResetError(104, "reset by peer")),
            garbled,
        )

    HTTPConnectionPool._make_request = make_request  # type: ignore[method-assign]
    try:
        yield
    finally:
        HTTPConnectionPool._make_request = original  # type: ignore[method-assign]


def _operation(host: str, method: str, url: str, body: Any) -> str:
    """What is asked, without ids, so that two runs have the same names: "POST /v1/servers", "POST / RunInstances"."""
    path = _IDS.sub("*", urlsplit(url).path)
    action = ""
    if isinstance(body, bytes | str) and b"Action=" in (text := body if isinstance(body, bytes) else body.encode()):
        action = " " + parse_qs(text.decode(errors="replace")).get("Action", [""])[0]
    return f"{method} {path}{action}"
