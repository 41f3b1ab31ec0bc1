"""A Hetzner project: what exists in it, how it changes as time goes by, and what it bills."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tests.emulators import hetzner_schema as schema
from tests.emulators.base import Guest, Machines

TYPES = {kind["name"]: kind for kind in schema.server_types()}
VOLUME_EUR_PER_GB_HOUR = Decimal("0.00007")


class ApiError(Exception):
    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(message or code.replace("_", " "))
        self.code = code


def rfc3339(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat()


@dataclass
class Action:
    id: int
    command: str
    started_unix_s: float
    ends_unix_s: float
    resource: tuple[str, int]
    error: str = ""

    def payload(self, now_unix_s: float) -> dict[str, Any]:
        done = now_unix_s >= self.ends_unix_s
        failed = done and self.error
        kind, number = self.resource
        return {
            "id": self.id,
            "command": self.command,
            "status": "error" if failed else "success" if done else "running",
            "progress": 100 if done else 50,
            "started": rfc3339(self.started_unix_s),
            "finished": rfc3339(self.ends_unix_s) if done else None,
            "resources": [{"id": number, "type": kind}],
            "error": {"code": self.error, "message": self.error.replace("_", " ")} if failed else None,
        }


@dataclass
class Thing:
    """Anything with a number, a name and labels. ended_unix_s: from when it is gone."""

    id: int
    kind: str
    name: str
    place: str
    labels: dict[str, str]
    created_unix_s: float
    ended_unix_s: float = math.inf
    protected: bool = False
    data: dict[str, Any] = field(default_factory=dict)

    def exists(self, now_unix_s: float) -> bool:
        return now_unix_s < self.ended_unix_s


@dataclass
class Project:
    """create_s, delete_s: how long these take; lag_s: how far listings are behind. stock: servers left by location or
    server type (absent: no end). fails_later: locations where a create is taken and then fails. ips_go_along: whether
    the address that is made along with a server goes with it."""

    now: Callable[[], float]
    machines: Machines
    create_s: float = 0.0
    delete_s: float = 0.0
    lag_s: float = 0.0
    stock: dict[str, int] = field(default_factory=dict)
    server_limit: int = 1000
    firewall_limit: int = 50
    fails_later: set[str] = field(default_factory=set)
    ips_go_along: bool = False
    things: dict[str, dict[int, Thing]] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        for number, architecture in enumerate(("x86", "arm"), start=1):
            image = self.add("images", "ubuntu-24.04", "", {}, number=10**8 + number)
            image.data |= {"type": "system", "architecture": architecture}

    # -- all kinds --

    def table(self, kind: str) -> dict[int, Thing]:
        return self.things.setdefault(kind, {})

    def add(self, kind: str, name: str, place: str, labels: dict[str, str], *, number: int = 0) -> Thing:
        if name and any(t.name == name for t in self.alive(kind)) and kind != "images":
            raise ApiError("uniqueness_error", "name is already used")
        thing = Thing(number or next(self.numbers), kind, name, place, dict(labels), self.now())
        self.table(kind)[thing.id] = thing
        return thing

    def alive(self, kind: str) -> list[Thing]:
        now_unix_s = self.now()
        return [thing for thing in self.table(kind).values() if thing.exists(now_unix_s)]

    def listed(self, kind: str) -> list[Thing]:
        """What listings show: late to appear, and late to go."""
        now_unix_s = self.now()
        return [
            thing
            for thing in sorted(self.table(kind).values(), key=lambda t: t.id)
            if now_unix_s >= thing.created_unix_s + (self.lag_s if kind != "images" else 0)
            and now_unix_s < thing.ended_unix_s + self.lag_s
        ]

    def find(self, kind: str, number: int) -> Thing:
        thing = self.table(kind).get(number)
        if thing is None or not thing.exists(self.now()):
            raise ApiError("not_found", f"{kind} with ID '{number}' not found")
        return thing

    def act(self, command: str, thing: Thing, seconds: float = 0.0, error: str = "") -> Action:
        action = Action(
            len(self.actions) + 1, command, self.now(), self.now() + seconds, (thing.kind[:-1], thing.id), error
        )
        self.actions.append(action)
        return action

    # -- servers --

    def create_server(self, body: dict[str, Any], *, foreign: bool = False) -> tuple[Thing, Action, list[Action]]:
        """foreign: somebody else's, which no machine need be started for."""
        kind = TYPES.get(str(body["server_type"]))
        place = str(body.get("location", "fsn1"))
        if kind is None or place not in schema.LOCATIONS:
            raise ApiError("invalid_input", "server type or location not found")
        if place not in {price["location"] for price in kind["prices"]} or (kind["name"], place) in schema.WITHDRAWN:
            raise ApiError("invalid_input", "unsupported location for server type")
        if body["image"] != "ubuntu-24.04":
            raise ApiError("not_found", "image not found")
        if len(self.alive("servers")) >= self.server_limit:
            raise ApiError("resource_limit_exceeded", "server limit exceeded")
        limits = () if foreign else (place, kind["name"])
        for limited in limits:
            if self.stock.get(limited, 1) <= 0:
                raise ApiError("resource_unavailable", "server location unavailable")
        firewalls = [self.find("firewalls", entry["firewall"]) for entry in body.get("firewalls", ())]
        server = self.add("servers", body["name"], place, body.get("labels", {}))
        for limited in limits:
            if limited in self.stock:
                self.stock[limited] -= 1
        server.data = {
            "type": kind,
            "off": not body.get("start_after_create", True),
            "user_data": body.get("user_data", ""),
        }
        server.data["ssh_keys"] = body.get("ssh_keys", [])
        server.data["firewalls"] = [firewall.id for firewall in firewalls]
        if body.get("public_net", {}).get("enable_ipv4", True):
            server.data["ipv4"] = self._address_for(server).id
        error = "resource_unavailable" if place in self.fails_later else ""
        server.data["failed"] = bool(error)
        created = self.act("create_server", server, self.create_s, error)
        started = [] if error else [self.act("start_server", server, self.create_s)]
        server.data["foreign"] = foreign
        if not error and not foreign:
            guest = Guest(
                cloud_id=str(server.id),
                name=server.name,
                user_data=server.data["user_data"],
                vcpus=kind["cores"],
                memory_bytes=int(kind["memory"] * 2**30),
            )
            self.machines.start(guest)
        return server, created, started

    def _address_for(self, server: Thing) -> Thing:
        number = next(self.numbers)
        ip = self.add("primary_ips", f"primary_ip-{number}", server.place, {}, number=number)
        ip.data = {"ip": f"203.0.113.{number % 250 + 1}", "assignee": server.id, "auto_delete": self.ips_go_along}
        return ip

    def status(self, server: Thing) -> str:
        now_unix_s = self.now()
        if server.data.get("deleting"):
            return "deleting"
        if server.data["failed"] or now_unix_s < server.created_unix_s + self.create_s:
            return "initializing"
        if server.data["off"]:
            return "off"
        runs = server.data.get("foreign") or self.machines.address(str(server.id))
        return "running" if runs else "starting"

    def delete_server(self, server: Thing) -> Action:
        if server.protected:
            raise ApiError("protected", "server deletion is protected")
        if not server.data["failed"] and self.now() < server.created_unix_s + self.create_s:
            raise ApiError("locked", "server is locked")
        if not server.data.get("deleting"):
            server.data["deleting"] = True
            server.ended_unix_s = self.now() + self.delete_s
            self.machines.stop(str(server.id))
        self.settle()
        return self.act("delete_server", server, self.delete_s)

    def settle(self) -> None:
        """What has happened since: with a server go its auto-deleted addresses; everything else is left behind."""
        now_unix_s = self.now()
        for kind in ("primary_ips", "volumes", "floating_ips"):
            for thing in self.alive(kind):
                server = self.table("servers").get(thing.data.get("assignee") or 0)
                if server is None or server.exists(now_unix_s):
                    continue
                thing.data["assignee"] = None
                if thing.data.get("auto_delete"):
                    thing.ended_unix_s = server.ended_unix_s

    # -- money --

    def eur_per_hour(self, thing: Thing) -> Decimal:
        if thing.kind == "servers":
            prices = {price["location"]: price["price_hourly"]["net"] for price in thing.data["type"]["prices"]}
            return Decimal(prices[thing.place])
        if thing.kind in ("primary_ips", "floating_ips"):
            return Decimal(schema.IPV4_EUR_PER_HOUR)
        if thing.kind in ("volumes", "images"):
            return VOLUME_EUR_PER_GB_HOUR * int(thing.data.get("size", 0))
        return Decimal(0)

    def bill_eur(self) -> Decimal:
        """All that was ever used, each begun hour in full, powered off or not."""
        now_unix_s = self.now()
        return sum(
            (
                self.eur_per_hour(thing)
                * max(1, math.ceil((min(thing.ended_unix_s, now_unix_s) - thing.created_unix_s) / 3600))
                for table in self.things.values()
                for thing in table.values()
            ),
            Decimal(0),
        )
