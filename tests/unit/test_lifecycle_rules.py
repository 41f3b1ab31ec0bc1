"""What the reaper decides, as pure functions."""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.lifecycle import (
    LedgerRow,
    ResourceState,
    billed_usd,
    cost_usd,
    intent_id,
    may_move,
    server_name,
    token,
)
from tasks.domain.reaping import (
    ABSENT,
    ABSTAIN,
    ADOPT,
    DELETE,
    GONE,
    KEEP,
    UNPROVEN_KILLS,
    Liveness,
    Rules,
    Seen,
    brake,
    deadline_text,
    judge,
    judge_missing,
    matches,
    parse_deadline,
)

NOW = 1_800_000_000.0
RULES = Rules()

ROW = LedgerRow(
    intent_id="intent",
    sweep_id="sweep",
    server_run_id="run",
    vendor="v",
    place="p",
    name="n",
    token="t",
    server_type="small",
    deadline_unix_s=NOW + 3600,
    usd_per_hour=Decimal("0.36"),
    reserved_usd=Decimal("0.4"),
    state=ResourceState.LIVE,
    cloud_id="id",
    intended_unix_s=NOW - 100,
    sent_unix_s=NOW - 100,
    live_unix_s=NOW - 90,
)
SEEN = Seen(
    vendor="v",
    place="p",
    name="n",
    cloud_id="id",
    kind="server",
    state="running",
    ours=True,
    intent_id="intent",
    sweep_id="sweep",
    ledger_id="ledger",
    controller="",
    deadline_unix_s=NOW + 3600,
    created_unix_s=NOW - 100,
)

rows = st.builds(
    replace,
    st.just(ROW),
    state=st.sampled_from(ResourceState),
    cloud_id=st.sampled_from(["", "id", "other"]),
    intent_id=st.sampled_from(["intent", "other"]),
    vendor=st.sampled_from(["v", "w"]),
    deadline_unix_s=st.sampled_from([NOW - 10**6, NOW - 60, NOW + 3600]),
    sent_unix_s=st.sampled_from([None, NOW - 100]),
    absent_since_unix_s=st.sampled_from([None, NOW - 1000, NOW - 10, NOW, NOW + 50]),
    deleting_unix_s=st.sampled_from([None, NOW - 2000, NOW - 5, NOW + 5]),
)
seens = st.builds(
    replace,
    st.just(SEEN),
    ours=st.booleans(),
    state=st.sampled_from(["pending", "running", "stopping", "stopped", "terminated"]),
    kind=st.sampled_from(["server", "disk"]),
    cloud_id=st.sampled_from(["id", "other"]),
    intent_id=st.sampled_from(["", "intent", "other"]),
    ledger_id=st.sampled_from(["", "ledger", "another"]),
    deadline_unix_s=st.sampled_from([None, NOW - 10**6, NOW - 60, NOW + 3600]),
    created_unix_s=st.sampled_from([0.0, NOW - 10**6, NOW - 60, NOW + 60]),
)
lives = st.sampled_from(Liveness)


def decide(row: LedgerRow | None, seen: Seen, **options: Any) -> tuple[str, str]:
    options.setdefault("now_unix_s", NOW)
    decision = judge(row, seen, ledger_id="ledger", **options)
    return decision.action, decision.reason


def test_states_go_forward_only() -> None:
    order = list(ResourceState)
    moves = [(a, b) for a in order for b in order if may_move(a, b)]
    assert all(order.index(a) < order.index(b) for a, b in moves)
    assert (ResourceState.LIVE, ResourceState.GONE) not in moves, "what lived is marked for deletion first"
    assert (ResourceState.INTENDED, ResourceState.LIVE) not in moves


@given(st.text(max_size=80), st.integers(0, 50), st.text(max_size=30))
def test_names_and_tokens_fit_every_vendor(run: str, attempt: int, place: str) -> None:
    identity = intent_id(run, attempt)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", server_name(identity))
    assert re.fullmatch(r"[0-9a-f]{1,64}", token(identity, attempt, place))
    assert re.fullmatch(r"[0-9a-f]{1,63}", identity)
    assert server_name(identity) == server_name(intent_id(run, attempt)), "derived, not drawn"


