"""The simulated vendor behind the same protocol as every other: what a call does, and how it may fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from tasks.clouds.base import Classified, CreateSpec, Listing, Ref, Resource, ServerType, Traits
from tasks.clouds.clock import Clock
from tasks.clouds.hosts import SIMULATED, Host
from tasks.clouds.request import region_of
from tasks.clouds.sim import catalog
from tasks.clouds.sim.clock import SimClock
from tasks.clouds.sim.draws import Draws
from tasks.clouds.sim.errors import SimApiError, bad_gateway, classify, connection_lost
from tasks.clouds.sim.host import SimHost
from tasks.clouds.sim.model import Bill, Model
from tasks.clouds.sim.options import SimOptions, parse_options
from tasks.clouds.sim.state import SimState, Thing

T = TypeVar("T")
OPTIONS = "options"
BUCKET = "bucket"
BORN = "born"
STATE_FILE = "sim.sqlite"
WINDOW_S = 120.0


def _traits(options: SimOptions) -> Traits:
    return Traits(
        stopped_bills=True,
        billing_minimum_s=options.billing_minimum_s,
        billing_increment_s=options.billing_increment_s,
        unique_names=options.unique_names,
        idempotency_token=options.idempotency_token,
        native_ttl=options.native_ttl,
        visibility_lag_s=options.visibility_lag_s,
    )


class SimCloud:
    """One simulated account. Its folder is opened, and made, by the first call that needs it; a folder that is there
    keeps its own options until `configure` sets others. hook: told of every call before and after its effect, and may
    raise in its place."""

    vendor = catalog.VENDOR
    isolation = SIMULATED
    weights = SIMULATED
    traits = _traits(SimOptions())

    def __init__(
        self,
        folder: Path,
        options: SimOptions | None = None,
        *,
        clock: Clock | None = None,
        hook: Callable[[str, bool], None] = lambda operation, done: None,
    ) -> None:
        self.folder, self._base = folder, options or SimOptions()
        self._clock, self._hook = clock, hook
        self._opening = Lock()
        self._options, self._text = self._base, ""
        self.traits = _traits(self._base)

    @property
    def state(self) -> SimState:
        return self._opened[0]

    @property
    def clock(self) -> Clock:
        return self._clock or self._opened[1]

    @property
    def options(self) -> SimOptions:
        """As they are now, whichever process has set them."""
        text = self.state.text(OPTIONS)
        if text != self._text:
            self._options, self._text = parse_options(json.loads(text)), text
            self.traits = _traits(self._options)
        return self._options

    @property
    def _opened(self) -> tuple[SimState, SimClock]:
        if self._parts is None:
            with self._opening:
                if self._parts is None:
                    state = SimState(self.folder / STATE_FILE)
                    clock = SimClock(state, self._base.speedup)
                    with state.transaction():
                        if not state.text(OPTIONS):
                            state.put_value(OPTIONS, self._base.to_dict())
                            state.put_value(BORN, (self._clock or clock).now())
                    self._parts = (state, clock)
        return self._parts

    _parts: tuple[SimState, SimClock] | None = None

    def check_options(self, options: dict[str, Any]) -> None:
        """Raises ConfigError for an option or a value that there is not. Changes nothing."""
        self._base.with_changes(options)

    def configure(self, options: dict[str, Any]) -> None:
        """Put a preset's options on top of those that this object was made with; for all processes. Raises ConfigError,
        also where the clock's speed would change while servers exist."""
        wanted = self._base.with_changes(options)
        state, clock = self._opened
        if self._clock is None:
            clock.set_speedup(wanted.speedup)
        with state.transaction():
            state.put_value(OPTIONS, wanted.to_dict())
        self.traits = _traits(wanted)

    # ---- what is sold -------------------------------------------------------------------------------

    def catalog(self) -> Sequence[ServerType]:
        return [catalog.server_type(name) for name in catalog.all_names()]

    def server_type(self, name: str) -> ServerType:
        return catalog.server_type(name)

    def default_server_types(self) -> Sequence[str]:
        return catalog.default_names()

    # ---- calls --------------------------------------------------------------------------------------

    def create(self, spec: CreateSpec) -> Resource:
        def act(model: Model, n_call: int) -> Resource:
            return model.resource(model.create(spec, n_call))

        return self._call("create", spec.server_type, spec.place, act)

    def get(self, ref: Ref) -> Resource | None:
        def act(model: Model, n_call: int) -> Resource | None:
            found = model.find(ref.cloud_id, ref.name, ref.place)
            if found is None or model.draws.happens("not_found_lie", found.server_type, n_call):
                return None
            return model.resource(found)

        return self._call("get", self._subject(ref), ref.place, act)

    def list_owned(self) -> Listing:
        began_unix_s = self.clock.now()
        problems: dict[str, str] = {}
        for region in catalog.REGIONS:
            try:
                self._hook(f"list {region}", False)
            except Exception as exc:
                problems[region] = f"{region}: {classify(exc).message}"
        with self.state.transaction():
            model, n_call = self._model(), self.state.count("", "list")
            problems |= self._listing_troubles(model, n_call)
            shown = [model.resource(thing, behind=True) for thing in model.owned()]
        answered = [region for region in catalog.REGIONS if region not in problems]
        self._hook("list", True)
        return Listing(
            vendor=self.vendor,
            resources=tuple(r for r in shown if region_of(r.place) not in problems),
            complete=not problems,
            read_unix_s=began_unix_s,
            places=tuple(f"{region}{zone}" for region in answered for zone in catalog.ZONES),
            problems=tuple(problems.values()),
        )

    def delete(self, ref: Ref) -> None:
        def act(model: Model, n_call: int) -> None:
            thing = self.state.thing(ref.cloud_id) if ref.cloud_id else model.find("", ref.name, ref.place)
            if thing is not None:
                model.delete(thing)

        self._call("delete", self._subject(ref), ref.place, act)

    def classify(self, exc: BaseException) -> Classified:
        return classify(exc)

    def host(
        self,
        server: Resource,
        *,
        host_public_key: str,
        connect_timeout_s: float,
        give_up_s: float,
        sleep: Callable[[float], None],
    ) -> Host:
        """How a server run uses the server; see `tasks/clouds/hosts.py`."""
        return SimHost(
            self,
            server.cloud_id,
            host_public_key,
            connect_timeout_s=connect_timeout_s,
            give_up_s=give_up_s,
            sleep=sleep,
        )

    # ---- what really is -----------------------------------------------------------------------------

    def existing(self) -> list[Thing]:
        """All that exists and may bill, ours and foreign, whatever the API shows."""
        return self.state.existing(self.clock.now())

    def is_running(self, server: Thing) -> bool:
        return self._model().power_state(server) == "running"

    def bill(self) -> Bill:
        """The meter: of everything that is ours."""
        return self._model().bill()

    def add_foreign(self, name: str, place: str = "north-1a") -> Thing:
        with self.state.transaction():
            return self._model().add_foreign(name, place)

    def draws(self) -> Draws:
        options = self.options
        return Draws(options.seed, options.faults)

    def close(self) -> None:
        """Let go of the file; nothing ends by that."""
        if self._parts is not None:
            self.state.close()

    # ---- how calls fail -----------------------------------------------------------------------------

    def _model(self) -> Model:
        options = self.options
        born_unix_s = float(self.state.value(BORN))
        return Model(self.state, options, Draws(options.seed, options.faults), self.clock.now(), born_unix_s)

    def _subject(self, ref: Ref) -> str:
        """What a call's number is counted for: the server type, which is the same in a repeated sweep."""
        thing = self.state.thing(ref.cloud_id) if ref.cloud_id else None
        return "" if thing is None else thing.server_type

    def _call(self, operation: str, subject: str, place: str, act: Callable[[Model, int], T]) -> T:
        self._hook(operation, False)
        with self.state.transaction():
            n_call = self.state.count(subject, operation)
            model = self._model()
            self._fail_before(model, operation, subject, n_call, place)
            result = act(model, n_call)
        self._hook(operation, True)
        if model.draws.happens("lost_response", subject, operation, n_call):
            connection_lost(operation)
        if _gateway(model, subject, operation, n_call) == "after":
            bad_gateway()
        return result

    def _fail_before(self, model: Model, operation: str, subject: str, n_call: int, place: str) -> None:
        if _outage(model) == region_of(place):
            raise TimeoutError(f"{operation}: {region_of(place)} does not answer")
        if _expired(model):
            raise SimApiError("ExpiredToken")
        if self._over_the_rate(model) or model.draws.happens("throttled", subject, operation, n_call):
            raise SimApiError("TooManyRequests")
        if model.draws.happens("lost_request", subject, operation, n_call):
            connection_lost(operation)
        if _gateway(model, subject, operation, n_call) == "before":
            bad_gateway()

    def _over_the_rate(self, model: Model) -> bool:
        """A token bucket that holds ten seconds' worth."""
        rate = model.options.requests_per_s
        if not rate:
            return False
        left, at_unix_s = self.state.value(BUCKET) or (10.0 * rate, model.now_unix_s)
        left = min(10.0 * rate, left + max(0.0, model.now_unix_s - at_unix_s) * rate)
        self.state.put_value(BUCKET, [max(left - 1.0, 0.0), model.now_unix_s])
        return bool(left < 1.0)

    def _listing_troubles(self, model: Model, n_call: int) -> dict[str, str]:
        """By region that did not answer, why."""
        if _expired(model):
            return {region: f"{region}: {SimApiError('ExpiredToken')}" for region in catalog.REGIONS}
        troubles: dict[str, str] = {}
        if down := _outage(model):
            troubles[down] = f"{down}: does not answer"
        for fault in ("throttled", "lost_request", "bad_gateway"):
            if model.draws.happens(fault, "", "list", n_call):
                region = _one_of_the_regions(model, fault, n_call)
                troubles[region] = f"{region}: {fault.replace('_', ' ')}"
        return troubles


def _one_of_the_regions(model: Model, *key: object) -> str:
    return catalog.REGIONS[int(model.draws.uniform("region", *key) * len(catalog.REGIONS))]


def _outage(model: Model) -> str:
    """The region that does not answer now, "" for none."""
    window = model.window(WINDOW_S)
    return _one_of_the_regions(model, window) if model.draws.happens("region_outage", window) else ""


def _expired(model: Model) -> bool:
    return model.draws.happens("credentials_expired", model.window(WINDOW_S))


def _gateway(model: Model, subject: str, operation: str, n_call: int) -> str:
    """Whether a gateway spoils this call, and when."""
    key = (subject, operation, n_call)
    if not model.draws.happens("bad_gateway", *key):
        return ""
    return "after" if model.draws.uniform("gateway", *key) < 0.5 else "before"
