"""UpCloud when something is wrong: errors and what they mean, listings that fail or change, secrets."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from upcloud_api import UpCloudAPIError

from tasks.clouds.base import OWNER, OWNER_TAG, ErrorKind, Ref, Scope
from tasks.clouds.upcloud import UpCloud, open_manager
from tasks.clouds.upcloud.errors import CODES, NotSentError, classify
from tasks.clouds.upcloud.guest_firewall import ruleset
from tasks.clouds.upcloud.labels import CREATED_LABEL, created_of, tags_of, to_labels
from tasks.domain.errors import ConfigError, UnsupportedError
from tests.contract.test_upcloud import ours
from tests.emulators import upcloud_schema as schema
from tests.emulators.base import Fault, How
from tests.emulators.emulated import spec_of
from tests.emulators.upcloud import PASSWORD, TOKEN, USERNAME
from tests.emulators.upcloud_world import UpCloudWorld, open_world

IMPATIENCE_S = 1.5
"""Longer than any answer takes on a busy machine."""


@pytest.fixture
def world() -> Iterator[UpCloudWorld]:
    with open_world() as opened:
        yield opened


def impatient(world: UpCloudWorld) -> UpCloud:
    manager = open_manager(USERNAME, PASSWORD, endpoint=f"{world.url}/1.3", read_timeout_s=IMPATIENCE_S)
    return UpCloud(manager, now=world.now)


# -- errors --


@pytest.mark.parametrize(
    ("code", "kind", "scope", "may_exist"),
    [
        ("SERVER_RESOURCES_UNAVAILABLE", ErrorKind.CAPACITY, Scope.ZONE, False),
        ("STORAGE_RESOURCES_UNAVAILABLE", ErrorKind.CAPACITY, Scope.ZONE, False),
        ("SERVER_CORE_LIMIT_REACHED", ErrorKind.QUOTA, Scope.VENDOR, False),
        ("SERVER_MEMORY_LIMIT_REACHED", ErrorKind.QUOTA, Scope.VENDOR, False),
        ("SERVER_CREATING_LIMIT_REACHED", ErrorKind.QUOTA, Scope.VENDOR, False),
        ("GPU_LIMIT_REACHED", ErrorKind.QUOTA, Scope.SERVER_TYPE, False),
        ("SOME_NEW_LIMIT_REACHED", ErrorKind.QUOTA, Scope.VENDOR, False),
        ("INSUFFICIENT_CREDITS", ErrorKind.QUOTA, Scope.VENDOR, False),
        ("RATE_LIMITED", ErrorKind.RATE_LIMITED, Scope.VENDOR, False),
        ("problem:429", ErrorKind.RATE_LIMITED, Scope.VENDOR, False),
        ("problem:401", ErrorKind.AUTH, Scope.VENDOR, False),
        ("problem:402", ErrorKind.QUOTA, Scope.VENDOR, False),
        ("problem:500", ErrorKind.UNKNOWN, Scope.ZONE, True),
        ("AUTHENTICATION_FAILED", ErrorKind.AUTH, Scope.VENDOR, False),
        ("SERVER_FORBIDDEN", ErrorKind.AUTH, Scope.VENDOR, False),
        ("ZONE_NOT_FOUND", ErrorKind.UNSUPPORTED, Scope.ZONE, False),
        ("HOSTNAME_INVALID", ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, False),
        ("SERVER_STATE_ILLEGAL", ErrorKind.DELETE_BLOCKED, Scope.ZONE, False),
        ("SERVICE_UNAVAILABLE", ErrorKind.UNKNOWN, Scope.ZONE, True),
        ("A_CODE_OF_TOMORROW", ErrorKind.UNKNOWN, Scope.ZONE, True),
    ],
)
def test_what_a_refused_create_means(
    world: UpCloudWorld, code: str, kind: ErrorKind, scope: Scope, may_exist: bool
) -> None:
    world.plant(Fault("POST /server", how="code", code=code))
    with pytest.raises(UpCloudAPIError) as refused:
        world.cloud.create(spec_of(world))
    found = world.cloud.classify(refused.value)
    assert (found.kind, found.scope, found.may_exist) == (kind, scope, may_exist)
    assert found.code
    assert found.message


@pytest.mark.parametrize("how", ["drop", "html_502", "truncated"])
def test_an_answer_that_is_none_says_nothing(world: UpCloudWorld, how: Any) -> None:
    world.plant(Fault("POST /server", how=how))
    with pytest.raises(Exception) as broken:
        world.cloud.create(spec_of(world))
    found = world.cloud.classify(broken.value)
    assert (found.kind, found.may_exist) == (ErrorKind.UNKNOWN, True)
    assert world.calls().count("POST /server") == 1


def test_a_create_that_is_not_answered_in_time_is_sent_once(world: UpCloudWorld) -> None:
    world.plant(Fault("POST /server", how="hang", after=True, seconds=IMPATIENCE_S + 1))
    cloud = impatient(world)
    with pytest.raises(requests.exceptions.ReadTimeout) as late:
        cloud.create(spec_of(world))
    assert cloud.classify(late.value).may_exist
    assert world.calls().count("POST /server") == 1


@pytest.mark.parametrize("operation", ["GET /plan", "GET /price", "GET /storage/template", "GET /account"])
def test_what_fails_before_the_create_is_sent_made_nothing(world: UpCloudWorld, operation: str) -> None:
    world.plant(Fault(operation, how="html_502"))
    with pytest.raises(NotSentError) as failed:
        world.cloud.create(spec_of(world))
    found = world.cloud.classify(failed.value)
    assert (found.kind, found.may_exist) == (ErrorKind.UNKNOWN, False)
    assert "POST /server" not in world.calls()


def test_what_upcloud_does_not_sell_is_refused_before_anything_is_sent(world: UpCloudWorld) -> None:
    for changes in ({"spot": True}, {"arch": "aarch64"}):
        with pytest.raises(UnsupportedError):
            world.cloud.create(spec_of(world, **changes))
    with pytest.raises(NotSentError) as refused:
        world.cloud.create(spec_of(world, server_type="9xCPU-9GB"))
    assert world.cloud.classify(refused.value).kind is ErrorKind.UNSUPPORTED
    assert "POST /server" not in world.calls()


@pytest.mark.parametrize(
    ("exc", "kind", "may_exist"),
    [
        (requests.exceptions.ConnectionError("reset"), ErrorKind.UNKNOWN, True),
        (requests.exceptions.JSONDecodeError("Expecting value", "<html>", 0), ErrorKind.UNKNOWN, True),
        (UpCloudAPIError(None, None), ErrorKind.UNKNOWN, True),
        (UpCloudAPIError("X", 'Details: ["no", "problem"]'), ErrorKind.UNKNOWN, True),
        (UpCloudAPIError("X", 'Details: {"type": 7, "status": "429"}'), ErrorKind.UNKNOWN, True),
        (ConfigError("a tag"), ErrorKind.UNSUPPORTED, False),
        (KeyError("server"), ErrorKind.UNKNOWN, True),
        (KeyboardInterrupt(), ErrorKind.UNKNOWN, True),
    ],
)
def test_whatever_is_raised_is_classified(exc: BaseException, kind: ErrorKind, may_exist: bool) -> None:
    found = classify(exc)
    assert (found.kind, found.may_exist) == (kind, may_exist)
    assert found.code
    assert found.message


def test_a_problem_document_names_its_code() -> None:
    problem = {
        "type": "https://developers.upcloud.com/1.3/errors#ERROR_RATE_LIMITED",
        "title": "Slow down.",
        "status": 429,
    }
    found = classify(UpCloudAPIError("Slow down.", f"Details: {json.dumps(problem)}"))
    assert (found.kind, found.code, found.message) == (ErrorKind.RATE_LIMITED, "RATE_LIMITED", "Slow down.")


def test_no_code_that_may_exist_is_taken_for_a_refusal() -> None:
    refusals = (ErrorKind.CAPACITY, ErrorKind.QUOTA, ErrorKind.AUTH, ErrorKind.UNSUPPORTED, ErrorKind.RATE_LIMITED)
    assert all(not may_exist for kind, _, may_exist in CODES.values() if kind in refusals)


# -- listings --


@pytest.mark.parametrize(
    ("operation", "what"),
    [("GET /server", "servers"), ("GET /storage/private", "storages"), ("GET /ip_address", "IP addresses")],
)
@pytest.mark.parametrize("how", ["drop", "html_502", "truncated"])
def test_a_listing_without_one_kind_is_incomplete_and_says_which(
    world: UpCloudWorld, operation: str, what: str, how: Any
) -> None:
    world.cloud.create(spec_of(world))
    world.plant(Fault(operation, how=how))
    listing = world.cloud.list_owned()
    assert not listing.complete
    assert [problem.split(":")[0] for problem in listing.problems] == [what]
    assert world.cloud.list_owned().complete


def test_a_listing_that_does_not_come_is_incomplete(world: UpCloudWorld) -> None:
    world.plant(Fault("GET /ip_address", how="hang", seconds=IMPATIENCE_S + 1))
    listing = impatient(world).list_owned()
    assert not listing.complete
    assert [problem.split(":")[0] for problem in listing.problems] == ["IP addresses"]


def test_everything_of_ours_is_listed_over_many_pages(world: UpCloudWorld) -> None:
    add, mine = world.emulator.account.add, {OWNER_TAG: OWNER}
    for number in range(450):
        kind = "backup" if number % 7 == 0 else "normal"
        labels = mine if number % 2 else {"team": "web"}
        add("storage", f"s{number}", "de-fra1", labels, size=10, tier="hdd", type=kind)
    listing = world.cloud.list_owned()
    assert listing.complete
    assert len(listing.resources) == 225
    assert {r.kind for r in listing.resources} == {"disk", "snapshot"}
    for resource in listing.resources[::50]:
        shown = world.cloud.get(resource.ref())
        assert shown is not None
        assert (shown.cloud_id, shown.kind, shown.tags) == (resource.cloud_id, resource.kind, resource.tags)
        world.cloud.delete(resource.ref())
        world.cloud.delete(resource.ref())
        assert world.cloud.get(resource.ref()) is None


@pytest.mark.parametrize("request_number", [2, 4])
def test_what_goes_between_two_pages_hides_nothing(world: UpCloudWorld, request_number: int) -> None:
    add = world.emulator.account.add
    storages = [
        add("storage", f"s{n}", "de-fra1", {OWNER_TAG: OWNER}, size=10, tier="hdd", type="normal") for n in range(101)
    ]

    def delete_the_first(operation: str) -> None:
        if operation == "GET /storage/private" and world.calls().count(operation) == request_number:
            storages[0].ended_unix_s = world.now()

    world.emulator.on_operation = delete_the_first
    listing = world.cloud.list_owned()
    assert listing.complete
    assert {f"s{n}" for n in range(1, 101)} <= {r.name for r in listing.resources}


def test_the_address_of_a_server_is_deleted_only_while_it_is_of_that_server(world: UpCloudWorld) -> None:
    """Addresses are used again: the id of one names the server that it was of."""
    made = world.cloud.create(spec_of(world))
    (listed,) = (r for r in world.cloud.list_owned().resources if r.kind == "ip")
    shown = world.cloud.get(listed.ref())
    assert shown is not None
    assert (shown.cloud_id, shown.tags) == (listed.cloud_id, made.tags)
    (ip,) = world.emulator.account.alive("ip")
    ip.data["server"] = world.emulator.account.add("server", "theirs", "de-fra1", {}).uuid
    assert world.cloud.get(listed.ref()) is None
    world.cloud.delete(listed.ref())
    assert ip.exists(world.now())
    ip.data["server"] = made.cloud_id
    world.cloud.delete(listed.ref())
    assert not ip.exists(world.now())


def test_two_servers_of_one_name_are_both_found(world: UpCloudWorld) -> None:
    """What an SDK that repeats a create would leave: nothing at UpCloud prevents it."""
    spec = spec_of(world)
    first = world.cloud.create(spec)
    world.sleep(5)
    second = world.cloud.create(spec)
    assert {r.cloud_id for r in world.cloud.list_owned().resources if r.kind == "server"} == {
        first.cloud_id,
        second.cloud_id,
    }
    shown = world.cloud.get(Ref(vendor="upcloud", place=spec.place, name=spec.name))
    assert shown is not None
    assert shown.cloud_id == first.cloud_id
    world.cloud.delete(Ref(vendor="upcloud", place=spec.place, name=spec.name))
    assert ours(world) == []


# -- what a server is made of --


def test_a_gpu_server_has_the_image_with_drivers_on_a_disk_that_holds_it(world: UpCloudWorld) -> None:
    world.cloud.create(spec_of(world, server_type="GPU-8xCPU-64GB-1xL40S", place="fi-hel1", gpus=1))
    (server,) = world.emulator.account.alive("server")
    (device,) = server.data["body"]["storage_devices"]["storage_device"]
    assert (device["storage"], device["size"]) == ("01000000-0000-4000-8000-000030700200", 30)


def test_a_gpu_server_without_a_driver_is_not_paid_for(world: UpCloudWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such image, no server: on the plain one a GPU bills, and nothing can use it."""
    plain = tuple(template for template in schema.TEMPLATES if "NVIDIA" not in template[1])
    monkeypatch.setattr(schema, "TEMPLATES", plain)
    with pytest.raises(NotSentError) as refused:
        world.cloud.create(spec_of(world, server_type="GPU-8xCPU-64GB-1xL40S", place="fi-hel1", gpus=1))
    assert world.cloud.classify(refused.value).kind is ErrorKind.UNSUPPORTED
    assert "POST /server" not in world.calls()
    (images,) = [check for check in world.cloud_with().doctor() if check.name == "images"]
    assert images.ok
    assert "no GPU plan" in images.detail