def test_names_and_tokens_differ_where_the_create_does() -> None:
    assert intent_id("run", 0) != intent_id("run", 1)
    assert len({token("i", 0, "a"), token("i", 1, "a"), token("i", 0, "b"), token("j", 0, "a")}) == 4


@pytest.mark.parametrize(
    "text", ["", "soon", "nan", "inf", "-inf", "-5", "0", "1e400", str(int(NOW * 1000)), "2030-01-01"]
)
def test_a_deadline_that_is_none_is_not_read(text: str) -> None:
    assert parse_deadline(text, NOW) is None


@given(st.floats(1.0, NOW + 6 * 86_400))
def test_a_deadline_survives_its_tag(deadline_unix_s: float) -> None:
    text = deadline_text(deadline_unix_s)
    assert text.isdigit()
    read = parse_deadline(text, NOW)
    assert read is not None
    assert deadline_unix_s <= read <= deadline_unix_s + 1


def test_a_server_in_use_is_kept() -> None:
    assert decide(ROW, SEEN) == (KEEP, "in_use")
    assert decide(ROW, SEEN, controller=Liveness.ALIVE) == (KEEP, "in_use")


def test_a_dead_controllers_server_goes_at_once() -> None:
    assert decide(ROW, SEEN, controller=Liveness.DEAD) == (DELETE, "controller_dead")


def test_an_ended_runs_server_goes_although_its_controller_lives() -> None:
    assert decide(ROW, SEEN, controller=Liveness.ALIVE, run_ended=True) == (DELETE, "run_ended")


@pytest.mark.parametrize("controller", Liveness)
def test_past_its_deadline_everything_goes_but_only_beyond_the_clocks_tolerance(controller: Liveness) -> None:
    for row in (ROW, None):
        for late_s, action in ((-1.0, KEEP), (RULES.skew_s - 1, KEEP), (RULES.skew_s + 1, DELETE)):
            if controller is Liveness.DEAD:
                action = DELETE
            expired = replace(SEEN, deadline_unix_s=NOW - late_s, created_unix_s=NOW - 60)
            known = row and replace(row, deadline_unix_s=NOW - late_s)
            assert decide(known, expired, controller=controller)[0] == action


def test_the_ledgers_deadline_counts_where_the_tag_is_unreadable() -> None:
    assert decide(ROW, replace(SEEN, deadline_unix_s=None, created_unix_s=NOW - 10**6)) == (KEEP, "in_use")


def test_a_deadline_that_nobody_can_read_ends_by_age() -> None:
    unreadable = replace(SEEN, deadline_unix_s=None)
    assert decide(None, unreadable) == (KEEP, "young")
    assert decide(None, replace(unreadable, created_unix_s=NOW - 601)) == (DELETE, "unreadable_deadline")
    assert decide(None, replace(unreadable, created_unix_s=0.0)) == (DELETE, "unreadable_deadline")


def test_what_the_ledger_forgot_goes_when_it_is_no_longer_young() -> None:
    old = replace(SEEN, created_unix_s=NOW - 601)
    assert decide(None, SEEN) == (KEEP, "young")
    assert decide(None, old) == (DELETE, "unknown_to_ledger")
    assert decide(None, old, controller=Liveness.ALIVE) == (KEEP, "controller_alive")
    assert decide(None, old, controller=Liveness.DEAD) == (DELETE, "controller_dead")


def test_another_ledgers_server_is_its_own_until_the_deadline() -> None:
    other = replace(SEEN, ledger_id="another", created_unix_s=NOW - 10**5)
    assert decide(None, other) == (KEEP, "of_another_ledger")
    assert decide(None, other, rules=Rules(sole_ledger=True)) == (DELETE, "unknown_to_ledger")
    assert decide(None, replace(other, deadline_unix_s=NOW - 600)) == (DELETE, "past_deadline")


