"""How the simulated cloud behaves: what exists and bills is one thing, what its API shows of it is another.

Every method is one step inside a transaction of the state. Chance depends on the seed, the server type and the number
of the call on that type alone, so that a sweep meets the same faults when it is repeated.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from decimal import Decimal

from tasks.clouds.base import OWNER, OWNER_TAG, CreateSpec, Resource
from tasks.clouds.request import region_of
from tasks.clouds.sim import catalog
from tasks.clouds.sim.draws import Draws
from tasks.clouds.sim.errors import SimApiError
from tasks.clouds.sim.options import SimOptions
from tasks.clouds.sim.state import NEVER, SimState, Thing
from tasks.domain.lifecycle import billed_usd

SERVER = "server"
DISK_USD_PER_HOUR = Decimal("0.0022")
IP_USD_PER_HOUR = Decimal("0.005")
STOCK_WINDOW_S = 3600.0
SLOW_BOOT_S = 1800.0
TERMINATED_SHOWN_S = 60.0
MOST_CLOCK_OFFSET_S = 90.0


@dataclass(frozen=True)
class Bill:
    """What everything has cost so far, and costs per hour from now on."""

    total_usd: Decimal
    usd_per_hour: Decimal
    n_existing: int


@dataclass(frozen=True)
class Model:
    """born_unix_s: when the account was opened; what is drawn by time is drawn by the time since then."""

    state: SimState
    options: SimOptions
    draws: Draws
    now_unix_s: float
    born_unix_s: float

    def window(self, length_s: float) -> int:
        """The number of the stretch of time that it is now."""
        return int((self.now_unix_s - self.born_unix_s) // length_s)

    # ---- create -------------------------------------------------------------------------------------

    def create(self, spec: CreateSpec, n_call: int) -> Thing:
        """The server, made now or found by its token. Raises SimApiError when there is none."""
        options = self.options
        kind = catalog.server_type(spec.server_type)
        if spec.place not in kind.places:
            raise SimApiError("UnknownServerType")
        if options.idempotency_token:
            for found in self.state.of_token(spec.token):
                if self.now_unix_s < found.ends_unix_s:
                    return found
        if options.unique_names and any(self.now_unix_s < t.ends_unix_s for t in self.state.of_name(spec.name)):
            raise SimApiError("NameTaken")
        subject = (spec.server_type, "create", n_call)
        region = region_of(spec.place)
        in_use = self.state.vcpus_of(region, self.now_unix_s)
        if self.draws.happens("quota", *subject) or in_use + kind.vcpus > options.region_vcpus:
            raise SimApiError("QuotaExceeded")
        if self._out_of_stock(spec.server_type, spec.place):
            raise SimApiError("NoCapacity")
        server = self._server(spec, n_call)
        if self.draws.happens("partial_create", *subject):
            self._make_sides(server)
            raise SimApiError("AllocationFailed")
        twins = [replace(server, id=_new_id())] if self.draws.happens("double_create", *subject) else []
        for made in (server, *twins):
            self.state.add(made)
            self._make_sides(made)
        return server

    def _out_of_stock(self, server_type: str, place: str) -> bool:
        if self.draws.happens("capacity", server_type, place, self.window(STOCK_WINDOW_S)):
            return True
        return self.state.n_servers(server_type, place, self.now_unix_s) >= self.options.zone_stock

    def _server(self, spec: CreateSpec, n_call: int) -> Thing:
        draws, options, now_unix_s = self.draws, self.options, self.now_unix_s
        subject = (spec.server_type, "server", n_call)
        kind = catalog.server_type(spec.server_type)
        prices = kind.spot_prices if spec.spot else kind.prices
        boot_s = options.boot_s * draws.between(0.6, 1.5, "boot", *subject)
        if draws.happens("slow_boot", *subject):
            boot_s = SLOW_BOOT_S
        offset_s = 0.0
        if draws.happens("clock_offset", *subject):
            offset_s = draws.between(-MOST_CLOCK_OFFSET_S, MOST_CLOCK_OFFSET_S, "offset", *subject)
        server = Thing(
            id=_new_id(),
            kind=SERVER,
            name=spec.name,
            place=spec.place,
            token=spec.token,
            server_type=spec.server_type,
            vcpus=kind.vcpus,
            tags=dict(spec.tags),
            parent="",
            ours=spec.tags.get(OWNER_TAG) == OWNER,
            usd_per_hour=prices[spec.place],
            created_unix_s=now_unix_s,
            shown_created_unix_s=now_unix_s + offset_s,
            shown_from_unix_s=now_unix_s + options.visibility_lag_s * draws.between(0.0, 0.9, "lag", *subject),
            runs_from_unix_s=now_unix_s + boot_s,
            deadline_unix_s=spec.deadline_unix_s,
            ignores=1 + int(draws.uniform("ignores", *subject) * 3) if draws.happens("stuck_delete", *subject) else 0,
            refuses=1 + int(draws.uniform("refuses", *subject) * 3) if draws.happens("delete_blocked", *subject) else 0,
            survives=draws.happens("surviving_disk", *subject),
            host_public_key=spec.host_public_key,
        )
        return self._with_death(server, subject)

    def _with_death(self, server: Thing, subject: tuple[object, ...]) -> Thing:
        """When the vendor itself will end it, if it will, and as what."""
        draws, now_unix_s = self.draws, self.now_unix_s
        deaths = []
        if draws.happens("create_fails_later", *subject):
            deaths.append((now_unix_s + 0.5 * (server.runs_from_unix_s - now_unix_s), "gone"))
        running_s = draws.between(30.0, 900.0, "dies", *subject)
        for fault, as_what in (("preempted", "gone"), ("stopped_by_vendor", "stopped")):
            if draws.happens(fault, *subject):
                deaths.append((server.runs_from_unix_s + running_s, as_what))
        # The guest's own timer stops the system; only where the vendor has a TTL does that end the bill.
        deaths.append((server.deadline_unix_s, "gone" if self.options.native_ttl else "stopped"))
        dies_unix_s, dies_as = min(deaths)
        ends_unix_s = dies_unix_s if dies_as == "gone" else NEVER
        return replace(server, dies_unix_s=dies_unix_s, dies_as=dies_as, ends_unix_s=ends_unix_s)

    def _make_sides(self, server: Thing) -> None:
        """Disk and address. They go with their server, unless they survive it."""
        sides = (("disk", DISK_USD_PER_HOUR), ("ip", IP_USD_PER_HOUR))
        for kind, usd_per_hour in sides:
            side = replace(
                server,
                id=_new_id(),
                kind=kind,
                token="",
                vcpus=0,
                parent=server.id,
                usd_per_hour=usd_per_hour,
                ends_unix_s=NEVER if server.survives else server.ends_unix_s,
                ignores=0,
                refuses=0,
            )
            self.state.add(side)

    def add_foreign(self, name: str, place: str) -> Thing:
        """A server with disk and address that somebody else made in the same account."""
        kind = catalog.server_type(catalog.default_names()[0])
        spec = CreateSpec(
            intent_id="",
            name=name,
            token="",
            server_type=kind.name,
            place=place,
            deadline_unix_s=NEVER,
            sweep_id="",
            server_run_id="",
            client_public_key="",
            host_private_key="",
            host_public_key="",
            tags={"owner": "somebody-else"},
        )
        calm = replace(self, draws=Draws(0))
        server = replace(calm._server(replace(spec, place=kind.places[0]), 0), place=place)
        self.state.add(server)
        self._make_sides(server)
        return server

    # ---- look ---------------------------------------------------------------------------------------

    def find(self, thing_id: str, name: str, place: str) -> Thing | None:
        """As a look-up answers: late to show what is new, at once in denying what is gone for a while."""
        candidates = [self.state.thing(thing_id)] if thing_id else self.state.of_name(name)
        now_unix_s = self.now_unix_s
        for thing in candidates:
            if thing is None or (not thing_id and thing.place != place) or now_unix_s < thing.shown_from_unix_s:
                continue
            if now_unix_s < thing.ends_unix_s + (TERMINATED_SHOWN_S if thing.kind == SERVER else 0.0):
                return thing
        return None

    def owned(self) -> list[Thing]:
        """As listings show it: late with what is new, and late with what is gone."""
        lag_s = self.options.visibility_lag_s
        return [
            thing
            for thing in self.state.existing(self.now_unix_s - lag_s)
            if thing.ours and thing.shown_from_unix_s <= self.now_unix_s
        ]

    def resource(self, thing: Thing, *, behind: bool = False) -> Resource:
        """behind: as a listing shows it, which does not know yet what has ended."""
        state = self.power_state(thing)
        if behind and state == "terminated":
            state = "stopping"
        return Resource(
            vendor=catalog.VENDOR,
            place=thing.place,
            name=thing.name,
            cloud_id=thing.id,
            kind=thing.kind,
            state=state,
            tags=dict(thing.tags),
            created_unix_s=thing.shown_created_unix_s,
            address=_address(thing.id) if state == "running" and thing.kind == SERVER else "",
            server_type=thing.server_type if thing.kind == SERVER else "",
            usd_per_hour=thing.usd_per_hour,
        )

    def power_state(self, thing: Thing) -> str:
        now_unix_s = self.now_unix_s
        if now_unix_s >= thing.ends_unix_s:
            return "terminated"
        if now_unix_s >= thing.deleting_unix_s:
            return "stopping"
        if thing.kind != SERVER:
            return "running"
        if now_unix_s >= thing.dies_unix_s:
            return "stopped"
        return "running" if now_unix_s >= thing.runs_from_unix_s else "pending"

    # ---- delete -------------------------------------------------------------------------------------

    def delete(self, thing: Thing) -> None:
        """Accept it, refuse it, or accept and ignore it. A second one while the first is under way is harmless."""
        if self.now_unix_s >= thing.deleting_unix_s or self.now_unix_s >= thing.ends_unix_s:
            return
        if thing.kind != SERVER and self._is_attached(thing):
            raise SimApiError("InUse")
        if thing.refuses > 0:
            self.state.change(thing.id, refuses=thing.refuses - 1)
            raise SimApiError("Locked")
        if thing.ignores > 0:
            self.state.change(thing.id, ignores=thing.ignores - 1)
            return
        takes_s = self.options.delete_s if thing.kind == SERVER else 0.25 * self.options.delete_s
        ends_unix_s = min(self.now_unix_s + takes_s, thing.ends_unix_s)
        for gone in [thing, *(c for c in self.state.children(thing.id) if not c.survives)]:
            if self.now_unix_s < gone.ends_unix_s:
                self.state.change(
                    gone.id, deleting_unix_s=self.now_unix_s, ends_unix_s=min(ends_unix_s, gone.ends_unix_s)
                )

    def _is_attached(self, side: Thing) -> bool:
        server = self.state.thing(side.parent) if side.parent else None
        return server is not None and self.now_unix_s < min(server.ends_unix_s, server.deleting_unix_s)

    # ---- money --------------------------------------------------------------------------------------

    def bill(self) -> Bill:
        """Of everything that is ours; a stopped server bills like a running one."""
        things = [thing for thing in self.state.all_things() if thing.ours]
        existing = [thing for thing in things if self.now_unix_s < thing.ends_unix_s]
        return Bill(
            total_usd=sum((self.billed_usd(thing) for thing in things), Decimal(0)),
            usd_per_hour=sum((thing.usd_per_hour for thing in existing), Decimal(0)),
            n_existing=len(existing),
        )

    def billed_usd(self, thing: Thing) -> Decimal:
        lifetime_s = min(self.now_unix_s, thing.ends_unix_s) - thing.created_unix_s
        options = self.options
        return billed_usd(thing.usd_per_hour, lifetime_s, options.billing_minimum_s, options.billing_increment_s)


def _new_id() -> str:
    return uuid.uuid4().hex


def _address(thing_id: str) -> str:
    """Of the block that is set aside for documentation."""
    return f"198.51.100.{int(thing_id[:6], 16) % 254 + 1}"
