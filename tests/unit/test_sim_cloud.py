"""The simulated cloud: every class of faults does what it says, chance repeats itself, the meter bills what exists."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tasks.clouds.base import OWNER, OWNER_TAG, CreateSpec, ErrorKind, Resource
from tasks.clouds.request import region_of
from tasks.clouds.sim import CLOUD_FAULTS, FAULTS, SimCloud, SimOptions, catalog, parse_options
from tasks.clouds.sim.errors import CODES, SimApiError, classify
from tasks.domain.errors import ConfigError
from tests.emulators.sim_world import SERVER_TYPE, SimWorld, StillClock, open_world

BOOTED_S = 120.0
DELETED_S = 60.0


def spec(world: SimWorld, n: int = 1, *, server_type: str = SERVER_TYPE, **changes: Any) -> CreateSpec:
    return spec_for(world.cloud, n, server_type=server_type, **changes)


def spec_for(cloud: SimCloud, n: int = 1, *, server_type: str = SERVER_TYPE, **changes: Any) -> CreateSpec:
    made = CreateSpec(
        intent_id=f"intent-{n}",
        name=f"server-{n}",
        token=f"token-{n}",
        server_type=server_type,
        place=cloud.server_type(server_type).places[0],
        deadline_unix_s=cloud.clock.now() + 7200,
        sweep_id="sweep",
        server_run_id=f"run-{n}",
        client_public_key="client",
        host_private_key="secret",
        host_public_key="pinned",
        tags={OWNER_TAG: OWNER},
    )
    return replace(made, **changes)


def kinds(world: SimWorld) -> list[str]:
    return sorted(e.kind for e in world.existing() if e.ours)


def with_fault(fault: str, **options: Any) -> Any:
    return open_world(faults={fault: 1.0}, **options)


def after_boot(world: SimWorld, made: Resource) -> Resource | None:
    world.sleep(BOOTED_S)
    return world.cloud.get(made.ref())


@pytest.fixture
def world() -> Iterator[SimWorld]:
    with open_world() as opened:
        yield opened


def test_a_calm_life(world: SimWorld) -> None:
    world.add_foreign()
    made = world.cloud.create(spec(world))
    assert made.state == "pending" and not made.address
    shown = after_boot(world, made)
    assert shown is not None and shown.state == "running" and shown.address
    listing = world.cloud.list_owned()
    assert listing.complete and sorted(r.kind for r in listing.resources) == ["disk", "ip", "server"]
    assert {r.cloud_id for r in listing.resources if r.kind == "server"} == {made.cloud_id}
    world.cloud.delete(made.ref())
    world.cloud.delete(made.ref())
    stopping = world.cloud.get(made.ref())
    assert stopping is not None and stopping.state == "stopping"
    world.sleep(DELETED_S)
    assert kinds(world) == [] and world.cloud.list_owned().resources == ()
    assert sorted(e.kind for e in world.existing()) == ["disk", "ip", "server"], "what is foreign stays"
    world.sleep(300)
    assert world.cloud.get(made.ref()) is None
    world.cloud.delete(made.ref())


def test_a_token_finds_the_first_server_again(world: SimWorld) -> None:
    assert world.cloud.create(spec(world)).cloud_id == world.cloud.create(spec(world)).cloud_id
    with open_world(idempotency_token=False) as other:
        assert other.cloud.create(spec(other)).cloud_id != other.cloud.create(spec(other)).cloud_id


def test_unique_names_are_refused_twice() -> None:
    with open_world(unique_names=True, idempotency_token=False) as world:
        world.cloud.create(spec(world))
        with pytest.raises(SimApiError) as refused:
            world.cloud.create(spec(world))
        assert classify(refused.value).kind is ErrorKind.EXISTS


def test_listings_are_late_at_both_ends() -> None:
    with open_world(visibility_lag_s=60) as world:
        for n in range(20):
            world.cloud.create(spec(world, n, server_type=catalog.all_names()[n * 50]))
        assert len(world.cloud.list_owned().resources) < 60, "some are not shown yet"
        world.sleep(120)
        listed = world.cloud.list_owned().resources
        assert len(listed) == 60
        for resource in listed:
            if resource.kind == "server":
                world.cloud.delete(resource.ref())
        world.sleep(30)
        assert kinds(world) == [] and len(world.cloud.list_owned().resources) == 60, "gone, and listed still"
        world.sleep(60)
        assert world.cloud.list_owned().resources == ()


def test_stock_and_quota_have_an_end() -> None:
    with open_world(zone_stock=1, region_vcpus=8) as world:
        world.cloud.create(spec(world, 1))
        with pytest.raises(SimApiError) as no_stock:
            world.cloud.create(spec(world, 2))
        assert no_stock.value.code == "NoCapacity"
        region = region_of(world.places[0])
        neighbour = next(place for place in world.places[1:] if region_of(place) == region)
        world.cloud.create(spec(world, 2, place=neighbour))
        with pytest.raises(SimApiError) as no_quota:
            world.cloud.create(spec(world, 3, place=neighbour))
        assert no_quota.value.code == "QuotaExceeded"


def test_too_many_calls_are_refused_until_time_has_passed() -> None:
    with open_world(requests_per_s=1) as world:
        made = world.cloud.create(spec(world))
        with pytest.raises(SimApiError) as refused:
            for _ in range(20):
                world.cloud.get(made.ref())
        assert classify(refused.value).kind is ErrorKind.RATE_LIMITED
        world.sleep(5)
        world.cloud.get(made.ref())


# ---- every class of faults, alone and always ----------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        ("capacity", "NoCapacity"),
        ("quota", "QuotaExceeded"),
        ("throttled", "TooManyRequests"),
        ("credentials_expired", "ExpiredToken"),
    ],
)
def test_a_refused_create_makes_nothing(fault: str, raised: str) -> None:
    with with_fault(fault) as world:
        with pytest.raises(SimApiError) as refused:
            world.cloud.create(spec(world))
        assert refused.value.code == raised and kinds(world) == []
        assert not classify(refused.value).may_exist and classify(refused.value).kind is CODES[raised][0]


@pytest.mark.parametrize(("fault", "there"), [("lost_request", []), ("lost_response", ["disk", "ip", "server"])])
def test_a_lost_call_may_have_had_its_effect(fault: str, there: list[str]) -> None:
    with with_fault(fault) as world:
        with pytest.raises(ConnectionResetError) as lost:
            world.cloud.create(spec(world))
        assert kinds(world) == there
        found = classify(lost.value)
        assert found.may_exist and found.kind is ErrorKind.UNKNOWN


def test_a_gateway_spoils_answers_before_and_after_the_effect() -> None:
    with with_fault("bad_gateway") as world:
        for n in range(12):
            with pytest.raises(json.JSONDecodeError) as html:
                world.cloud.create(spec(world, n, server_type=catalog.all_names()[n * 100]))
            assert classify(html.value).may_exist
        assert 0 < kinds(world).count("server") < 12


def test_in_an_outage_a_region_does_not_answer() -> None:
    with with_fault("region_outage") as world:
        listing = world.cloud.list_owned()
        answered = {region_of(place) for place in listing.places}
        (down,) = set(catalog.REGIONS) - answered
        assert not listing.complete and down in listing.problems[0]
        server_type = next(k for k in world.cloud.catalog() if region_of(k.places[0]) == down)
        with pytest.raises(TimeoutError):
            world.cloud.create(spec(world, server_type=server_type.name))


def test_expired_credentials_make_every_listing_incomplete() -> None:
    with with_fault("credentials_expired") as world:
        listing = world.cloud.list_owned()
        assert not listing.complete and listing.places == ()


def test_a_partial_create_leaves_disk_and_address() -> None:
    with with_fault("partial_create") as world:
        with pytest.raises(SimApiError):
            world.cloud.create(spec(world))
        assert kinds(world) == ["disk", "ip"]
        world.sleep(60)
        for side in world.cloud.list_owned().resources:
            world.cloud.delete(side.ref())
        world.sleep(DELETED_S)
        assert kinds(world) == []


def test_a_double_create_makes_two_servers_of_one_name() -> None:
    with with_fault("double_create") as world:
        world.cloud.create(spec(world))
        servers = [e for e in world.existing() if e.kind == "server"]
        assert len(servers) == 2 and len({e.cloud_id for e in servers}) == 2 and len({e.name for e in servers}) == 1


def test_a_create_that_fails_later_never_runs() -> None:
    with with_fault("create_fails_later") as world:
        shown = after_boot(world, world.cloud.create(spec(world)))
        assert shown is None or shown.state == "terminated"
        assert kinds(world) == []


def test_a_slow_boot_takes_more_than_ten_minutes() -> None:
    with with_fault("slow_boot") as world:
        made = world.cloud.create(spec(world))
        world.sleep(601)
        shown = world.cloud.get(made.ref())
        assert shown is not None and shown.state == "pending"


def test_a_look_up_may_lie() -> None:
    with with_fault("not_found_lie") as world:
        assert after_boot(world, world.cloud.create(spec(world))) is None
        assert kinds(world) == ["disk", "ip", "server"]


def test_disk_and_address_may_outlive_their_server() -> None:
    with with_fault("surviving_disk") as world:
        made = world.cloud.create(spec(world))
        after_boot(world, made)
        sides = [r for r in world.cloud.list_owned().resources if r.kind != "server"]
        with pytest.raises(SimApiError):
            world.cloud.delete(sides[0].ref())
        world.cloud.delete(made.ref())
        world.sleep(DELETED_S)
        assert kinds(world) == ["disk", "ip"]
        for side in sides:
            world.cloud.delete(side.ref())
        world.sleep(DELETED_S)
        assert kinds(world) == []


@pytest.mark.parametrize(("fault", "raises"), [("stuck_delete", False), ("delete_blocked", True)])
def test_the_first_deletes_may_not_count(fault: str, raises: bool) -> None:
    with with_fault(fault) as world:
        made = world.cloud.create(spec(world))
        after_boot(world, made)
        n_deletes = 0
        while kinds(world):
            try:
                world.cloud.delete(made.ref())
                refused = False
            except SimApiError as exc:
                refused = True
                assert classify(exc).kind is ErrorKind.DELETE_BLOCKED
            n_deletes += 1
            world.sleep(DELETED_S)
            assert refused == (raises and bool(kinds(world)))
        assert 2 <= n_deletes <= 4


@pytest.mark.parametrize(("fault", "left"), [("preempted", []), ("stopped_by_vendor", ["disk", "ip", "server"])])
def test_the_vendor_may_end_a_server_itself(fault: str, left: list[str]) -> None:
    with with_fault(fault) as world:
        made = world.cloud.create(spec(world))
        world.sleep(1000)
        shown = world.cloud.get(made.ref())
        assert kinds(world) == left
        assert (shown is not None and shown.state == "stopped") == bool(left)
        assert (world.cloud.bill().usd_per_hour > 0) == bool(left), "a stopped server bills"


def test_the_vendors_clock_may_be_off() -> None:
    with with_fault("clock_offset") as world:
        made = world.cloud.create(spec(world))
        assert 0 < abs(made.created_unix_s - world.now()) <= 90


def test_a_guest_stops_at_its_deadline_and_bills_on() -> None:
    for native_ttl, left in ((False, ["disk", "ip", "server"]), (True, [])):
        with open_world(native_ttl=native_ttl) as world:
            world.cloud.create(spec(world, deadline_unix_s=world.now() + 600))
            world.sleep(700)
            assert kinds(world) == left


# ---- chance, meter, state, clock ----------------------------------------------------------------------


def outcomes(seed: int) -> list[str]:
    """What thirty creates and their look-ups come to."""
    seen: list[str] = []
    with open_world(seed=seed, faults=0.1) as world:
        for n in range(30):
            server_type = catalog.all_names()[n * 37]
            try:
                made = world.cloud.create(spec(world, n, server_type=server_type))
                seen.append(f"{made.state} {made.created_unix_s:.3f}")
                world.sleep(7)
                shown = world.cloud.get(made.ref())
                seen.append("none" if shown is None else shown.state)
            except (SimApiError, OSError, ValueError) as exc:
                seen.append(f"{type(exc).__name__} {exc}")
        return [*seen, *world.cloud.list_owned().problems]


def test_the_same_seed_meets_the_same_faults() -> None:
    first = outcomes(1)
    assert first == outcomes(1)
    assert first != outcomes(2)
    assert len({text.split()[0] for text in first}) > 2, "and there are faults at all"


def test_about_as_many_faults_as_were_asked_for(world: SimWorld) -> None:
    world.cloud.configure({"faults": 0.05})
    draws = world.cloud.draws()
    for fault in CLOUD_FAULTS:
        n = sum(draws.happens(fault, name, 1) for name in catalog.all_names())
        assert 0.035 < n / len(catalog.all_names()) < 0.065


def test_the_meter_bills_minimum_increment_and_side_resources() -> None:
    with open_world(billing_minimum_s=60, billing_increment_s=60, delete_s=0) as world:
        made = world.cloud.create(spec(world))
        hourly = made.usd_per_hour + Decimal("0.0072")
        assert world.cloud.bill().usd_per_hour == hourly
        world.sleep(1)
        assert abs(world.cloud.bill().total_usd - hourly / 60) < Decimal("1e-8")
        world.sleep(61)
        assert abs(world.cloud.bill().total_usd - hourly / 30) < Decimal("1e-8")
        world.cloud.delete(made.ref())
        billed = world.cloud.bill()
        assert billed.usd_per_hour == 0 and billed.n_existing == 0
        world.sleep(3600)
        assert world.cloud.bill().total_usd == billed.total_usd


def test_the_state_is_shared_and_outlives_its_process(tmp_path: Path) -> None:
    clock = StillClock()
    one, two = SimWorld(tmp_path, clock), SimWorld(tmp_path, clock)
    made = one.cloud.create(spec(one))
    one.cloud.close()
    assert {e.cloud_id for e in two.existing() if e.kind == "server"} == {made.cloud_id}
    two.cloud.close()


MAKES_SERVERS = """
import sys
from pathlib import Path
from tests.emulators.sim_world import SimWorld, StillClock
from tests.unit.test_sim_cloud import spec
world = SimWorld(Path(sys.argv[1]), StillClock())
for n in range(100_000):
    world.cloud.create(spec(world, n))
    print(n, flush=True)