def test_a_closed_row_that_shows_again_is_deleted_unless_the_listing_is_older() -> None:
    closed = replace(ROW, state=ResourceState.GONE, gone_unix_s=NOW - 10)
    assert decide(closed, SEEN) == (DELETE, "seen_after_gone")
    assert decide(replace(closed, gone_unix_s=NOW + 1), SEEN) == (KEEP, "proven_gone_since")


def test_a_second_server_of_one_intent_goes_and_its_disk_stays() -> None:
    assert decide(ROW, replace(SEEN, cloud_id="second")) == (DELETE, "duplicate")
    assert decide(ROW, replace(SEEN, cloud_id="second", kind="disk")) == (KEEP, "in_use")


def test_a_create_whose_answer_is_awaited_is_given_its_id() -> None:
    creating = replace(ROW, state=ResourceState.CREATING, cloud_id="")
    assert decide(creating, SEEN)[0] == ADOPT
    assert decide(creating, replace(SEEN, kind="disk"))[0] == KEEP


def test_a_server_without_our_tags_is_ours_by_its_id_and_not_by_its_name() -> None:
    stripped = replace(SEEN, ours=False, intent_id="")
    marked = replace(ROW, state=ResourceState.DELETING)
    assert decide(marked, stripped) == (DELETE, "marked_for_deletion")
    assert decide(marked, replace(stripped, cloud_id="recreated")) == (KEEP, "foreign")
    assert not matches(ROW, replace(stripped, cloud_id="recreated"))


@given(st.none() | rows, seens, lives, st.booleans(), st.booleans())
def test_what_is_not_ours_is_never_touched(
    row: LedgerRow | None, seen: Seen, controller: Liveness, run_ended: bool, sole: bool
) -> None:
    decision = judge(
        row,
        seen,
        now_unix_s=NOW,
        controller=controller,
        run_ended=run_ended,
        ledger_id="ledger",
        rules=Rules(sole_ledger=sole),
    )
    ours_by_id = row is not None and row.vendor == seen.vendor and row.cloud_id == seen.cloud_id
    if not seen.ours and not ours_by_id:
        assert decision.action == KEEP
    if seen.state == "terminated":
        assert decision.action == KEEP


@given(st.none() | rows, seens, lives, st.booleans())
def test_a_live_unexpired_server_of_a_living_controller_is_only_killed_for_what_the_brake_counts(
    row: LedgerRow | None, seen: Seen, controller: Liveness, sole: bool
) -> None:
    decision = judge(
        row, seen, now_unix_s=NOW, controller=controller, ledger_id="ledger", rules=Rules(sole_ledger=sole)
    )
    known = row if row is not None and matches(row, seen) else None
    deadline_unix_s = known.deadline_unix_s if known else seen.deadline_unix_s
    unexpired = deadline_unix_s is not None and deadline_unix_s > NOW - RULES.skew_s
    marked = known is not None and known.state is ResourceState.DELETING
    if decision.action == DELETE and unexpired and controller is not Liveness.DEAD and not marked:
        assert decision.reason in UNPROVEN_KILLS


def missing(row: LedgerRow, **options: Any) -> tuple[str, str]:
    options.setdefault("lag_s", 60.0)
    decision = judge_missing(row, listing_complete=True, listed_unix_s=NOW, **options)
    return decision.action, decision.reason


DELETING = replace(ROW, state=ResourceState.DELETING, deleting_unix_s=NOW - 500)


def test_gone_takes_two_complete_listings_a_lag_apart() -> None:
    assert missing(DELETING) == (ABSENT, "first_absence")
    assert missing(replace(DELETING, absent_since_unix_s=NOW - 59)) == (KEEP, "second_absence_too_soon")
    assert missing(replace(DELETING, absent_since_unix_s=NOW), lag_s=0.0) == (KEEP, "second_absence_too_soon")
    assert missing(replace(DELETING, absent_since_unix_s=NOW - 60)) == (GONE, "absent_twice")


