"""What every vendor module must do, the same for all: over its own SDK, against its emulator, and in memory.

The shared life-cycle code relies on each of these. A test that a vendor cannot take part in says why. What a module
makes of refusals is in `test_conformance_refusals.py`, of answers that are none in `test_conformance_answers.py`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.clouds.accounts import account_of
from tasks.clouds.base import ErrorKind, Ref
from tasks.clouds.deletion import delete_and_prove, list_owned
from tasks.domain.errors import ConfigError, ProviderError
from tasks.domain.lifecycle import ResourceState
from tasks.domain.reaping import SERVER, TERMINATED
from tests.contract.bench import Bench


def test_a_server_is_created_shown_and_deleted_with_all_that_it_brought(bench: Bench) -> None:
    spec = bench.spec()
    created = bench.cloud.create(spec)
    assert (created.kind, created.name, created.place) == (SERVER, spec.name, spec.place)
    assert created.cloud_id and created.state in ("pending", "running")
    assert created.vendor == bench.cloud.vendor

    running = bench.until(lambda: bench.running(created), "it runs and has an address")
    assert running.cloud_id == created.cloud_id
    shown = bench.until(lambda: bench.listed(spec.intent_id), "it is listed")
    assert [r.cloud_id for r in shown if r.kind == SERVER] == [created.cloud_id], "one id in create, get and list"

    bench.cloud.delete(created.ref())
    bench.until(lambda: not [x for x in bench.world.existing() if x.ours], "nothing of it exists")
    bench.until(lambda: bench.listed(spec.intent_id) == [], "nothing of it is listed")
    found = bench.cloud.get(created.ref())
    assert found is None or found.state == TERMINATED
    assert bench.stage.foreign_now() == bench.stage.foreign


def test_tags_are_read_back_as_they_were_given(bench: Bench) -> None:
    spec = bench.spec()
    created = bench.cloud.create(spec)
    shown = bench.until(lambda: bench.listed(spec.intent_id), "it is listed")
    for resource in [created, *(r for r in shown if r.kind == SERVER)]:
        assert {key: resource.tags.get(key) for key in spec.tags} == spec.tags
    found = bench.until(lambda: bench.cloud.get(created.ref()), "get answers")
    assert {key: found.tags.get(key) for key in spec.tags} == spec.tags


def test_a_second_create_with_the_same_spec_makes_no_second_server_where_the_vendor_can_tell(bench: Bench) -> None:
    traits = bench.cloud.traits
    if not (traits.unique_names or traits.idempotency_token):
        pytest.skip("it knows neither unique names nor tokens; the shared code never sends its creates twice")
    spec = bench.spec()
    first = bench.cloud.create(spec)
    try:
        assert bench.cloud.create(spec).cloud_id == first.cloud_id
    except Exception as exc:
        found = bench.cloud.classify(exc)
        assert found.kind is ErrorKind.EXISTS or found.may_exist, found
    assert bench.servers() == [first.cloud_id]


def test_a_second_delete_is_silent_and_so_is_one_of_what_never_was(bench: Bench) -> None:
    created = bench.cloud.create(bench.spec())
    bench.until(lambda: bench.running(created), "it runs")
    bench.cloud.delete(created.ref())
    _delete_again(bench, created.ref())
    bench.until(lambda: not bench.servers(), "it is gone")
    _delete_again(bench, created.ref())
    assert bench.stage.foreign_now() == bench.stage.foreign


def _delete_again(bench: Bench, ref: Ref) -> None:
    """Silent, or the vendor says that it is being deleted already; never that something else is wrong."""
    try:
        bench.cloud.delete(ref)
    except Exception as exc:
        assert bench.cloud.classify(exc).kind in (ErrorKind.NOT_FOUND, ErrorKind.DELETE_BLOCKED)


def test_a_server_that_another_one_has_replaced_under_its_name_is_not_deleted(bench: Bench) -> None:
    spec = bench.spec()
    first = bench.cloud.create(spec)
    bench.until(lambda: bench.running(first), "it runs")
    bench.cloud.delete(first.ref())
    bench.until(lambda: not [x for x in bench.world.existing() if x.ours], "it is gone")
    again = bench.spec("another run")
    second = bench.cloud.create(replace(again, name=spec.name))
    if second.cloud_id == first.cloud_id:
        pytest.skip("this vendor's ids are names: the ledger never gives one name twice")
    bench.cloud.delete(first.ref())
    bench.world.sleep(60)
    assert bench.servers() == [second.cloud_id]


def test_the_whole_life_over_the_shared_code(bench: Bench) -> None:
    live = bench.create()
    assert bench.recorder.places == [bench.world.places[0]]
    assert live.row.state is ResourceState.LIVE and live.resource.address
    lag_s = bench.cloud.traits.visibility_lag_s
    row = delete_and_prove(
        bench.cloud,
        bench.stage.ledger,
        live.row,
        now=bench.world.now,
        sleep=bench.world.sleep,
        timeout_s=900 + 4 * lag_s,
    )
    assert row.state is ResourceState.GONE and row.cost_usd is not None and row.cost_usd > 0
    bench.stage.settle()


def test_a_server_is_of_the_account_that_the_vendor_tells(bench: Bench) -> None:
    account = account_of(bench.cloud)
    assert bool(account) == (bench.cloud.vendor in ("aws", "azure", "gcp"))
    assert bench.create().row.account == account
    assert list_owned(bench.cloud, bench.world.now).account == account


def test_foreign_resources_are_neither_listed_nor_touched(bench: Bench) -> None:
    bench.world.add_foreign()
    foreign = bench.stage.foreign_now()
    live = bench.create()
    ours = {r.cloud_id for r in bench.cloud.list_owned().resources}
    assert not ours & {cloud_id for _, cloud_id in foreign}
    bench.cloud.delete(live.resource.ref())
    bench.stage.foreign = foreign
    bench.stage.settle()


def test_a_resource_that_was_left_behind_can_be_deleted_by_what_the_listing_shows_of_it(bench: Bench) -> None:
    """Everything that a listing shows of us is given to `delete`, each on its own, side resources first."""
    live = bench.create()
    shown = bench.until(lambda: bench.listed(live.row.intent_id), "it is listed")
    for resource in sorted(shown, key=lambda r: r.kind == SERVER):
        try:
            bench.cloud.delete(resource.ref())
        except Exception as exc:
            found = bench.cloud.classify(exc)
            assert found.kind is not ErrorKind.UNKNOWN, f"{resource.kind} in use: {found}"
    bench.stage.settle()


def test_the_catalogue_sells_what_it_says(bench: Bench) -> None:
    kind = bench.cloud.server_type(bench.world.server_type)
    assert kind.name in {x.name for x in bench.cloud.catalog()}
    assert kind.vendor == bench.cloud.vendor and set(bench.world.places) <= set(kind.places)
    assert kind.vcpus > 0 and kind.memory_bytes > 0 and kind.price_per_hour >= 0 and kind.currency
    assert kind.price_source and kind.price_read_unix_s >= 0
    with pytest.raises((ConfigError, ProviderError)):
        bench.cloud.server_type("no-such-type")