@pytest.mark.parametrize(
    ("server_type", "disk_bytes", "size_gib", "tier"),
    [
        ("1xCPU-2GB", 0, 50, "maxiops"),
        ("1xCPU-2GB", 50 * 2**30 + 1, 51, "maxiops"),
        ("DEV-1xCPU-1GB-10GB", 0, 10, "standard"),
        ("CLOUDNATIVE-1xCPU-4GB", 0, 10, "maxiops"),
        ("CLOUDNATIVE-1xCPU-4GB", 80 * 2**30, 80, "maxiops"),
    ],
)
def test_the_boot_disk(world: UpCloudWorld, server_type: str, disk_bytes: int, size_gib: int, tier: str) -> None:
    world.cloud.create(spec_of(world, server_type=server_type, disk_bytes=disk_bytes))
    (disk,) = world.emulator.account.alive("storage")
    assert (disk.data["size"], disk.data["tier"]) == (size_gib, tier)


def test_a_source_that_is_no_network_is_refused(world: UpCloudWorld) -> None:
    with pytest.raises(ConfigError, match="here"):
        world.cloud.create(spec_of(world, ssh_sources=("here",)))
    assert "POST /server" not in world.calls()


def test_without_sources_anybody_may_knock(world: UpCloudWorld) -> None:
    world.cloud.create(spec_of(world, ssh_sources=()))
    (server,) = world.emulator.account.alive("server")
    assert "nft" not in server.data["user_data"]