def test_a_listing_from_before_the_deletion_proves_nothing() -> None:
    assert missing(replace(DELETING, deleting_unix_s=NOW + 1))[0] == ABSTAIN


def test_a_lost_create_is_not_gone_before_its_deadline() -> None:
    lost = replace(DELETING, cloud_id="", absent_since_unix_s=NOW - 1000)
    assert missing(lost) == (KEEP, "lost_create_may_appear")
    assert missing(replace(lost, deadline_unix_s=NOW - RULES.skew_s)) == (KEEP, "lost_create_may_appear")
    assert missing(replace(lost, deadline_unix_s=NOW - RULES.skew_s - 1)) == (GONE, "absent_twice")
    assert missing(replace(lost, sent_unix_s=None)) == (GONE, "absent_twice")


def test_an_intent_that_was_never_sent_ends_with_its_controller() -> None:
    intended = replace(ROW, state=ResourceState.INTENDED, cloud_id="", sent_unix_s=None)
    assert missing(intended) == (KEEP, "in_use")
    assert missing(intended, controller=Liveness.DEAD) == (GONE, "never_sent")


@given(rows, st.booleans(), lives, st.booleans())
def test_gone_is_never_concluded_from_less_than_its_proof(
    row: LedgerRow, complete: bool, controller: Liveness, run_ended: bool
) -> None:
    decision = judge_missing(
        row,
        listing_complete=complete,
        listed_unix_s=NOW,
        lag_s=60.0,
        controller=controller,
        run_ended=run_ended,
    )
    if decision.action == GONE and row.state is not ResourceState.INTENDED:
        assert complete
        assert row.state is ResourceState.DELETING
        assert row.absent_since_unix_s is not None
        assert NOW - row.absent_since_unix_s >= 60.0
        if not row.cloud_id and row.sent_unix_s is not None:
            assert row.deadline_unix_s < NOW
    if row.state is ResourceState.INTENDED and decision.action == GONE:
        assert controller is Liveness.DEAD or run_ended or row.deadline_unix_s < NOW


def test_the_brake_holds_mass_kills_and_lets_single_ones_pass() -> None:
    assert not brake(5, 5)
    assert brake(6, 6)
    assert not brake(20, 100)
    assert brake(21, 100)
    assert not brake(0, 0)


@pytest.mark.parametrize(
    ("lifetime_s", "minimum_s", "increment_s", "usd"),
    [
        (3600, 0, 1, "0.36"),
        (1, 60, 1, "0.006"),
        (3601, 60, 3600, "0.72"),
        (0, 0, 3600, "0"),
        (-5, 0, 1, "0"),
        (10, 0, 0, "0.001"),
    ],
)
def test_bills(lifetime_s: float, minimum_s: int, increment_s: int, usd: str) -> None:
    assert billed_usd(Decimal("0.36"), lifetime_s, minimum_s, increment_s) == Decimal(usd)


@given(
    st.decimals(0, 100, places=8), st.floats(0, 10**6), st.floats(0, 10**6), st.integers(0, 3600), st.integers(1, 3600)
)
def test_bills_grow_with_time_and_never_fall_short(
    price: Decimal, a_s: float, b_s: float, minimum_s: int, increment_s: int
) -> None:
    short, long = sorted((a_s, b_s))
    bill = billed_usd(price, short, minimum_s, increment_s)
    assert bill <= billed_usd(price, long, minimum_s, increment_s)
    assert bill >= price * Decimal(max(short, minimum_s)) / 3600


def test_what_never_had_an_id_cost_nothing() -> None:
    assert cost_usd(replace(ROW, cloud_id=""), NOW) == 0
    assert cost_usd(replace(ROW, last_delete_unix_s=NOW), NOW + 500) == Decimal("0.01")
    assert cost_usd(replace(ROW, absent_since_unix_s=NOW), NOW + 500) == Decimal("0.01")
    assert cost_usd(ROW, NOW) == Decimal("0.01")
