"""The GCP module where the vendor, the network or the account fails: what is raised, what it means, what exists."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from google.oauth2.credentials import Credentials

from tasks.clouds.base import Classified, CreateSpec, ErrorKind, Ref, Scope
from tasks.clouds.deletion import delete_and_prove
from tasks.clouds.lifecycle import Draft, LiveServer, ServerRequest, create_server
from tasks.domain.errors import AuthError, CleanupError, UnsupportedError
from tasks.domain.lifecycle import ResourceState
from tasks.ledger import Ledger
from tasks.reaper import reap
from tests.contract.gcp_servers import HOST_KEY, TTL_S, asked_for, ours, spec_for
from tests.emulators.base import Fault
from tests.emulators.gcp import TOKEN
from tests.emulators.gcp_state import INSTANCE, Timing
from tests.emulators.gcp_world import GcpWorld, open_world


@pytest.fixture
def world() -> Iterator[GcpWorld]:
    with open_world() as opened:
        yield opened


@pytest.fixture
def ledger(world: GcpWorld, tmp_path: Path) -> Ledger:
    opened = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite", now=world.now)
    opened.beat("reaper", ("gcp",), account=world.cloud.project)
    return opened


def make_spec(draft: Draft) -> CreateSpec:
    return CreateSpec(**vars(draft), client_public_key="client", host_private_key="secret", host_public_key="pinned")


def create(world: GcpWorld, ledger: Ledger, **changes: Any) -> LiveServer:
    """Through the shared code, as a sweep does."""
    request = ServerRequest(
        sweep_id="sweep",
        server_run_id="run",
        server_type=world.server_type,
        places=world.places,
        deadline_unix_s=world.now() + TTL_S,
        usd_per_hour=Decimal(1),
        cap_usd=Decimal(100),
    )
    return create_server(world.cloud, ledger, make_spec, replace(request, **changes), now=world.now, sleep=world.sleep)


def settle(world: GcpWorld, ledger: Ledger) -> None:
    """Everything is over: pass the deadline, reap, and nothing of ours is left."""
    world.emulator.faults.clear()
    world.sleep(TTL_S + 1000)
    for _ in range(3):
        report = reap([world.cloud], ledger, world.now, world.sleep, prove_s=120)
    assert report.finished, report
    assert ours(world) == []
    assert {row.state for row in ledger.rows()} <= {ResourceState.GONE}


def refusal(world: GcpWorld, **changes: Any) -> Classified:
    with pytest.raises(Exception) as refused:
        world.cloud.create(spec_for(world, **changes))
    return world.cloud.classify(refused.value)


# -- a create whose answer is lost --


@pytest.mark.parametrize("how", ["drop", "html_502", "truncated"])
@pytest.mark.parametrize("after", [False, True])
def test_a_lost_answer_makes_one_server_that_is_found(world: GcpWorld, ledger: Ledger, how: Any, after: bool) -> None:
    world.plant(Fault("instances.insert", how, after=after))
    live = create(world, ledger)
    assert [t.cloud_id for t in world.existing() if t.ours and t.kind == "server"] == [live.resource.cloud_id]
    assert len(ours(world)) == 2
    row = delete_and_prove(world.cloud, ledger, live.row, now=world.now, sleep=world.sleep)
    assert row.state is ResourceState.GONE
    assert ours(world) == []


def test_an_answer_that_is_no_operation_is_taken_for_a_lost_one(world: GcpWorld) -> None:
    world.plant(Fault("instances.insert", "truncated", after=True))
    found = refusal(world)
    assert (found.kind, found.may_exist) == (ErrorKind.UNKNOWN, True)
    assert ours(world), "it had been made"


# -- what comes after the create was accepted --


@pytest.mark.parametrize("code", ["ZONE_RESOURCE_POOL_EXHAUSTED", "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"])
def test_a_stockout_shows_in_the_operation_and_the_next_zone_is_tried(
    world: GcpWorld, ledger: Ledger, code: str
) -> None:
    world.plant(Fault("instances.insert", "code", code=code))
    live = create(world, ledger)
    assert live.resource.place == world.places[1]
    assert ours(world) == [f"disk/{live.resource.name}", f"server/{live.resource.name}"]


def test_a_stockout_is_of_its_zone_and_leaves_nothing(world: GcpWorld) -> None:
    world.emulator.project.stock[world.places[0]] = 0
    found = refusal(world)
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.CAPACITY, Scope.ZONE, False)
    assert "does not have enough resources" in found.message
    assert world.existing() == []


def test_a_stockout_that_comes_late_ends_the_wait_for_the_server(tmp_path: Path) -> None:
    with open_world(timing=Timing(refuse_s=40.0)) as world:
        world.emulator.project.stock[world.places[0]] = 0
        made = world.cloud.create(spec_for(world))
        assert made.state == "pending"
        for cloud in (world.cloud, world.another_cloud()):
            found = cloud.get(made.ref())
            assert found is not None and found.state == "pending"
        world.sleep(60)
        for cloud in (world.cloud, world.another_cloud()):
            found = cloud.get(made.ref())
            assert found is not None and found.state == "terminated"
        world.cloud.delete(made.ref())

        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite", now=world.now)
        ledger.beat("reaper", ("gcp",), account=world.cloud.project)
        live = create(world, ledger)
        assert live.resource.place == world.places[1]
        assert len(ours(world)) == 2


def test_the_quota_of_a_region_sends_the_server_to_another_region(world: GcpWorld, ledger: Ledger) -> None:
    world.emulator.project.quotas["us-central1"] = 1
    live = create(world, ledger)
    assert live.resource.place == "europe-west4-a"
    inserted = [row.place for row in ledger.rows()]
    assert sorted(inserted) == ["europe-west4-a", "us-central1-a"], "no other zone of that region was asked"


def test_a_quota_of_all_regions_ends_the_search(world: GcpWorld) -> None:
    world.emulator.project.gpus_all_regions = 0
    found = refusal(world, server_type="g2-standard-4", gpus=1)
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.QUOTA, Scope.SERVER_TYPE, False)


def test_too_many_calls_are_waited_out_in_the_same_place(world: GcpWorld, ledger: Ledger) -> None:
    world.plant(replace(world.throttle_fault(), times=3))
    live = create(world, ledger)
    assert live.resource.place == world.places[0]
    assert world.calls().count("instances.insert") == 4
    assert len(ledger.rows()) == 1


def test_a_refused_request_is_no_zones_fault(world: GcpWorld, ledger: Ledger) -> None:
    """An Arm machine with an image for x86."""
    with pytest.raises(UnsupportedError):
        create(world, ledger, server_type="c4a-standard-2")
    assert world.calls().count("instances.insert") == 1
    assert world.existing() == []


def test_a_machine_type_that_a_zone_does_not_have_is_looked_for_in_the_next(world: GcpWorld, ledger: Ledger) -> None:
    live = create(world, ledger, server_type="n4d-standard-2", places=("europe-west4-a", "us-central1-a"))
    assert live.resource.place == "us-central1-a"


# -- credentials and permissions --


def test_expired_credentials_halt_creates_and_prove_nothing(world: GcpWorld, ledger: Ledger) -> None:
    live = create(world, ledger)
    world.emulator.tokens.clear()
    found = refusal(world, name="tokensweep-2", token="cd" * 32)
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.AUTH, Scope.VENDOR, False)
    listing = world.cloud.list_owned()
    assert not listing.complete
    assert listing.resources == ()
    with pytest.raises(Exception) as refused:
        world.cloud.get(live.resource.ref())
    assert world.cloud.classify(refused.value).kind is ErrorKind.AUTH
    with pytest.raises(CleanupError):
        delete_and_prove(world.cloud, ledger, live.row, now=world.now, sleep=world.sleep, timeout_s=60)
    world.emulator.tokens.add(TOKEN)
    settle(world, ledger)


def test_a_permission_that_was_taken_away_keeps_the_server_in_the_books(world: GcpWorld, ledger: Ledger) -> None:
    live = create(world, ledger)
    world.emulator.granted = {"compute.instances.get", "compute.instances.list", "compute.zoneOperations.list"}
    with pytest.raises(Exception) as refused:
        world.cloud.delete(live.resource.ref())
    found = world.cloud.classify(refused.value)
    assert (found.kind, found.code) == (ErrorKind.AUTH, "IAM_PERMISSION_DENIED")
    listing = world.cloud.list_owned()
    assert not listing.complete, "disks, addresses and snapshots could not be listed"
    assert len(listing.problems) == 3
    world.emulator.granted = None
    settle(world, ledger)


def test_a_wrong_project_is_not_taken_for_an_empty_one(world: GcpWorld) -> None:
    made = world.cloud.create(spec_for(world))
    elsewhere = world.another_cloud(project="another-project")
    assert not elsewhere.list_owned().complete
    with pytest.raises(Exception) as refused:
        elsewhere.get(made.ref())
    assert elsewhere.classify(refused.value).kind is ErrorKind.AUTH


def test_an_auth_error_at_create_reaches_the_caller(world: GcpWorld, ledger: Ledger) -> None:
    world.emulator.granted = {"compute.firewalls.get"}
    with pytest.raises(AuthError, match="compute"):
        create(world, ledger)
    assert ours(world) == []


# -- listings that lack something --


@pytest.mark.parametrize("said_as", ["unreachables", "warning", "scope"])
def test_a_zone_that_cannot_be_reached_makes_the_listing_incomplete(said_as: str) -> None:
    with open_world(unreachable_as=said_as) as world:
        hidden = world.cloud.create(spec_for(world))
        shown = world.cloud.create(spec_for(world, place=world.places[1], name="tokensweep-2", token="cd" * 32))
        world.emulator.unreachable.add(world.places[0])
        listing = world.cloud.list_owned()
        servers = [r.cloud_id for r in listing.resources if r.kind == "server"]
        assert servers == [shown.cloud_id], hidden
        assert not listing.complete
        assert any("instances" in problem for problem in listing.problems), listing.problems
        assert any("disks" in problem for problem in listing.problems), listing.problems


@pytest.mark.parametrize("operation", ["instances.aggregatedList", "disks.aggregatedList", "addresses", "snapshots"])
@pytest.mark.parametrize("how", ["drop", "html_502", "truncated"])
def test_a_listing_that_fails_is_incomplete_and_the_others_are_kept(world: GcpWorld, operation: str, how: Any) -> None:
    world.cloud.create(spec_for(world))
    world.plant(Fault(operation, how, after=True))
    listing = world.cloud.list_owned()
    assert not listing.complete
    assert len(listing.problems) == 1
    assert listing.problems[0].startswith(operation.partition(".")[0])
    assert listing.resources
    assert world.cloud.list_owned().complete


def test_a_listing_that_does_not_answer_in_time_is_incomplete() -> None:
    with open_world(cloud={"timeout_s": 1.0}) as world:
        world.plant(Fault("disks.aggregatedList", "hang", seconds=2.0))
        listing = world.cloud.list_owned()
    assert not listing.complete
    assert [problem.partition(":")[0] for problem in listing.problems] == ["disks"]


def test_a_page_in_the_middle_that_fails_makes_the_listing_incomplete() -> None:
    with open_world(page_size=1) as world:
        for number in range(3):
            world.cloud.create(spec_for(world, name=f"tokensweep-{number}", token=f"{number:02d}" * 32))
        emulator, n_pages = world.emulator, 0
        answer = emulator.app

        def second_page_fails(environ: dict[str, Any], start_response: Any) -> Any:
            nonlocal n_pages
            if "pageToken" in environ.get("QUERY_STRING", "") and "instances" in environ["PATH_INFO"]:
                n_pages += 1
                return emulator.error("backendError", environ, start_response)
            return answer(environ, start_response)

        emulator.app = second_page_fails
        listing = world.cloud.list_owned()
    assert n_pages == 1
    assert not listing.complete


# -- deleting --


def test_a_delete_that_never_ends_is_not_proven(world: GcpWorld, ledger: Ledger) -> None:
    live = create(world, ledger)
    world.emulator.project.stuck.add(live.resource.name)
    with pytest.raises(CleanupError):
        delete_and_prove(world.cloud, ledger, live.row, now=world.now, sleep=world.sleep, timeout_s=120)
    found = world.cloud.get(live.resource.ref())
    assert found is not None and found.state == "running"
    world.emulator.project.stuck.clear()
    settle(world, ledger)


def test_a_server_protected_against_deletion_is_blocked_and_stays_in_the_books(world: GcpWorld, ledger: Ledger) -> None:
    live = create(world, ledger)
    (body,) = asked_for(world, INSTANCE)
    body["deletionProtection"] = True
    with pytest.raises(Exception) as refused:
        world.cloud.delete(live.resource.ref())
    assert world.cloud.classify(refused.value).kind is ErrorKind.DELETE_BLOCKED
    del body["deletionProtection"]
    settle(world, ledger)


@pytest.mark.parametrize("how", ["drop", "html_502", "truncated"])
def test_a_lost_answer_to_a_delete_is_made_good(world: GcpWorld, ledger: Ledger, how: Any) -> None:
    live = create(world, ledger)
    world.plant(Fault("instances.delete", how, after=False))
    row = delete_and_prove(world.cloud, ledger, live.row, now=world.now, sleep=world.sleep)
    assert row.state is ResourceState.GONE
    assert ours(world) == []


def test_with_the_ledger_lost_the_reaper_goes_by_labels_and_spares_what_is_foreign(
    world: GcpWorld, ledger: Ledger, tmp_path: Path
) -> None:
    world.add_foreign()
    create(world, ledger)
    world.sleep(TTL_S / 2)
    fresh = Ledger(f"sqlite:///{tmp_path}/fresh.sqlite", now=world.now)
    settle(world, fresh)
    assert sorted(thing.kind for thing in world.existing()) == ["disk", "ip", "server"]


# -- the SDK --


@pytest.mark.parametrize("code", ["backendError", "internalError", "rateLimitExceeded"])
def test_the_sdk_repeats_nothing_by_itself(world: GcpWorld, code: str) -> None:
    made = world.cloud.create(spec_for(world))
    before = len(world.calls())
    world.plant(Fault("", "code", code=code, times=50))
    calls: tuple[Callable[[Ref], object], ...] = (world.cloud.get, world.cloud.delete)
    for call in calls:
        with pytest.raises(Exception) as refused:
            call(made.ref())
        assert world.cloud.classify(refused.value).kind in (ErrorKind.UNKNOWN, ErrorKind.RATE_LIMITED)
    assert len(world.calls()) - before == 2
    world.cloud.list_owned()
    assert len(world.calls()) - before == 6


def test_secrets_are_in_no_error_and_no_log(world: GcpWorld, caplog: pytest.LogCaptureFixture) -> None:
    secret = "ya29.very-secret-token"
    cloud = world.another_cloud(credentials=Credentials(token=secret))  # type: ignore[no-untyped-call]
    texts = [repr(cloud), repr(vars(cloud))]
    with caplog.at_level(logging.DEBUG):
        with pytest.raises(Exception) as refused:
            cloud.create(spec_for(world))
        texts += [str(cloud.classify(refused.value)), str(refused.value), *cloud.list_owned().problems]
        world.cloud.create(spec_for(world))
    texts += [record.getMessage() + repr(vars(record)) for record in caplog.records]
    assert caplog.records
    for text in texts:
        assert secret not in text
        assert TOKEN not in text
        assert "verysecret" in HOST_KEY and "verysecret" not in text


def test_a_vanished_server_is_none(world: GcpWorld) -> None:
    assert world.cloud.get(Ref(vendor="gcp", place=world.places[0], name="tokensweep-none")) is None
    assert world.cloud.get(Ref(vendor="gcp", place=world.places[0], name="tokensweep-none", cloud_id="77")) is None
    world.cloud.delete(Ref(vendor="gcp", place=world.places[0], name="tokensweep-none", cloud_id="77"))
