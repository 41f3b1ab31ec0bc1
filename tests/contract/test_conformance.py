"""What every vendor module must do, the same for all: over its own SDK, against its emulator, and in memory.

The shared life-cycle code relies on each of these. A test that a vendor cannot take part in says why.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import requests
import urllib3

from tasks.clouds.base import Classified, Cloud, CreateSpec, ErrorKind, Ref, Resource, Scope
from tasks.clouds.deletion import classify, delete_and_prove, list_owned
from tasks.clouds.lifecycle import create_server, region_of
from tasks.clouds.request import Draft
from tasks.clouds.sending import CreateLimits
from tasks.clouds.tags import with_tags
from tasks.domain.errors import AuthError, ConfigError, ProviderError, QuotaError, TokensweepError
from tasks.domain.lifecycle import ResourceState, intent_id, server_name, token
from tasks.domain.reaping import SERVER, TERMINATED
from tests.chaos.stage import Stage, make_spec
from tests.chaos.trap import How, Point, Trap, trapped_http
from tests.contract.world import VendorWorld
from tests.contract.worlds import names, open_world
from tests.emulators.base import Fault

PATIENCE = CreateLimits(resolve_s=120.0, throttled_s=300.0, boot_s=600.0)
SECRETS = ("NOT-TO-BE-SHOWN", "BEGIN OPENSSH PRIVATE KEY")


@dataclass
class Recorder:
    """The vendor module, with everything that it was asked to create and everything that it classified."""

    cloud: Cloud
    places: list[str] = field(default_factory=list)
    found: list[Classified] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cloud, name)

    def create(self, spec: CreateSpec) -> Resource:
        self.places.append(spec.place)
        return self.cloud.create(spec)

    def classify(self, exc: BaseException) -> Classified:
        found = self.cloud.classify(exc)
        self.found.append(found)
        return found


@dataclass
class Bench:
    """One vendor, its stage (ledger, reaper, oracle), and short ways to do what the tests do."""

    world: VendorWorld
    stage: Stage

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.world.cloud)

    @property
    def cloud(self) -> Cloud:
        return self.world.cloud

    def create(self, run: str = "run", **changes: Any) -> Any:
        return create_server(
            cast("Cloud", self.recorder),
            self.stage.ledger,
            make_spec,
            self.stage.request(run, **changes),
            now=self.world.now,
            sleep=self.world.sleep,
            limits=PATIENCE,
        )

    def spec(self, run: str = "run", place: str = "") -> CreateSpec:
        """A spec as the life cycle makes them, to talk to the module directly."""
        place, intent = place or self.world.places[0], intent_id(run, 0)
        draft = Draft(
            intent_id=intent,
            name=server_name(intent),
            token=token(intent, 0, place),
            place=place,
            server_type=self.world.server_type,
            sweep_id="sweep",
            server_run_id=run,
            deadline_unix_s=self.world.now() + 3600,
        )
        return with_tags(make_spec(draft), ledger_id=self.stage.ledger.ledger_id, controller="0-0-1-1-1")

    def until(self, condition: Any, what: str, patience_s: float = 900.0) -> Any:
        """Let the world's time pass until it holds."""
        give_up_unix_s = self.world.now() + patience_s
        while True:
            found = condition()
            if found:
                return found
            assert self.world.now() < give_up_unix_s, f"in {patience_s:.0f} s: {what}"
            self.world.sleep(2.0)

    def listed(self, intent_id: str) -> list[Resource]:
        listing = list_owned(self.cloud, self.world.now)
        assert listing.complete, listing.problems
        return [r for r in listing.resources if r.tags.get("tokensweep-intent") == intent_id and r.state != TERMINATED]

    def servers(self) -> list[str]:
        return [x.cloud_id for x in self.world.existing() if x.ours and x.kind == SERVER]


@pytest.fixture(params=names())
def vendor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bench(vendor: str) -> Iterator[Bench]:
    with open_world(vendor) as world:
        yield Bench(world, Stage(world))


def test_a_server_is_created_shown_and_deleted_with_all_that_it_brought(bench: Bench) -> None:
    spec = bench.spec()
    created = bench.cloud.create(spec)
    assert (created.kind, created.name, created.place) == (SERVER, spec.name, spec.place)
    assert created.cloud_id and created.state in ("pending", "running")
    assert created.vendor == bench.cloud.vendor

    running = bench.until(lambda: _running(bench, created), "it runs and has an address")
    assert running.cloud_id == created.cloud_id
    shown = bench.until(lambda: bench.listed(spec.intent_id), "it is listed")
    assert [r.cloud_id for r in shown if r.kind == SERVER] == [created.cloud_id], "one id in create, get and list"

    bench.cloud.delete(created.ref())
    bench.until(lambda: not [x for x in bench.world.existing() if x.ours], "nothing of it exists")
    bench.until(lambda: bench.listed(spec.intent_id) == [], "nothing of it is listed")
    found = bench.cloud.get(created.ref())
    assert found is None or found.state == TERMINATED
    assert bench.stage.foreign_now() == bench.stage.foreign


def _running(bench: Bench, created: Resource) -> Resource | None:
    found = bench.cloud.get(created.ref())
    return found if found is not None and found.state == "running" and found.address else None


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
    bench.until(lambda: _running(bench, created), "it runs")
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
    bench.until(lambda: _running(bench, first), "it runs")
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
    bench.until(lambda: _running(bench, created), "it runs")
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
    _drain(bench)
    bench.stage.settle()


def _drain(bench: Bench) -> None:
    """Use up the planted faults."""
    for _ in range(200):
        if list_owned(bench.cloud, bench.world.now).complete:
            return
        bench.world.sleep(1)
    pytest.fail("the listing never became complete again")


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
        _drain(bench)
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


def test_the_catalogue_sells_what_it_says(bench: Bench) -> None:
    kind = bench.cloud.server_type(bench.world.server_type)
    assert kind.name in {x.name for x in bench.cloud.catalog()}
    assert kind.vendor == bench.cloud.vendor and set(bench.world.places) <= set(kind.places)
    assert kind.vcpus > 0 and kind.memory_bytes > 0 and kind.price_per_hour >= 0 and kind.currency
    assert kind.price_source and kind.price_read_unix_s >= 0
    with pytest.raises((ConfigError, ProviderError)):
        bench.cloud.server_type("no-such-type")
