"""An UpCloud account: what exists in it, how it changes as time goes by, and what it bills."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tests.emulators import upcloud_schema as schema
from tests.emulators.base import Guest, Machines

PLANS = {plan["name"]: plan for plan in schema.plans()}
PRICES = {zone["name"]: zone for zone in schema.prices()}


class ApiError(Exception):
    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(message or code.replace("_", " ").capitalize())
        self.code = code


@dataclass
class Thing:
    """kind: server, storage or ip. ended_unix_s: from when it is gone."""

    uuid: str
    kind: str
    title: str
    zone: str
    labels: dict[str, str]
    created_unix_s: float
    ended_unix_s: float = math.inf
    data: dict[str, Any] = field(default_factory=dict)

    def exists(self, now_unix_s: float) -> bool:
        return now_unix_s < self.ended_unix_s


@dataclass
class Account:
    """create_s, stop_s: how long a server is in maintenance for these; storage_delete_s: how long deleted storages
    stay; lag_s: how far listings are behind. stock: servers left by zone or plan (absent: no end). fails_later: zones
    where a create is taken and then ends in an error."""

    now: Callable[[], float]
    machines: Machines
    create_s: float = 0.0
    stop_s: float = 0.0
    storage_delete_s: float = 0.0
    lag_s: float = 0.0
    stock: dict[str, int] = field(default_factory=dict)
    core_limit: int = 1000
    credits: float = 10_000.0
    fails_later: set[str] = field(default_factory=set)
    things: dict[str, Thing] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # -- all kinds --

    def add(self, kind: str, title: str, zone: str, labels: dict[str, str], **data: Any) -> Thing:
        number = next(self.numbers)
        prefix = {"server": "00", "storage": "01", "ip": "ip"}[kind]
        uuid = (
            f"{prefix}{number:06x}-0000-4000-8000-{number:012x}"
            if kind != "ip"
            else f"198.18.{number >> 8}.{number & 255}"
        )
        thing = Thing(uuid, kind, title, zone, dict(labels), self.now(), data=data)
        self.things[uuid] = thing
        return thing

    def alive(self, kind: str) -> list[Thing]:
        now_unix_s = self.now()
        return [thing for thing in self.things.values() if thing.kind == kind and thing.exists(now_unix_s)]

    def listed(self, kind: str) -> list[Thing]:
        """What listings show: late to appear, and late to go."""
        now_unix_s = self.now()
        return [
            thing
            for thing in self.things.values()
            if thing.kind == kind and thing.created_unix_s + self.lag_s <= now_unix_s < thing.ended_unix_s + self.lag_s
        ]

    def find(self, kind: str, uuid: str) -> Thing:
        thing = self.things.get(uuid)
        if thing is None or thing.kind != kind or not thing.exists(self.now()):
            code = {"server": "SERVER", "storage": "STORAGE", "ip": "IP_ADDRESS"}[kind]
            raise ApiError(f"{code}_NOT_FOUND", f"The {kind} {uuid} does not exist.")
        return thing

    def of(self, kind: str, server: Thing) -> list[Thing]:
        return [thing for thing in self.alive(kind) if thing.data.get("server") == server.uuid]

    # -- servers --

    def create_server(self, body: dict[str, Any]) -> Thing:
        plan, zone = PLANS.get(body.get("plan", "")), body["zone"]
        self._check_create(body, plan, zone)
        assert plan is not None
        for limited in (zone, plan["name"]):
            if limited in self.stock:
                self.stock[limited] -= 1
        labels = {label["key"]: label["value"] for label in body.get("labels", {}).get("label", ())}
        server = self.add("server", body["title"], zone, labels, plan=plan, hostname=body["hostname"])
        server.data |= {"user_data": body.get("user_data", ""), "body": body, "state": "started"}
        server.data["busy_until_unix_s"] = self.now() + self.create_s
        for device in body["storage_devices"]["storage_device"]:
            device_labels = {label["key"]: label["value"] for label in device.get("labels", ())}
            size, tier = device.get("size", 10), device.get("tier", "maxiops")
            self.add(
                "storage", device["title"], zone, device_labels, server=server.uuid, size=size, tier=tier, type="normal"
            )
        interfaces = body.get("networking", {}).get("interfaces", {}).get("interface")
        for interface in interfaces or [{"type": "public"}]:
            if interface["type"] == "public":
                self.add("ip", "", zone, {}, server=server.uuid, floating="no", release_policy="release")
        if zone in self.fails_later:
            server.data["state"] = "error"
        else:
            memory_bytes = plan["memory_amount"] * 2**20
            self.machines.start(
                Guest(
                    cloud_id=server.uuid,
                    name=server.title,
                    user_data=server.data["user_data"],
                    vcpus=plan["core_number"],
                    memory_bytes=memory_bytes,
                )
            )
        return server

    def _check_create(self, body: dict[str, Any], plan: dict[str, Any] | None, zone: str) -> None:
        if self.credits <= 0:
            raise ApiError("INSUFFICIENT_CREDITS", "The account has insufficient credits.")
        if zone not in PRICES:
            raise ApiError("ZONE_NOT_FOUND", f"The zone {zone} does not exist.")
        if plan is None:
            raise ApiError("PLAN_INVALID", "The plan does not exist.")
        if f"server_plan_{plan['name']}" not in PRICES[zone]:
            raise ApiError("ZONE_INVALID", "The plan is not sold in this zone.")
        if plan.get("gpu_amount") and not schema.GPU_STOCK.get(zone, {}).get(plan["name"]):
            raise ApiError("SERVER_RESOURCES_UNAVAILABLE", "There are no GPUs of this model in the zone.")
        sizes_gib = {uuid: size for uuid, _, size in schema.TEMPLATES}
        for device in body["storage_devices"]["storage_device"]:
            if device["action"] == "clone" and device.get("storage") not in sizes_gib:
                raise ApiError("STORAGE_NOT_FOUND", "The template does not exist.")
            if device["action"] == "clone" and device.get("size", 10) < sizes_gib[device["storage"]]:
                raise ApiError("SIZE_INVALID", "The storage is smaller than its template.")
            if "title" not in device:
                raise ApiError("STORAGE_TITLE_MISSING", "A storage needs a title.")
        if body.get("metadata") != "yes":
            raise ApiError("METADATA_DISABLED_ON_CLOUD-INIT", "This template needs the metadata service.")
        if (
            not body.get("login_user", {}).get("ssh_keys")
            and body.get("login_user", {}).get("create_password") != "yes"
        ):
            raise ApiError("SSH_KEYS_MISSING", "This template needs an SSH key.")
        cores = sum(server.data["plan"]["core_number"] for server in self.alive("server"))
        if cores + plan["core_number"] > self.core_limit:
            raise ApiError("SERVER_CORE_LIMIT_REACHED", "The limit of CPU cores is reached.")
        for limited in (zone, plan["name"]):
            if self.stock.get(limited, 1) <= 0:
                raise ApiError("SERVER_RESOURCES_UNAVAILABLE", "There are no resources for this in the zone.")

    def state(self, server: Thing) -> str:
        if self.now() < server.data["busy_until_unix_s"]:
            return "maintenance"
        boots = server.data["state"] == "started" and not server.data.get("foreign")
        if boots and not self.machines.address(server.uuid):
            return "maintenance"
        return str(server.data["state"])

    def stop(self, server: Thing) -> None:
        if self.state(server) != "started":
            raise ApiError("SERVER_STATE_ILLEGAL", f"The server is {self.state(server)}.")
        self.machines.stop(server.uuid)
        server.data |= {"state": "stopped", "busy_until_unix_s": self.now() + self.stop_s}

    def delete_server(self, server: Thing, *, storages: bool, backups: str) -> None:
        if self.state(server) not in ("stopped", "error"):
            raise ApiError("SERVER_STATE_ILLEGAL", f"The server is {self.state(server)}, and must be stopped.")
        server.ended_unix_s = self.now()
        self.machines.stop(server.uuid)
        for ip in self.of("ip", server):
            if ip.data["release_policy"] == "keep":
                ip.data |= {"server": None, "floating": "yes"}
            else:
                ip.ended_unix_s = self.now()
        for storage in self.of("storage", server):
            storage.data["server"] = None
            if storages:
                self.delete_storage(storage, backups=backups)

    def delete_storage(self, storage: Thing, *, backups: str) -> None:
        if storage.data.get("server"):
            raise ApiError("STORAGE_STATE_ILLEGAL", "The storage is attached.")
        storage.ended_unix_s = self.now() + self.storage_delete_s
        for backup in self.alive("storage"):
            if backup.data.get("origin") == storage.uuid and backups == "delete":
                backup.ended_unix_s = storage.ended_unix_s

    # -- money --

    def eur_per_hour(self, thing: Thing) -> Decimal:
        return Decimal(str(self._cents(thing))) / 100

    def _cents(self, thing: Thing) -> float:
        """A plan pays for its server, one storage up to its size, and the address."""
        owner = self.things.get(thing.data.get("server") or "")
        plan = owner.data["plan"] if owner is not None else {}
        if thing.kind == "server":
            return float(PRICES[thing.zone][f"server_plan_{thing.data['plan']['name']}"]["price"])
        if thing.kind == "ip":
            return 0.0 if plan.get("storage_size") else schema.IPV4_CENTS
        if thing.data["type"] == "backup":
            return schema.BACKUP_CENTS * float(thing.data["size"])
        return schema.STORAGE_CENTS[str(thing.data["tier"])] * float(
            max(0, thing.data["size"] - plan.get("storage_size", 0))
        )

    def bill_eur(self) -> Decimal:
        """All that was ever used, each begun hour in full, stopped or not."""
        now_unix_s = self.now()
        return sum(
            (
                self.eur_per_hour(thing)
                * max(1, math.ceil((min(thing.ended_unix_s, now_unix_s) - thing.created_unix_s) / 3600))
                for thing in self.things.values()
            ),
            Decimal(0),
        )
