"""The ledger: rows, epochs, money, migrations, and what it does when its file is not fit to be one."""

from __future__ import annotations

import multiprocessing
import resource
import signal
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from tasks.domain.errors import ConfigError
from tasks.domain.lifecycle import (
    BudgetError,
    Intent,
    LedgerError,
    LedgerRow,
    ResourceState,
    StaleRowError,
    may_move,
)
from tasks.ledger import URL_VARIABLE, Ledger, ledger_url, schema
from tests.memory_cloud import Clock

FORK = multiprocessing.get_context("fork")


def intent(identity: str = "i", **changes: Any) -> Intent:
    made = Intent(
        intent_id=identity,
        sweep_id="sweep",
        server_run_id="run",
        vendor="v",
        place="p",
        name=f"name-{identity}",
        token="t",
        server_type="small",
        deadline_unix_s=2e9,
        usd_per_hour=Decimal("0.0052"),
        reserved_usd=Decimal("1"),
        host_public_key="pinned",
    )
    return replace(made, **changes)


def opened(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/ledger.sqlite", now=Clock().now)


def test_where_the_ledger_is(tmp_path: Path) -> None:
    assert ledger_url(tmp_path, {}) == f"sqlite:///{tmp_path}/ledger.sqlite"
    assert ledger_url(tmp_path, {URL_VARIABLE: "postgresql://somewhere/ledger"}) == "postgresql://somewhere/ledger"


def test_an_intent_is_kept_whole(tmp_path: Path) -> None:
    row = opened(tmp_path).intend(intent())
    again = opened(tmp_path).row("i")
    assert again == row
    assert isinstance(row, LedgerRow)
    assert {name: getattr(row, name) for name in Intent.__dataclass_fields__} == vars(intent())
    assert row.state is ResourceState.INTENDED
    assert row.controller == opened(tmp_path).controller


def test_commits_are_synchronous_in_wal_mode(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    with ledger._transaction() as conn:
        assert conn.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert conn.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_the_whole_life_of_a_row(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    row = ledger.intend(intent())
    row = ledger.creating(row)
    row = ledger.live(row, cloud_id="id")
    row = ledger.live(row, cloud_id="id", address="192.0.2.1", ssh_port=2222, username="admin")
    assert (row.address, row.ssh_port, row.username) == ("192.0.2.1", 2222, "admin")
    row = ledger.deleting(ledger.absent(row, 3.0))
    assert row.absent_since_unix_s is None, "an absence from before the deletion proves nothing"
    assert ledger.deleting(row) == row, "a second mark changes nothing"
    row = ledger.delete_sent(row, error="locked")
    assert (row.delete_attempts, row.last_error, row.last_delete_unix_s) == (1, "locked", None)
    row = ledger.delete_sent(row)
    assert (row.delete_attempts, row.last_error) == (2, "")
    row = ledger.stuck(ledger.absent(row, 5.0))
    assert (row.stuck, row.absent_since_unix_s, row.absent_by) == (True, 5.0, ledger.clock)
    assert ledger.present(row).absent_since_unix_s is None
    row = ledger.gone(ledger.row("i") or row, {"absent": [1, 2]})
    assert (row.state, row.stuck, row.proof) == (ResourceState.GONE, False, '{"absent": [1, 2]}')
    assert ledger.open_rows() == ()
    assert ledger.rows_of_run("run") == (row,)
    assert ledger.row_of("v", "id") == row
    with pytest.raises(LedgerError, match="closed"):
        ledger.record_error(row, "too late")


def test_a_stale_writer_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    old = ledger.intend(intent())
    new = ledger.creating(old)
    for write in (ledger.creating, ledger.deleting, ledger.stuck, lambda row: ledger.gone(row, {})):
        with pytest.raises(StaleRowError):
            write(old)
    assert ledger.row("i") == new
    assert ledger.spent("sweep").reserved_usd == 1, "its money neither"


@pytest.mark.parametrize("start", ResourceState)
def test_rows_move_forward_only(tmp_path: Path, start: ResourceState) -> None:
    ledger = opened(tmp_path)
    for number, end in enumerate(ResourceState):
        row = brought_to(ledger, f"i{number}", start)
        moves: dict[ResourceState, Callable[[LedgerRow], LedgerRow]] = {
            ResourceState.CREATING: ledger.creating,
            ResourceState.LIVE: lambda row: ledger.live(row, cloud_id="id"),
            ResourceState.DELETING: ledger.deleting,
            ResourceState.GONE: lambda row: ledger.gone(row, {}),
        }
        if end not in moves or start is end:
            continue
        if may_move(start, end):
            assert moves[end](row).state is end
        else:
            with pytest.raises(LedgerError):
                moves[end](row)
            assert ledger.row(f"i{number}") == row


def brought_to(ledger: Ledger, identity: str, state: ResourceState) -> LedgerRow:
    row = ledger.intend(intent(identity))
    if state in (ResourceState.CREATING, ResourceState.LIVE):
        row = ledger.creating(row)
    if state is ResourceState.LIVE:
        row = ledger.live(row, cloud_id="id")
    if state is ResourceState.DELETING:
        row = ledger.deleting(row)
    if state is ResourceState.GONE:
        row = ledger.gone(row, {})
    return row


def test_an_immutable_id_does_not_change(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    row = ledger.identify(ledger.creating(ledger.intend(intent())), "id")
    assert ledger.identify(row, "id") == row
    for write in (ledger.identify, lambda row, cloud_id: ledger.live(row, cloud_id=cloud_id)):
        for other in ("other", ""):
            with pytest.raises(LedgerError, match="id"):
                write(row, other)
    assert ledger.live(row, cloud_id="id").cloud_id == "id"


def test_one_intent_is_recorded_once(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.intend(intent())
    with pytest.raises(StaleRowError):
        ledger.intend(intent())
    assert ledger.spent("sweep").reserved_usd == 1


def test_what_was_found_is_recorded_once(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    found = intent("found", reserved_usd=Decimal(0))
    row = ledger.found(found, cloud_id="id", billed_from_unix_s=5.0, controller="c")
    assert (row.state, row.cloud_id, row.controller) == (ResourceState.DELETING, "id", "c")
    assert ledger.found(found, cloud_id="id", billed_from_unix_s=9.0) == row


@pytest.mark.parametrize(
    "changes",
    [
        {"deadline_unix_s": float("nan")},
        {"deadline_unix_s": float("inf")},
        {"deadline_unix_s": 0.0},
        {"usd_per_hour": Decimal("NaN")},
        {"usd_per_hour": Decimal("-1")},
        {"reserved_usd": Decimal("Infinity")},
    ],
)
def test_numbers_that_are_none_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    ledger = opened(tmp_path)
    with pytest.raises(ConfigError, match="name-i"):
        ledger.intend(intent(**changes))
    assert ledger.rows() == ()


def test_prices_are_exact_and_sums_are_rounded_up(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    price = Decimal("0.00123456789012345678901")
    row = ledger.intend(intent(usd_per_hour=price, reserved_usd=Decimal("0.1234567891")))
    assert row.usd_per_hour == price
    assert row.reserved_usd == Decimal("0.123456790")
    for n in range(10):
        ledger.intend(intent(f"n{n}", reserved_usd=Decimal("0.1"), sweep_id="tenths"))
    assert ledger.spent("tenths").reserved_usd == Decimal(1)


def test_the_cap_is_exact(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.intend(intent("a"), cap_usd=Decimal("2.5"))
    ledger.intend(intent("b", reserved_usd=Decimal("1.5")), cap_usd=Decimal("2.5"))
    with pytest.raises(BudgetError, match=r"2\.5"):
        ledger.intend(intent("c", reserved_usd=Decimal("0.000000001")), cap_usd=Decimal("2.5"))
    assert ledger.row("c") is None
    ledger.intend(intent("d", sweep_id="other"), cap_usd=Decimal(1))
    ledger.intend(intent("e", reserved_usd=Decimal(0)), cap_usd=Decimal("2.5"))


def test_settled_money_is_free_again_and_spent_money_is_not(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite", now=clock.now)
    row = ledger.intend(intent(usd_per_hour=Decimal("0.36")), cap_usd=Decimal(1))
    row = ledger.live(ledger.creating(row), cloud_id="id")
    clock.sleep(1000)
    row = ledger.gone(ledger.delete_sent(ledger.deleting(row)), {})
    assert row.cost_usd == Decimal("0.1")
    spent = ledger.spent("sweep")
    assert spent.settled_usd == spent.committed_usd == Decimal("0.1")
    assert spent.reserved_usd == 0
    ledger.intend(intent("b", reserved_usd=Decimal("0.9")), cap_usd=Decimal(1))
    with pytest.raises(BudgetError):
        ledger.intend(intent("c", reserved_usd=Decimal("0.000000001")), cap_usd=Decimal(1))


def _reserve(url: str, names: list[str], won: Any) -> None:
    ledger = Ledger(url)
    for name in names:
        try:
            ledger.intend(intent(name, reserved_usd=Decimal("0.1")), cap_usd=Decimal("2.5"))
            won.put(name)
        except BudgetError:
            pass


def test_processes_that_reserve_at_once_never_pass_the_cap(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"  # the processes also race to make it
    won = FORK.Queue()
    processes = [FORK.Process(target=_reserve, args=(url, [f"{p}-{n}" for n in range(10)], won)) for p in range(6)]
    for process in processes:
        process.start()
    names = [won.get(timeout=60) for _ in range(25)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    assert won.empty()
    ledger = Ledger(url)
    assert sorted(row.intent_id for row in ledger.rows()) == sorted(names)
    assert ledger.spent("sweep").reserved_usd == Decimal("2.5")


def test_threads_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    row = ledger.intend(intent("shared"))
    stale = []

    def work(number: int) -> None:
        nonlocal row
        for n in range(5):
            ledger.intend(intent(f"{number}-{n}", reserved_usd=Decimal("0.1")))
            try:
                ledger.record_error(ledger.row("shared") or row, f"{number}-{n}")
            except StaleRowError:
                stale.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.rows()) == 31
    assert ledger.spent("sweep").reserved_usd == Decimal(4)
    final = ledger.row("shared")
    assert final is not None
    assert final.epoch == 30 - len(stale)


@pytest.mark.parametrize("garbage", [b"no database at all" * 500, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_corrupt_ledger_is_named_and_left_alone(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(garbage)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite") as caught:
        opened(tmp_path)
    assert "reaper" in caught.value.next_step
    assert path.read_bytes() == garbage


def test_a_page_that_is_torn_is_noticed(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    for n in range(200):
        ledger.intend(intent(f"{n:03}", host_public_key="k" * 300))
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    conn.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:20_480] + b"\xa5" * 8192 + whole[28_672:])
    with pytest.raises(LedgerError):
        opened(tmp_path)


def test_a_ledger_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError):
        Ledger(f"sqlite:///{tmp_path}/file/ledger.sqlite")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LedgerError):
        Ledger(f"sqlite:///{tmp_path}/folder")
    for url, says in (
        ("sqlite://", "lost"),
        ("sqlite:///:memory:", "lost"),
        ("nonsense", "read"),
        ("mysql://h/d", "my"),
    ):
        with pytest.raises(ConfigError, match=says):
            Ledger(url)


def _fill_up(tmp_path: Path, answers: Any) -> None:
    ledger = opened(tmp_path)
    kept = ledger.intend(intent("kept"))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try:
        for n in range(500):
            ledger.intend(intent(f"{n}", host_public_key="k" * 5000))
        answers.put("nothing was refused")
    except LedgerError as exc:
        again = Ledger(str(ledger.url), now=ledger.now)
        answers.put((str(exc), again.row("kept") == kept))


def test_a_full_disk_is_a_clear_error_and_what_was_committed_stays(tmp_path: Path) -> None:
    answers = FORK.Queue()
    process = FORK.Process(target=_fill_up, args=(tmp_path, answers))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    answer = answers.get(timeout=10)
    assert isinstance(answer, tuple), answer
    message, kept = answer
    assert "cannot be used" in message
    assert kept
    assert opened(tmp_path).row("kept") is not None
    opened(tmp_path).intend(intent("after"))


def test_passwords_stay_out_of_messages() -> None:
    with pytest.raises((ConfigError, LedgerError)) as caught:
        Ledger("postgresql+psycopg://user:hunter2@127.0.0.1:1/ledger")
    assert "hunter2" not in str(caught.value)


def test_a_volatile_ledger_works_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = Ledger.volatile(now=Clock().now)
    row = ledger.creating(ledger.intend(intent(), cap_usd=Decimal(1)))
    assert ledger.open_rows() == (row,)
    with pytest.raises(StaleRowError):
        ledger.intend(intent())
    assert Ledger.volatile().open_rows() == ()
    assert list(tmp_path.iterdir()) == []


def test_a_new_ledger_has_an_identity_that_stays(tmp_path: Path) -> None:
    first = opened(tmp_path)
    assert opened(tmp_path).ledger_id == first.ledger_id
    assert Ledger(f"sqlite:///{tmp_path}/other.sqlite").ledger_id != first.ledger_id


def test_migrations_run_once_in_order_and_a_newer_ledger_is_refused(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.intend(intent())
    applied: list[int] = []
    next_one = schema.newest() + 1

    def add_column(conn: sa.Connection) -> None:
        applied.append(1)
        conn.exec_driver_sql("ALTER TABLE resources ADD COLUMN colour TEXT NOT NULL DEFAULT ''")

    steps: list[schema.Migration] = [(next_one, add_column), (next_one + 1, lambda conn: applied.append(2))]
    for _ in range(2):
        with ledger._transaction() as conn:
            schema.migrate(conn, 0.0, steps)
            assert schema.version(conn) == next_one + 1
    assert applied == [1, 2]
    with pytest.raises(LedgerError, match=f"version {next_one + 1}"):
        opened(tmp_path)


def test_a_ledger_of_an_earlier_version_is_brought_to_the_newest(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    with ledger._transaction() as conn:
        conn.exec_driver_sql("DROP TABLE sweep_claims")
        conn.exec_driver_sql("ALTER TABLE resources DROP COLUMN account")
        conn.exec_driver_sql("UPDATE migrations SET version = 3")
    opened(tmp_path).claim_sweep("sweep")


def test_a_ledger_without_accounts_learns_of_them(tmp_path: Path) -> None:
    old = opened(tmp_path)
    old.intend(intent())
    old.beat("reaper", ("v",))
    with old._transaction() as conn:
        conn.exec_driver_sql("ALTER TABLE resources DROP COLUMN account")
        conn.exec_driver_sql("ALTER TABLE heartbeats RENAME TO newer")
        conn.exec_driver_sql("CREATE TABLE heartbeats (reaper_id TEXT, vendor TEXT, unix_s DOUBLE PRECISION)")
        conn.exec_driver_sql("UPDATE migrations SET version = 4")
    ledger = opened(tmp_path)
    assert [row.account for row in ledger.rows()] == [""]
    ledger.beat("reaper", ("v",), account="one")
    assert ledger.last_beat("v", account="one") is not None


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    ledger = opened(tmp_path)

    def fail(conn: sa.Connection) -> None:
        conn.exec_driver_sql("ALTER TABLE resources ADD COLUMN colour TEXT")
        conn.exec_driver_sql("this is no SQL")

    with pytest.raises(LedgerError), ledger._transaction() as conn:
        schema.migrate(conn, 0.0, [(schema.newest() + 1, fail)])
    assert opened(tmp_path).rows() == ()
    with ledger._transaction(write=False) as conn:
        assert "colour" not in {column["name"] for column in sa.inspect(conn).get_columns("resources")}


def test_heartbeats(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite", now=clock.now)
    assert ledger.last_beat("v") is None
    ledger.beat("one", ("v", "w"))
    first = clock.now()
    clock.sleep(10)
    ledger.beat("two", ("v",))
    assert ledger.last_beat("v") == clock.now()
    assert ledger.last_beat("w") == first
    ledger.beat("one", ("v",))
    assert ledger.last_beat("v") == clock.now()
    ledger.beat("one", ("x",), account="mine")
    assert (ledger.last_beat("x", account="mine"), ledger.last_beat("x")) == (clock.now(), clock.now())
    assert ledger.last_beat("x", account="yours") is None
    ledger.timed_by(lambda: clock.now() + 3600).beat("ahead", ("v",))
    assert ledger.last_beat("v", clock.now() + 60) == clock.now(), "another host's clock is ahead"


class Money(RuleBasedStateMachine):
    """Whatever happens in whatever order: committed = reserved by open rows + cost of closed ones ≤ cap."""

    rows = Bundle("rows")
    cap_usd = Decimal(5)

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        shared_memory = Path("/dev/shm")
        self.folder = tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None)
        self.clock = Clock()
        self.ledger = Ledger(f"sqlite:///{self.folder.name}/ledger.sqlite", now=self.clock.now)
        self.n = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(target=rows, usd=st.decimals(0, 3, places=4))
    def intend(self, usd: Decimal) -> str:
        self.n += 1
        before = self.ledger.spent("sweep").committed_usd
        try:
            self.ledger.intend(intent(str(self.n), reserved_usd=usd, usd_per_hour=Decimal(1)), cap_usd=self.cap_usd)
        except BudgetError:
            assert before + usd > self.cap_usd
            assert self.ledger.row(str(self.n)) is None
        else:
            assert before + usd <= self.cap_usd
        return str(self.n)

    @rule(identity=rows, to=st.sampled_from(list(ResourceState)[1:]), stale=st.booleans())
    def move(self, identity: str, to: ResourceState, stale: bool) -> None:
        row = self.ledger.row(identity)
        if row is None:
            return
        if stale:
            row = replace(row, epoch=row.epoch - 1)
        try:
            match to:
                case ResourceState.CREATING:
                    self.ledger.creating(row)
                case ResourceState.LIVE:
                    self.ledger.live(row, cloud_id=f"id-{identity}")
                case ResourceState.DELETING:
                    self.ledger.deleting(row)
                case _:
                    self.ledger.gone(row, {})
        except LedgerError:
            assert self.ledger.row(identity) == (replace(row, epoch=row.epoch + 1) if stale else row)

    @rule(seconds=st.floats(0, 1000))
    def wait(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    @invariant()
    def the_books_balance(self) -> None:
        rows = self.ledger.rows()
        spent = self.ledger.spent("sweep")
        closed = [row for row in rows if row.state is ResourceState.GONE]
        assert spent.settled_usd == sum((row.cost_usd or Decimal(0) for row in closed), Decimal(0))
        assert spent.reserved_usd == sum((row.reserved_usd for row in rows if row not in closed), Decimal(0))
        with self.ledger._transaction(write=False) as conn:
            committed = conn.execute(sa.select(schema.sweep_money.c.committed_usd)).scalar() or Decimal(0)
        assert committed == spent.committed_usd


TestMoney = Money.TestCase
TestMoney.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