@pytest.mark.skipif(shutil.which("nft") is None, reason="nftables is not installed here")
def test_nftables_understands_the_firewall() -> None:
    rules = ruleset(("198.51.100.7/32", "203.0.113.0/24", "2001:db8::/32"))
    for _ in range(2):
        done = subprocess.run(["unshare", "-rn", "nft", rules], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# -- labels --


@settings(deadline=None)
@given(
    st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]{1,30}", fullmatch=True), st.text("abcXYZ019 =-_.:/", max_size=60))
)
def test_tags_come_back_as_they_went(tags: dict[str, str]) -> None:
    tags.pop(CREATED_LABEL, None)
    labels = [{"key": key, "value": value} for key, value in to_labels(tags, 1_800_000_000.4).items()]
    for shown in ({"labels": labels}, {"labels": {"label": labels}}):
        assert tags_of(shown) == tags
        assert created_of(shown) == 1_800_000_000


def test_tags_that_no_label_can_carry_are_refused() -> None:
    for tags in ({"k": "x"}, {"key with spaces": "x"}, {"k" * 33: "x"}, {"key": "v" * 256}, {"key": "a\nb"}):
        with pytest.raises(ConfigError):
            to_labels(tags, 0.0)


# -- secrets --


def test_nothing_that_is_said_holds_a_secret(world: UpCloudWorld, caplog: pytest.LogCaptureFixture) -> None:
    said = [repr(world.cloud), repr(world.cloud_with(token=TOKEN))]
    with caplog.at_level(logging.DEBUG):
        for number, how in enumerate(get_args(How)[:3]):
            world.plant(Fault("POST /server", how=how, after=True))
            try:
                said.append(repr(world.cloud.create(spec_of(world, number))))
            except Exception as exc:
                said += [str(exc), repr(exc), repr(world.cloud.classify(exc))]
        said += [repr(world.cloud.list_owned()), repr(world.cloud.create(spec_of(world, 9)))]
    said.append(caplog.text)
    for secret in (PASSWORD, TOKEN, "a-password-that-nobody-may-see", "OPENSSH PRIVATE KEY"):
        assert not [text for text in said if secret in text]
