"""What every vendor's no means: no stock, no quota, not so fast, not you."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.clouds.base import ErrorKind, Scope
from tasks.clouds.lifecycle import region_of
from tasks.domain.errors import AuthError, ProviderError, QuotaError
from tasks.domain.lifecycle import ResourceState
from tests.contract.bench import Bench


def test_no_capacity_goes_on_to_another_place_and_leaves_nothing_in_the_first(bench: Bench) -> None:
    if len(bench.world.places) < 2:
        pytest.skip("this vendor has one place")
    bench.world.plant(bench.world.capacity_fault())
    live = bench.create()
    assert live.resource.place != bench.world.places[0]
    assert bench.recorder.places[0] == bench.world.places[0]
    kinds = {found.kind for found in bench.recorder.found}
    assert ErrorKind.CAPACITY in kinds, bench.recorder.found
    assert bench.servers() == [live.resource.cloud_id]
    (refused,) = [f for f in bench.recorder.found if f.kind is ErrorKind.CAPACITY][:1]
    if refused.scope is Scope.REGION:
        assert region_of(live.resource.place) != region_of(bench.world.places[0])
    bench.stage.settle()


def test_a_place_that_had_none_is_not_asked_again_by_the_next_server_run_for_some_minutes(bench: Bench) -> None:
    if len(bench.world.places) < 2:
        pytest.skip("this vendor has one place")
    bench.world.plant(bench.world.capacity_fault())
    other = bench.create("first").resource.place
    bench.recorder.places.clear()
    assert bench.create("second").resource.place == other
    assert bench.recorder.places == [other]
    bench.world.sleep(bench.cloud.traits.dry_s)
    bench.stage.reap(prove_s=0)
    assert bench.create("third").resource.place == bench.world.places[0]
    bench.stage.settle()


def test_no_capacity_anywhere_is_said_and_costs_nothing(bench: Bench) -> None:
    bench.world.plant(replace(bench.world.capacity_fault(), times=len(bench.world.places)))
    with pytest.raises(ProviderError):
        bench.create()
    assert bench.servers() == []
    bench.stage.settle()
    assert all(row.cost_usd == 0 for row in bench.stage.ledger.rows())


def test_a_throttled_create_waits_and_never_goes_elsewhere(bench: Bench) -> None:
    bench.world.plant(replace(bench.world.throttle_fault(), times=3))
    live = bench.create()
    assert set(bench.recorder.places) == {bench.world.places[0]}
    assert live.resource.place == bench.world.places[0]
    assert {f.kind for f in bench.recorder.found} == {ErrorKind.RATE_LIMITED}
    assert len(bench.recorder.found) == 3, "the SDK's own retries would hide the throttling"
    assert len(bench.servers()) == 1
    bench.stage.settle()


def test_a_quota_is_no_stockout(bench: Bench) -> None:
    bench.world.plant(bench.world.quota_fault())
    try:
        live = bench.create()
    except QuotaError:
        assert set(bench.recorder.places) == {bench.world.places[0]}
    except ProviderError as exc:
        pytest.fail(f"a quota became {exc!r}")
    else:
        assert region_of(live.resource.place) != region_of(bench.world.places[0])
    (found, *_) = bench.recorder.found
    assert found.kind is ErrorKind.QUOTA and found.scope in (Scope.REGION, Scope.VENDOR, Scope.SERVER_TYPE), found
    bench.stage.settle()


def test_bad_credentials_stop_all_creates_at_the_vendor(bench: Bench) -> None:
    bench.world.plant(replace(bench.world.auth_fault(), times=1))
    with pytest.raises(AuthError):
        bench.create()
    assert len(set(bench.recorder.places)) == 1 and bench.servers() == []
    bench.stage.settle()


def test_expired_credentials_are_no_proof_that_something_is_gone(bench: Bench) -> None:
    live = bench.create()
    bench.world.plant(replace(bench.world.auth_fault(), times=60))
    for _ in range(2):
        bench.stage.reap(prove_s=0)
    (row,) = bench.stage.ledger.rows()
    assert row.state is not ResourceState.GONE
    assert bench.servers() == [live.resource.cloud_id]
    bench.drain()
    bench.stage.settle()
