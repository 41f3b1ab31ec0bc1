"""Whole lives of servers at Hetzner: the shared life cycle, ledger and reaper over the adapter and its emulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tasks.clouds.base import CreateSpec
from tasks.clouds.lifecycle import Draft, LiveServer, ServerRequest, create_server, request_delete
from tasks.domain.errors import AmbiguousError, AuthError, CapacityError, QuotaError
from tasks.domain.lifecycle import ResourceState
from tasks.ledger import Ledger
from tasks.reaper import leaks, reap
from tests.contract.world import VendorWorld
from tests.emulators.base import Fault
from tests.emulators.hetzner_world import HetznerWorld, open_world

TTL_S = 3600.0


@dataclass
class Life:
    """A ledger, a reaper and somebody else's servers around one vendor."""

    world: VendorWorld
    folder: Path
    before: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(f"sqlite:///{self.folder}/ledger.sqlite", now=self.world.now)
        self.world.add_foreign()
        self.before = [thing for thing in self.world.existing() if not thing.ours]
        self.reap()

    def create(self, run: str = "run", **changes: Any) -> LiveServer:
        def make_spec(draft: Draft) -> CreateSpec:
            return CreateSpec(
                **vars(draft),
                client_public_key="ssh-ed25519 AAAA",
                host_private_key="secret",
                host_public_key="pinned",
                ssh_sources=("198.51.100.7/32",),
            )

        options: dict[str, Any] = {
            "sweep_id": "sweep",
            "server_run_id": run,
            "server_type": self.world.server_type,
            "places": self.world.places,
            "deadline_unix_s": self.world.now() + TTL_S,
            "usd_per_hour": Decimal("0.01"),
            "cap_usd": Decimal(100),
        }
        request = ServerRequest(**(options | changes))
        return create_server(
            self.world.cloud, self.ledger, make_spec, request, now=self.world.now, sleep=self.world.sleep
        )

    def delete(self, server: LiveServer) -> bool:
        return request_delete(self.world.cloud, self.ledger, server.row)

    def reap(self, prove_s: float = 300.0) -> Any:
        return reap([self.world.cloud], self.ledger, self.world.now, self.world.sleep, prove_s=prove_s)

    def ours(self) -> list[Any]:
        return [thing for thing in self.world.existing() if thing.ours]

    def servers(self) -> list[Any]:
        return [thing for thing in self.ours() if thing.kind == "server"]

    def settle(self) -> None:
        """Pass every deadline, reap, and check that nothing of ours is left and nobody else's is touched."""
        self.world.sleep(TTL_S + 1000)
        for _ in range(3):
            self.world.sleep(60)
            report = self.reap()
        assert report.finished, report
        assert self.ours() == []
        assert [thing for thing in self.world.existing() if not thing.ours] == self.before
        assert [row.name for row in self.ledger.rows() if row.state is not ResourceState.GONE] == []
        assert leaks([self.world.cloud], self.ledger, self.world.now).clean


