"""What the tests of the GCP module share: specs, waiting, and sight of what is ours."""

from __future__ import annotations

from typing import Any

from tasks.clouds.base import CreateSpec, Ref, Resource
from tasks.clouds.tags import with_tags
from tests.emulators.gcp_world import GcpWorld

TTL_S = 3600.0
HOST_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nverysecret\n-----END OPENSSH PRIVATE KEY-----\n"


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
        "host_private_key": HOST_KEY,
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


def asked_for(world: GcpWorld, kind: str = "instances") -> list[dict[str, Any]]:
    """The bodies of what was made, as they came to the vendor."""
    return [thing.body for thing in world.emulator.project.things if thing.kind == kind]
