"""Gateways that answer HTML, JSON that is cut, regions that never answer, credentials that end: every vendor alike.

Over HTTP and the vendor's own SDK. No such answer is ever taken for "it is not there", and none makes a second server.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from tasks.clouds.base import Classified, ErrorKind
from tasks.clouds.deletion import list_owned, request_delete
from tasks.domain.errors import AmbiguousError, AuthError
from tasks.domain.lifecycle import ResourceState
from tests.chaos.stage import Stage
from tests.contract.bench import Bench
from tests.contract.worlds import open_world, spoken_to_over_http
from tests.emulators.base import Fault, How
from tests.emulators.emulated import EmulatedWorld

IMPATIENCE_S = 8.0  # waited for twice at each vendor; shorter, and a busy machine would time out by itself
ALWAYS = 10_000


@pytest.fixture(params=spoken_to_over_http())
def vendor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cache
def _warm(vendor: str) -> None:
    """What an SDK and an emulator read once per process takes seconds, and is not what is to time out."""
    with open_world(vendor) as world:
        world.cloud.create(Bench(world, Stage(world)).spec())


@contextmanager
def _opened(vendor: str, **options: Any) -> Iterator[tuple[Bench, EmulatedWorld]]:
    with open_world(vendor, **options) as world:
        assert isinstance(world, EmulatedWorld)
        yield Bench(world, Stage(world)), world


def _means(bench: Bench, act: Any) -> Classified:
    """What the failure means; that it does not fail is one, too."""
    with pytest.raises(Exception) as failed:
        act()
    return bench.cloud.classify(failed.value)


@pytest.mark.parametrize("how", ["html_502", "truncated"])
def test_an_answer_that_is_none_says_nothing_about_the_create(vendor: str, how: How) -> None:
    with _opened(vendor) as (bench, world):
        n_before = 0
        for number, after in enumerate((False, True)):
            world.plant(Fault(world.refusals.create, how=how, after=after))
            spec = bench.spec(f"alone-{number}")
            found = _means(bench, lambda spec=spec: world.cloud.create(spec))
            assert (found.kind, found.may_exist) == (ErrorKind.UNKNOWN, True), found
            assert len(bench.servers()) == n_before + after
        n_before = len(bench.servers())

        world.plant(Fault(world.refusals.create, how=how, after=True))
        live = bench.create("after")
        assert len(bench.servers()) == n_before + 1 and live.resource.cloud_id in bench.servers()

        world.plant(Fault(world.refusals.create, how=how))
        traits = bench.cloud.traits
        if traits.unique_names or traits.idempotency_token:
            assert bench.create("before").resource.cloud_id in bench.servers()
        else:
            with pytest.raises(AmbiguousError):
                bench.create("before")
        bench.stage.settle()


@pytest.mark.parametrize("how", ["html_502", "truncated"])
def test_an_answer_that_is_none_is_no_absence_and_no_deletion(vendor: str, how: How) -> None:
    with _opened(vendor) as (bench, world):
        live = bench.create()
        ref, there = live.resource.ref(), [live.resource.cloud_id]

        world.plant(Fault("", how=how))
        assert _means(bench, lambda: world.cloud.get(ref)).kind is ErrorKind.UNKNOWN

        world.plant(Fault("", how=how))
        listing = list_owned(world.cloud, world.now)
        assert not listing.complete and listing.problems

        world.plant(Fault("", how=how))
        assert _means(bench, lambda: world.cloud.delete(ref)).kind is ErrorKind.UNKNOWN
        assert bench.servers() == there

        world.plant(Fault("", how=how, times=ALWAYS))
        assert not request_delete(world.cloud, bench.stage.ledger, live.row), "not taken"
        for _ in range(3):
            bench.stage.reap(prove_s=0)
            world.sleep(world.cloud.traits.visibility_lag_s + 1)
        row = bench.stage.ledger.row(live.row.intent_id)
        assert row is not None and row.state is ResourceState.DELETING and row.last_error
        assert bench.servers() == there

        world.emulator.faults.clear()
        bench.stage.settle()


def test_credentials_that_expire_in_the_middle_of_a_run_end_nothing_and_prove_nothing(vendor: str) -> None:
    with _opened(vendor) as (bench, world):
        live = bench.create()
        ref, there = live.resource.ref(), [live.resource.cloud_id]

        world.plant(replace(world.auth_fault(), times=ALWAYS))
        for act in (lambda: world.cloud.get(ref), lambda: world.cloud.delete(ref)):
            assert _means(bench, act).kind is ErrorKind.AUTH
        listing = list_owned(world.cloud, world.now)
        assert not listing.complete and listing.problems
        with pytest.raises(AuthError):
            bench.create("another")
        assert not request_delete(world.cloud, bench.stage.ledger, live.row), "not taken"
        for _ in range(3):
            report = bench.stage.reap(prove_s=0)
            assert not report.finished
            world.sleep(world.cloud.traits.visibility_lag_s + 1)
        row = bench.stage.ledger.row(live.row.intent_id)
        assert row is not None and row.state is ResourceState.DELETING and row.last_error
        assert bench.servers() == there, "nothing was made, and nothing deleted"

        world.emulator.faults.clear()  # they are renewed
        bench.stage.settle()


def test_a_region_that_never_answers_makes_no_second_server_and_is_no_proof(vendor: str) -> None:
    _warm(vendor)
    with _opened(vendor, read_timeout_s=IMPATIENCE_S) as (bench, world):
        spec = bench.spec("alone")
        world.plant(Fault(world.refusals.create, how="hang", after=True, seconds=600))
        found = _means(bench, lambda: world.cloud.create(spec))
        assert (found.kind, found.may_exist) == (ErrorKind.UNKNOWN, True), found
        sent = [call for call in world.calls() if call.split(" us-")[0] == world.refusals.create]
        assert len(sent) == 1, "the SDK does not send it again by itself"
        (there,) = bench.servers()

        world.plant(Fault("", how="hang", seconds=600))
        listing = list_owned(world.cloud, world.now)
        assert not listing.complete and listing.problems
        world.emulator.faults.clear()
        assert bench.servers() == [there]
        bench.stage.settle()