Start = Callable[..., Life]


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Opens a life with options of the emulator."""
    opened = []

    def _start(**options: Any) -> Life:
        context = open_world(**options)
        world = context.__enter__()
        opened.append(context)
        return Life(world, tmp_path)

    yield _start
    for context in opened:
        context.__exit__(None, None, None)


def hetzner(life: Life) -> HetznerWorld:
    assert isinstance(life.world, HetznerWorld)
    return life.world


def test_a_server_lives_and_is_proven_gone(start: Start) -> None:
    life = start(create_s=20.0, delete_s=5.0, lag_s=4.0)
    server = life.create()
    assert server.resource.state == "running"
    assert server.resource.address
    assert life.delete(server)
    life.settle()


@pytest.mark.parametrize("how", ["drop", "html_502", "truncated"])
@pytest.mark.parametrize("after", [False, True])
def test_a_lost_answer_leaves_one_server_and_no_stray(start: Start, how: Any, after: bool) -> None:
    life = start(lag_s=3.0)
    life.world.plant(Fault("POST /servers", how=how, after=after))
    server = life.create()
    assert [thing.cloud_id for thing in life.servers()] == [server.resource.cloud_id]
    life.settle()


def test_answers_lost_for_ever_leave_nothing(start: Start) -> None:
    life = start()
    life.world.plant(Fault("POST /servers", after=True, times=1), Fault("GET /servers", times=10**6))
    with pytest.raises(AmbiguousError):
        life.create()
    assert len(life.servers()) == 1
    hetzner(life).emulator.faults.clear()
    life.settle()


def test_stockouts_go_on_to_the_next_location(start: Start) -> None:
    life = start(stock={"fsn1": 0, "nbg1": 0})
    assert life.create().resource.place == "hel1"
    life.settle()


def test_a_server_that_fails_in_its_action_is_deleted_and_the_next_location_taken(start: Start) -> None:
    life = start(fails_later={"fsn1"}, create_s=10.0)
    server = life.create()
    assert server.resource.place == "nbg1"
    life.reap()
    assert {thing.place for thing in life.ours()} == {"nbg1"}
    life.settle()


def test_no_location_has_it(start: Start) -> None:
    life = start(stock={"cx23": 0})
    with pytest.raises(CapacityError, match=r"fsn1.*nbg1.*hel1"):
        life.create()
    assert life.ours() == []
    life.settle()


def test_the_project_limit_stops_at_once(start: Start) -> None:
    life = start(server_limit=1)
    with pytest.raises(QuotaError, match="server limit"):
        life.create()
    assert life.world.calls().count("POST /servers") == 1
    life.settle()


def test_rate_limits_are_waited_out(start: Start) -> None:
    life = start()
    life.world.plant(Fault("POST /servers", how="code", code="rate_limit_exceeded", times=3))
    assert life.create().resource.place == "fsn1"
    life.settle()


def test_a_real_rate_limit_refills(start: Start) -> None:
    life = start(requests_per_hour=120)
    for number in range(12):
        life.delete(life.create(f"run-{number}"))
        life.world.sleep(5)
    life.settle()


def test_a_revoked_token_halts_creates_and_loses_nothing(start: Start) -> None:
    life = start()
    first = life.create("first")
    tokens = hetzner(life).emulator.tokens.copy()
    hetzner(life).emulator.tokens.clear()
    with pytest.raises(AuthError):
        life.create("second")
    assert not life.delete(first)
    assert not life.reap(prove_s=0).finished
    hetzner(life).emulator.tokens |= tokens
    life.settle()


def test_a_protected_server_is_tried_until_the_protection_is_lifted(start: Start) -> None:
    life = start()
    server = life.create()
    number = int(server.resource.cloud_id)
    hetzner(life).emulator.project.find("servers", number).protected = True
    assert not life.delete(server)
    life.world.sleep(2000)
    report = life.reap()
    assert [row.name for row in report.stuck] == [server.row.name]
    hetzner(life).emulator.project.find("servers", number).protected = False
    life.settle()


def test_an_address_that_outlives_its_server_is_found_and_deleted(start: Start) -> None:
    """Its server is deleted in the console before it goes along, as a reaper would never do."""
    life = start()
    server = life.create()
    project = hetzner(life).emulator.project
    project.alive("primary_ips")[-1].data["auto_delete"] = False
    project.delete_server(project.find("servers", int(server.resource.cloud_id)))
    assert [thing.kind for thing in life.ours()] == ["ip"]
    life.settle()


def test_a_server_made_while_the_controller_died_takes_its_unlabelled_address_along(start: Start) -> None:
    """Killed between the create and the labelling of its address: only the server's label tells whose that is."""
    life = start()
    life.world.plant(Fault("PUT /primary_ips/{id}", times=10**6))
    life.create()
    (ip,) = [ip for ip in hetzner(life).emulator.project.alive("primary_ips") if ip.data.get("made_for_ours")]
    assert ip.labels == {}
    hetzner(life).emulator.faults.clear()
    life.settle()


def test_with_the_ledger_lost_everything_goes_by_its_labels(start: Start, tmp_path: Path) -> None:
    life = start()
    life.create()
    life.ledger = Ledger(f"sqlite:///{tmp_path}/another.sqlite", now=life.world.now)
    life.settle()


def test_a_powered_off_server_still_bills_and_still_goes(start: Start) -> None:
    life = start()
    server = life.create()
    project = hetzner(life).emulator.project
    project.find("servers", int(server.resource.cloud_id)).data["off"] = True
    before = project.bill_eur()
    life.world.sleep(7200)
    assert project.bill_eur() > before
    assert life.world.cloud.get(server.resource.ref()).state == "stopped"  # type: ignore[union-attr]
    life.settle()
    flat = project.bill_eur()
    foreign_per_hour = sum((thing.usd_per_hour for thing in life.before), Decimal(0))
    life.world.sleep(3600)
    assert project.bill_eur() - flat <= foreign_per_hour
