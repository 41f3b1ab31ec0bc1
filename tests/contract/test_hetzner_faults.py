"""Hetzner when something is wrong: errors and what they mean, listings that fail or change, firewalls, secrets."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import requests
from hcloud import APIException
from hcloud.actions import ActionFailedException
from hcloud.actions.domain import Action
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.clouds.base import OWNER, OWNER_TAG, ErrorKind, Ref, Scope
from tasks.clouds.hetzner import HetznerCloud, open_client
from tasks.clouds.hetzner.errors import CODES, NotSentError, classify
from tasks.clouds.hetzner.labels import to_labels, to_tags
from tasks.domain.errors import ConfigError
from tests.contract.test_hetzner import ours
from tests.emulators.base import Fault, How
from tests.emulators.emulated import spec_of
from tests.emulators.hetzner import TOKEN
from tests.emulators.hetzner_schema import LABELS, selects
from tests.emulators.hetzner_world import HetznerWorld, open_world

IMPATIENCE_S = 1.5
"""Longer than any answer takes on a busy machine."""


@pytest.fixture
def world() -> Iterator[HetznerWorld]:
    with open_world() as opened:
        yield opened


# -- errors --


@pytest.mark.parametrize(
    ("code", "kind", "scope", "may_exist"),
    [
        ("resource_unavailable", ErrorKind.CAPACITY, Scope.ZONE, False),
        ("placement_error", ErrorKind.CAPACITY, Scope.ZONE, False),
        ("maintenance", ErrorKind.CAPACITY, Scope.ZONE, False),
        ("resource_limit_exceeded", ErrorKind.QUOTA, Scope.VENDOR, False),
        ("rate_limit_exceeded", ErrorKind.RATE_LIMITED, Scope.VENDOR, False),
        ("unauthorized", ErrorKind.AUTH, Scope.VENDOR, False),
        ("forbidden", ErrorKind.AUTH, Scope.VENDOR, False),
        ("token_readonly", ErrorKind.AUTH, Scope.VENDOR, False),
        ("uniqueness_error", ErrorKind.EXISTS, Scope.ZONE, True),
        ("invalid_input", ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, False),
        ("not_found", ErrorKind.NOT_FOUND, Scope.ZONE, False),
        ("protected", ErrorKind.DELETE_BLOCKED, Scope.ZONE, False),
        ("locked", ErrorKind.DELETE_BLOCKED, Scope.ZONE, False),
        ("conflict", ErrorKind.UNKNOWN, Scope.ZONE, True),
        ("server_error", ErrorKind.UNKNOWN, Scope.ZONE, True),
        ("a_code_of_tomorrow", ErrorKind.UNKNOWN, Scope.ZONE, True),
    ],
)
def test_what_a_refused_create_means(
    world: HetznerWorld, code: str, kind: ErrorKind, scope: Scope, may_exist: bool
) -> None:
    world.plant(Fault("POST /servers", how="code", code=code, times=2))
    with pytest.raises(APIException) as refused:
        world.cloud.create(spec_of(world))
    found = world.cloud.classify(refused.value)
    assert (found.kind, found.scope, found.may_exist, found.code) == (kind, scope, may_exist, code)


@pytest.mark.parametrize(
    ("message", "scope"),
    [
        ("server limit exceeded", Scope.VENDOR),
        ("dedicated core limit exceeded", Scope.SERVER_TYPE),
    ],
)
def test_a_limit_of_dedicated_cores_leaves_shared_ones(message: str, scope: Scope) -> None:
    found = classify(APIException("resource_limit_exceeded", message, None))
    assert (found.kind, found.scope) == (ErrorKind.QUOTA, scope)


def test_a_type_that_a_location_does_not_sell_may_be_sold_in_the_next(world: HetznerWorld) -> None:
    with pytest.raises(APIException) as refused:
        world.cloud.create(spec_of(world, place="ash"))
    found = world.cloud.classify(refused.value)
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.UNSUPPORTED, Scope.ZONE, False)


@pytest.mark.parametrize("how", ["drop", "html_502", "truncated"])
def test_an_answer_that_is_none_says_nothing(world: HetznerWorld, how: Any) -> None:
    world.plant(Fault("POST /servers", how=how))
    with pytest.raises(Exception) as broken:
        world.cloud.create(spec_of(world))
    found = world.cloud.classify(broken.value)
    assert (found.kind, found.may_exist) == (ErrorKind.UNKNOWN, True)
    assert world.calls().count("POST /servers") == 1


def test_a_create_that_is_not_answered_in_time_is_sent_once(world: HetznerWorld) -> None:
    client = open_client(TOKEN, endpoint=f"{world.url}/v1", read_timeout_s=IMPATIENCE_S)
    impatient = HetznerCloud(client, now=world.now)
    impatient.create(spec_of(world, 1))  # makes the firewall
    world.plant(Fault("POST /servers", how="hang", after=True, seconds=IMPATIENCE_S + 1))
    with pytest.raises(requests.exceptions.ReadTimeout) as late:
        impatient.create(spec_of(world, 2))
    assert impatient.classify(late.value).may_exist
    assert world.calls().count("POST /servers") == 2


def test_what_fails_before_the_create_is_sent_made_nothing(world: HetznerWorld) -> None:
    world.plant(Fault("GET /firewalls", how="html_502"))
    with pytest.raises(NotSentError) as failed:
        world.cloud.create(spec_of(world))
    found = world.cloud.classify(failed.value)
    assert (found.kind, found.may_exist, found.code) == (ErrorKind.UNKNOWN, False, "http_502")


def test_an_action_that_fails_says_why_and_that_something_may_be_there() -> None:
    action = Action(
        id=1, command="create_server", error={"code": "resource_unavailable", "message": "none left", "details": {}}
    )
    found = classify(ActionFailedException(action))
    assert (found.kind, found.scope, found.may_exist) == (ErrorKind.CAPACITY, Scope.ZONE, True)
    assert found.message == "none left"


@pytest.mark.parametrize(
    ("exc", "kind", "may_exist"),
    [
        (requests.exceptions.ConnectTimeout("slow"), ErrorKind.UNKNOWN, True),
        (requests.exceptions.ConnectionError("reset"), ErrorKind.UNKNOWN, True),
        (APIException(502, "Bad Gateway", {"content": b"<html>"}), ErrorKind.UNKNOWN, True),
        (APIException(200, "OK", {"content": b'{"serv'}), ErrorKind.UNKNOWN, True),
        (APIException(429, "Too Many Requests", {}), ErrorKind.RATE_LIMITED, False),
        (APIException(None, None, None), ErrorKind.UNKNOWN, True),  # type: ignore[arg-type]
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


def test_no_code_that_may_exist_is_taken_for_a_refusal() -> None:
    refusals = (ErrorKind.CAPACITY, ErrorKind.QUOTA, ErrorKind.AUTH, ErrorKind.UNSUPPORTED, ErrorKind.RATE_LIMITED)
    assert all(not may_exist for kind, _, may_exist in CODES.values() if kind in refusals)


# -- listings --


@pytest.mark.parametrize("kind", ["servers", "primary_ips", "volumes", "images", "floating_ips", "ssh_keys"])
@pytest.mark.parametrize("how", ["drop", "html_502", "truncated"])
def test_a_listing_without_one_kind_is_incomplete_and_says_which(world: HetznerWorld, kind: str, how: Any) -> None:
    world.cloud.create(spec_of(world))
    world.plant(Fault(f"GET /{kind}", how=how))
    listing = world.cloud.list_owned()
    assert not listing.complete
    (problem,) = listing.problems
    assert problem.split(":")[0].lower().replace(" ", "_").replace("snapshots", "images") == kind
    assert world.cloud.list_owned().complete


def test_a_listing_that_does_not_come_is_incomplete(world: HetznerWorld) -> None:
    client = open_client(TOKEN, endpoint=f"{world.url}/v1", read_timeout_s=IMPATIENCE_S)
    world.plant(Fault("GET /volumes", how="hang", seconds=IMPATIENCE_S + 1))
    listing = HetznerCloud(client, now=world.now).list_owned()
    assert not listing.complete
    assert [problem.split(":")[0] for problem in listing.problems] == ["volumes"]


def test_everything_of_ours_is_listed_over_many_pages(world: HetznerWorld) -> None:
    project, mine = world.emulator.project, {OWNER_TAG: OWNER}
    for number in range(130):
        project.add("volumes", f"v{number}", "fsn1", mine if number % 2 else {"team": "web"}).data = {"size": 10}
    for number in range(51):
        project.add("ssh_keys", f"k{number}", "", mine)
    project.add("images", "", "", mine).data = {"size": 3, "type": "snapshot", "architecture": "x86"}
    project.add("floating_ips", "f", "hel1", mine).data = {"ip": "203.0.113.9"}
    listing = world.cloud.list_owned()
    kinds = [resource.kind for resource in listing.resources]
    assert listing.complete
    assert [kinds.count(kind) for kind in ("disk", "key", "snapshot", "ip")] == [65, 51, 1, 1]
    for resource in listing.resources:
        shown = world.cloud.get(resource.ref())
        assert shown is not None
        assert (shown.cloud_id, shown.tags) == (resource.cloud_id, resource.tags)
        world.cloud.delete(resource.ref())
        world.cloud.delete(resource.ref())
    assert ours(world) == []
    assert len(project.alive("volumes")) == 65


def test_an_address_without_labels_is_listed_with_its_server(world: HetznerWorld) -> None:
    world.plant(Fault("PUT /primary_ips", times=10**6))
    made = world.cloud.create(spec_of(world))
    (ip,) = world.emulator.project.alive("primary_ips")
    assert ip.labels == {}
    listed = [resource for resource in world.cloud.list_owned().resources if resource.kind == "ip"]
    assert [(resource.cloud_id, resource.tags) for resource in listed] == [(f"primary_ip/{ip.id}", made.tags)]


def test_what_goes_between_two_pages_hides_nothing(world: HetznerWorld) -> None:
    project = world.emulator.project
    volumes = [project.add("volumes", f"v{number}", "fsn1", {OWNER_TAG: OWNER}) for number in range(60)]
    for volume in volumes:
        volume.data = {"size": 10}

    def delete_the_first(operation: str) -> None:
        if operation == "GET /volumes" and world.calls().count(operation) == 2:
            volumes[0].ended_unix_s = world.now()

    world.emulator.on_operation = delete_the_first
    listing = world.cloud.list_owned()
    assert listing.complete
    assert {r.name for r in listing.resources} == {f"v{number}" for number in range(1, 60)}


def test_a_project_that_never_stands_still_has_no_complete_listing(world: HetznerWorld) -> None:
    project = world.emulator.project
    volumes = [project.add("volumes", f"v{number}", "fsn1", {OWNER_TAG: OWNER}) for number in range(60)]
    for volume in volumes:
        volume.data = {"size": 10}
    remaining = iter(volumes)

    def delete_one(operation: str) -> None:
        if operation == "GET /volumes":
            next(remaining).ended_unix_s = world.now()

    world.emulator.on_operation = delete_one
    listing = world.cloud.list_owned()
    assert not listing.complete
    assert "add up" in listing.problems[0]


def test_an_attached_volume_of_ours_is_detached_and_deleted(world: HetznerWorld) -> None:
    made = world.cloud.create(spec_of(world))
    volume = world.emulator.project.add("volumes", "data", "fsn1", {OWNER_TAG: OWNER})
    volume.data = {"size": 10, "assignee": int(made.cloud_id)}
    (disk,) = (r for r in world.cloud.list_owned().resources if r.kind == "disk")
    world.cloud.delete(disk.ref())
    assert not volume.exists(world.now())


def test_an_id_that_is_none_of_ours_is_refused() -> None:
    with open_world() as world, pytest.raises(ValueError, match="certificate/4"):
        world.cloud.get(Ref(vendor="hetzner", place="", name="x", cloud_id="certificate/4"))


# -- firewalls --


def test_a_firewall_that_somebody_opened_is_closed_again(world: HetznerWorld) -> None:
    world.cloud.create(spec_of(world, 1))
    (firewall,) = world.emulator.project.alive("firewalls")
    firewall.data["rules"] = [{"direction": "in", "protocol": "tcp", "port": "1-65535", "source_ips": ["0.0.0.0/0"]}]
    world.cloud_with(TOKEN).create(spec_of(world, 2))
    assert [(rule["port"], rule["source_ips"]) for rule in firewall.data["rules"]] == [("22", ["198.51.100.7/32"])]


def test_a_firewall_that_somebody_deleted_is_made_again(world: HetznerWorld) -> None:
    world.cloud.delete(world.cloud.create(spec_of(world, 1)).ref())
    (firewall,) = world.emulator.project.alive("firewalls")
    firewall.ended_unix_s = world.now()
    world.cloud.create(spec_of(world, 2))
    (again,) = world.emulator.project.alive("firewalls")
    assert again.name == firewall.name
    assert again.id != firewall.id


def test_unused_firewalls_make_room_for_a_new_one() -> None:
    with open_world(firewall_limit=3) as world:
        kept = world.cloud.create(spec_of(world, 1, ssh_sources=("198.51.100.1/32",)))
        world.cloud.delete(world.cloud.create(spec_of(world, 2, ssh_sources=("198.51.100.2/32",))).ref())
        world.emulator.project.add("firewalls", "theirs", "", {"team": "web"}).data = {"rules": []}
        world.cloud.create(spec_of(world, 3, ssh_sources=("198.51.100.3/32",)))
        names = {firewall.name for firewall in world.emulator.project.alive("firewalls")}
        assert "theirs" in names
        assert len(names) == 3
        assert world.cloud.get(kept.ref()) is not None


def test_more_sources_than_one_rule_holds(world: HetznerWorld) -> None:
    world.cloud.create(spec_of(world, ssh_sources=tuple(f"198.51.100.{number}/32" for number in range(150))))
    (firewall,) = world.emulator.project.alive("firewalls")
    assert [len(rule["source_ips"]) for rule in firewall.data["rules"]] == [100, 50]


def test_a_source_that_is_no_network_is_refused(world: HetznerWorld) -> None:
    with pytest.raises(NotSentError) as refused:
        world.cloud.create(spec_of(world, ssh_sources=("here",)))
    found = world.cloud.classify(refused.value)
    assert (found.kind, found.may_exist) == (ErrorKind.UNSUPPORTED, False)
    assert "'here'" in found.message


# -- labels --


@settings(deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]{0,30}[a-z0-9]", fullmatch=True), st.text(max_size=9)))
def test_tags_come_back_as_they_went(tags: dict[str, str]) -> None:
    labels = to_labels(tags)
    assert to_tags(labels) == tags
    properties: Any = LABELS["additionalProperties"]
    pattern = properties["pattern"]
    assert all(re.fullmatch(pattern, value) for value in labels.values())


def test_tags_that_no_label_can_carry_are_refused() -> None:
    for tags in ({"key with spaces": "x"}, {"": "x"}, {"key": "ü" * 40}, {"k" * 64: "x"}):
        with pytest.raises(ConfigError):
            to_labels(tags)


def test_the_emulator_reads_label_selectors() -> None:
    labels = {"a": "1", "b": ""}
    assert [selects(s, labels) for s in ("a=1", "a==1", "a!=1", "a", "!a", "!c", "a=1,b", "a,c", "")] == [
        *(True, True, False, True, False, True, True, False, True)
    ]


# -- secrets --


def test_nothing_that_is_said_holds_a_secret(world: HetznerWorld, caplog: pytest.LogCaptureFixture) -> None:
    said = [repr(world.cloud)]
    with caplog.at_level(logging.DEBUG):
        for number, how in enumerate(get_args(How)[:3]):
            world.plant(Fault("POST /servers", how=how, after=True), Fault("PUT /primary_ips"))
            try:
                said.append(repr(world.cloud.create(spec_of(world, number))))
            except Exception as exc:
                said += [str(exc), repr(exc), repr(world.cloud.classify(exc))]
        said += [repr(world.cloud.list_owned()), repr(world.cloud.create(spec_of(world, 9)))]
    said.append(caplog.text)
    for secret in (TOKEN, "a-root-password-that-nobody-may-see", "OPENSSH PRIVATE KEY"):
        assert not [text for text in said if secret in text]
