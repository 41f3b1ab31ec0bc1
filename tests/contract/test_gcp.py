"""The GCP module through Google's own SDK over the emulated project: create, get, list, delete."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tasks.clouds.base import OWNER, OWNER_TAG, CreateSpec, Ref, Resource
from tasks.clouds.tags import with_tags
from tests.emulators.gcp_world import GcpWorld, open_world

TTL_S = 3600.0


@pytest.fixture
def world() -> Iterator[GcpWorld]:
    with open_world() as opened:
        yield opened


def spec_for(world: GcpWorld, **changes: Any) -> CreateSpec:
    values: dict[str, Any] = {
        "intent_id": "0123456789abcdef0123",
        "name": "tokensweep-0123456789abcdef0123",
        "token": "ab" * 32,
        "server_type": world.server_type,
        "place": world.places[0],
        "deadline_unix_s": world.now() + TTL_S,
        "sweep_id": "sweep-1",
        "server_run_id": "run-1",
        "client_public_key": "ssh-ed25519 AAAAclient tokensweep",
        "host_private_key": "-----BEGIN OPENSSH PRIVATE KEY-----\nverysecret\n-----END OPENSSH PRIVATE KEY-----\n",
        "host_public_key": "ssh-ed25519 AAAAhost",
    }
    return with_tags(CreateSpec(**{**values, **changes}), ledger_id="ledger-1", controller="host-1-42-99")


def until_running(world: GcpWorld, ref: Ref) -> Resource:
    for _ in range(30):
        found = world.cloud.get(ref)
        if found is not None and found.state == "running":
            return found
        world.sleep(1.0)
    raise AssertionError(f"{ref} does not run: {world.cloud.get(ref)}")


def ours(world: GcpWorld) -> list[str]:
    return sorted(f"{thing.kind}/{thing.name}" for thing in world.existing() if thing.ours)


def test_a_server_comes_runs_is_listed_and_goes_with_its_disk(world: GcpWorld) -> None:
    world.add_foreign()
    spec = spec_for(world)
    made = world.cloud.create(spec)
    assert (made.state, made.name, made.place) == ("pending", spec.name, spec.place)
    assert ours(world) == [f"disk/{spec.name}", f"server/{spec.name}"]

    running = until_running(world, made.ref())
    assert running.cloud_id == made.cloud_id
    assert running.address
    assert running.username == "tokensweep"
    assert running.tags == spec.tags
    assert running.tags[OWNER_TAG] == OWNER

    listing = world.cloud.list_owned()
    assert listing.complete, listing.problems
    assert set(listing.places) == {*world.places, "us-central1", "europe-west4", "global"}
    assert [(r.kind, r.name, r.tags) for r in listing.resources] == [
        ("server", spec.name, spec.tags),
        ("disk", spec.name, spec.tags),
    ]
    assert listing.resources[0].cloud_id == made.cloud_id

    world.cloud.delete(made.ref())
    found = world.cloud.get(made.ref())
    assert found is not None and found.state == "stopping"
    world.sleep(10)
    assert world.cloud.get(made.ref()) is None
    assert world.cloud.list_owned().resources == ()
    assert ours(world) == []
    assert len(world.existing()) == 3, "somebody else's were deleted"
    world.cloud.delete(made.ref())
