"""Simulated servers that are reached over SSH: a real sshd, real connections, the events of the simulation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tasks.clouds.hosts import Host
from tasks.clouds.sim import SimCloud, SimHost, SimOptions
from tasks.domain.errors import AgentError, ConfigError, UnreachableError
from tasks.vendors.sim import open_cloud
from tasks.vendors.sim_ssh import SshSimCloud
from tests.sshd import Server, any_server, running
from tests.unit.test_sim_cloud import spec_for
from tests.unit.test_sim_server import CPU, nothing_lost, plan_of

SPEEDUP = 600.0


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(any_server(tmp_path_factory.mktemp("sshd"))) as server:
        yield server


def cloud_in(folder: Path, sshd: Server, share: float = 1.0, speedup: float = SPEEDUP, **faults: float) -> SshSimCloud:
    return SshSimCloud(folder, SimOptions(speedup=speedup, faults=faults), sshd.endpoint(), share)


def started(cloud: SshSimCloud, models: tuple[str, ...] = ("smollm-135m",)) -> Host:
    """A server whose agent runs, and how it is used."""
    made = cloud.create(spec_for(cloud, server_type=CPU))
    host = cloud.host(made, host_public_key="pinned", connect_timeout_s=300.0, give_up_s=120.0, sleep=cloud.clock.sleep)
    host.connect()
    host.start(plan_of(models=models))
    return host


def simulated_events(folder: Path, cloud_id: str) -> list[dict[str, Any]]:
    """The same without SSH."""
    cloud = SimCloud(folder)
    host = SimHost(cloud, cloud_id, "pinned", connect_timeout_s=300.0, give_up_s=120.0, sleep=cloud.clock.sleep)
    as_sent: list[dict[str, Any]] = json.loads(json.dumps(list(host.events(0, nothing_lost))))
    return as_sent


def test_its_events_are_those_of_the_simulation(tmp_path: Path, sshd: Server) -> None:
    cloud = cloud_in(tmp_path, sshd)
    events = list(started(cloud).events(0, nothing_lost))
    assert events[-1]["kind"] == "Finished"
    assert events == simulated_events(tmp_path, server_of(cloud))


def test_a_connection_that_breaks_is_made_again_and_no_event_is_lost(tmp_path: Path, sshd: Server) -> None:
    lost: list[Exception] = []
    cloud = cloud_in(tmp_path, sshd, connection_lost=1.0)
    events = list(started(cloud).events(0, lost.append))
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert (events[-1]["kind"], len(lost)) == ("Finished", 1)


def test_an_agent_that_dies_is_known_by_how_its_tail_exits(tmp_path: Path, sshd: Server) -> None:
    with pytest.raises(AgentError) as caught:
        list(started(cloud_in(tmp_path, sshd, agent_dies=1.0)).events(0, nothing_lost))
    assert caught.value.reason == "agent_died"


def test_a_server_that_has_gone_answers_no_more(tmp_path: Path, sshd: Server) -> None:
    lost: list[Exception] = []
    cloud = cloud_in(tmp_path, sshd, speedup=SPEEDUP / 20)  # it is still measuring when this machine is slow
    events = started(cloud, models=("llama-7b", "phi-4")).events(0, lost.append)
    next(events)
    server = cloud.state.thing(server_of(cloud))
    assert server is not None
    cloud.state.change(server.id, dies_unix_s=cloud.clock.now() + 60, dies_as="stopped")
    with pytest.raises(UnreachableError) as caught:
        list(events)
    assert caught.value.reason == "server_gone" and len(lost) > 1


def test_only_a_share_is_reached_over_ssh_and_always_the_same(tmp_path: Path, sshd: Server) -> None:
    cloud = cloud_in(tmp_path, sshd, share=0.1)
    over_ssh = [
        kind.name
        for n, kind in enumerate(cloud.catalog()[:400])
        if not isinstance(host_for(cloud, n, kind.name), SimHost)
    ]
    assert 20 <= len(over_ssh) <= 60
    assert all(not isinstance(host_for(cloud, 1000 + n, name), SimHost) for n, name in enumerate(over_ssh))


def test_a_file_with_the_endpoint_is_all_it_takes(
    tmp_path: Path, sshd: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = tmp_path / "sshd.json"
    where.write_text(json.dumps(asdict(sshd.endpoint())))
    monkeypatch.setenv("TOKENSWEEP_SIM_SSH", str(where))
    assert isinstance(open_cloud(tmp_path), SshSimCloud)
    where.write_text('{"address": "127.0.0.1"}')
    with pytest.raises(ConfigError, match=r"TOKENSWEEP_SIM_SSH: .*sshd.json does not say where"):
        open_cloud(tmp_path)


def server_of(cloud: SimCloud) -> str:
    return next(thing.id for thing in cloud.existing() if thing.kind == "server")


def host_for(cloud: SshSimCloud, n: int, server_type: str) -> Host:
    made = cloud.create(spec_for(cloud, n, server_type=server_type))
    return cloud.host(made, host_public_key="", connect_timeout_s=1.0, give_up_s=1.0, sleep=cloud.clock.sleep)