"""


def test_a_killed_process_leaves_whole_calls(tmp_path: Path) -> None:
    """Each create is there with its disk and address, or not at all; and all that were answered are there."""
    command = [sys.executable, "-c", MAKES_SERVERS, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    for _ in range(25):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    answered = 25 + len(process.stdout.read().splitlines())
    process.wait()
    process.stdout.close()
    world = SimWorld(tmp_path, StillClock(), zone_stock=0)
    found = kinds(world)
    assert found.count("server") in (answered, answered + 1)
    assert found.count("disk") == found.count("ip") == found.count("server")
    world.cloud.close()


def test_every_process_reads_the_same_time(tmp_path: Path) -> None:
    one, two = (SimCloud(tmp_path, SimOptions(speedup=speedup)) for speedup in (1000.0, 7.0))
    before = one.clock.now()
    assert before <= two.clock.now() <= one.clock.now(), "the second takes the clock that is there"
    one.clock.sleep(50.0)
    assert one.clock.now() - before >= 50.0
    one.configure({"speedup": 10})
    assert one.clock.real_s(10.0) == 1.0 and one.clock.now() >= before
    world_spec = spec(SimWorld(tmp_path, StillClock()))
    one.create(replace(world_spec, deadline_unix_s=one.clock.now() + 3600))
    with pytest.raises(ConfigError, match="has servers"):
        one.configure({"speedup": 60})


def test_options_are_checked() -> None:
    for wrong, said in (
        ({"sede": 1}, "seed"),
        ({"faults": {"capcity": 0.1}}, "capacity"),
        ({"faults": 2}, "between 0 and 1"),
        ({"faults": "many"}, "a rate"),
        ({"seed": 1.5}, "whole number"),
        ({"speedup": 0}, "more than 0"),
        ({"native_ttl": 1}, "true or false"),
        ({"boot_s": -1}, "negative"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_options(wrong)


def test_every_class_of_faults_is_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "sim.md").read_text()
    for fault, meaning in FAULTS.items():
        assert f"| `{fault}` | {meaning} |" in text
    for option in SimOptions().to_dict():
        assert f"`{option}`" in text


def test_the_catalogue_is_large_and_always_the_same() -> None:
    names = catalog.all_names()
    assert len(set(names)) == len(names) > 4000
    for name in names[::40]:
        kind = catalog.server_type(name)
        assert kind.name == name and kind.price_per_hour == min(kind.prices.values()) == kind.prices[kind.places[0]]
        assert {region_of(place) for place in kind.places} <= set(catalog.REGIONS)
        assert catalog.silicon(name).gflops > 0
    sample = "from tasks.clouds.sim import catalog; print([catalog.server_type(n) for n in catalog.all_names()[::500]])"
    elsewhere = subprocess.run(
        [sys.executable, "-c", sample], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert elsewhere.stdout.strip() == str([catalog.server_type(n) for n in names[::500]])
    for wrong in ("c3a-7", "nothing", "a100x3-12", "a100x8-4"):
        with pytest.raises(ConfigError):
            catalog.server_type(wrong)
