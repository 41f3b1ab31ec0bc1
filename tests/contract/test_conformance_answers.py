"""Requests and answers that get lost, at every vendor: nothing is made twice, and nothing is proven by silence."""

from __future__ import annotations

import json
import ssl

import pytest
import requests
import urllib3

from tasks.clouds.base import ErrorKind
from tasks.clouds.deletion import classify, list_owned
from tasks.domain.errors import TokensweepError
from tasks.domain.lifecycle import ResourceState
from tasks.domain.reaping import SERVER
from tests.chaos.stage import Stage
from tests.chaos.trap import How, Point, Trap, trapped_http
from tests.contract.bench import PATIENCE, Bench
from tests.contract.world import VendorWorld
from tests.contract.worlds import open_world
from tests.emulators.base import Fault

SECRETS = ("NOT-TO-BE-SHOWN", "BEGIN OPENSSH PRIVATE KEY")


@pytest.mark.parametrize("how", [How.REFUSED, How.LOST, How.GARBLED])
def test_any_request_of_a_create_may_fail_and_one_server_or_none_comes_of_it(vendor: str, how: How) -> None:
    """Every request of the create in turn. What was made is adopted or ended; nothing is made twice."""
    with open_world(vendor) as world:
        points = _requests_of_a_create(world)
        over_http = bool(points)
        points = points or [Point("create", 0)]
        once = [p for n, p in enumerate(points) if not _create_with(world, f"run-{n}", over_http, {p: how})]
    for point in once:  # what an account needs only once, and a module remembers
        with open_world(vendor) as world:
            assert _create_with(world, "run", over_http, {point: how}), point


def _requests_of_a_create(world: VendorWorld) -> list[Point]:
    bench, trap = Bench(world, Stage(world)), Trap()
    spec = bench.spec()
    with trapped_http(trap):
        created = world.cloud.create(spec)
    bench.until(lambda: bench.running(created), "it runs")
    world.cloud.delete(created.ref())
    bench.until(lambda: not bench.stage.existing(), "it is gone")
    return list(dict.fromkeys(trap.points))


def _create_with(world: VendorWorld, run: str, over_http: bool, fates: dict[Point, How]) -> bool:
    """Whether the run came to these points at all."""
    stage, trap = Stage(world, over_http=over_http, limits=PATIENCE), Trap(fates)
    try:
        with stage.trapped(trap):
            stage.create(run, trap)
    except TokensweepError:
        n_returned = 0
    else:
        n_returned = 1
    alive = [x for x in stage.existing() if x.kind == SERVER]
    assert n_returned <= len(alive) <= 1, f"{fates}: {n_returned} was returned, and there are {alive}"
    stage.settle()
    return trap.met == set(fates)


@pytest.mark.parametrize("how", [How.REFUSED, How.LOST, How.GARBLED])
def test_a_listing_is_complete_or_says_that_it_is_not(vendor: str, how: How) -> None:
    """Every HTTP request of a listing in turn."""
    with open_world(vendor) as world:
        bench = Bench(world, Stage(world))
        live = bench.create()
        bench.until(lambda: bench.listed(live.row.intent_id), "it is listed")
        trap = Trap()
        with trapped_http(trap):
            whole = {r.cloud_id for r in world.cloud.list_owned().resources}
        if not trap.points:
            pytest.skip("this vendor is not asked over HTTP")
        for point in dict.fromkeys(trap.points):
            failing = Trap({point: how})
            with trapped_http(failing):
                listing = list_owned(world.cloud, world.now)
            assert point in failing.met
            shown = {r.cloud_id for r in listing.resources}
            assert not listing.complete or shown == whole, f"{point}: complete without {whole - shown}"
            if not listing.complete:
                assert listing.problems, point
        bench.stage.settle()


def test_a_partial_listing_proves_nothing(bench: Bench) -> None:
    live = bench.create()
    bench.stage.ledger.deleting(live.row)
    for _ in range(4):
        bench.world.plant(Fault(operation="", how="html_502", times=1))
        bench.stage.reap(prove_s=0)
        row = bench.stage.ledger.row(live.row.intent_id)
        assert row is not None
        if row.state is ResourceState.GONE:
            assert bench.servers() == []
        bench.world.sleep(5)
    bench.stage.settle()


def test_no_secret_is_in_what_fails(vendor: str) -> None:
    """The private host key travels in every create; no error may carry it, nor the credentials, into a log or a row."""
    with open_world(vendor) as world:
        stage = Stage(world)
        bench = Bench(world, stage)
        secrets = [*SECRETS, *getattr(world, "secrets", list)()]
        for how in ("drop", "html_502", "truncated"):
            for after in (False, True):
                world.plant(Fault(operation="", how=how, after=after))
                try:
                    world.cloud.create(bench.spec(f"{how}-{after}"))
                except Exception as exc:
                    found = classify(world.cloud, exc)
                    told = [repr(exc), str(exc), json.dumps(exc.__dict__, default=repr), found.message, found.code]
                    assert not [s for s in secrets if any(s in text for text in told)], told
        assert not [s for s in secrets if s in repr(world.cloud) or s in str(vars(world.cloud))]
        bench.drain()
        stage.settle()


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this works")

    __repr__ = __str__


STRANGE = [
    ValueError("Expecting value: line 1 column 1 (char 0)"),
    json.JSONDecodeError("Expecting value", "<html>", 0),
    KeyError("server"),
    TimeoutError(),
    ConnectionResetError(104, "Connection reset by peer"),
    OSError("no route to host"),
    ssl.SSLError("certificate verify failed"),
    requests.exceptions.ReadTimeout("read timed out"),
    requests.exceptions.ConnectionError(),
    urllib3.exceptions.ProtocolError("Connection aborted."),
    RuntimeError(),
    KeyboardInterrupt(),
    Exception(None, {"a": object()}),
]


@pytest.mark.parametrize("exc", STRANGE, ids=lambda exc: type(exc).__name__)
def test_what_the_module_does_not_know_may_have_made_a_server(bench: Bench, exc: BaseException) -> None:
    found = bench.cloud.classify(exc)
    assert (found.kind, found.may_exist) == (ErrorKind.UNKNOWN, True)


def test_classify_never_raises(bench: Bench) -> None:
    for exc in (BaseException(), SystemExit(3), GeneratorExit(), ExceptionGroup("g", [OSError()])):
        assert bench.cloud.classify(exc).may_exist
    assert classify(bench.cloud, UnprintableError()).may_exist
