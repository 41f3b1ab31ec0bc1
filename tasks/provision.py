"""Create a server, reach it over SSH, and end it. Blocking code that runs beside the event loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from tasks.clouds.base import Cloud, CreateSpec, Ref, ServerType
from tasks.clouds.clock import WALL, Clock
from tasks.clouds.deletion import delete_and_prove, request_delete, send_delete
from tasks.clouds.lifecycle import create_server
from tasks.clouds.request import Draft, LiveServer, ServerRequest
from tasks.domain.errors import CleanupError, ServerGoneError
from tasks.domain.lifecycle import LedgerError, LedgerRow, ResourceState
from tasks.domain.money import billed_apart_usd_per_hour
from tasks.remote.keys import KeyPair, new_client_key, new_host_key
from tasks.remote.session import Session
from tasks.remote.ssh import Endpoint, connect
from tasks.threads import in_thread
from tasks.wiring import Services

logger = logging.getLogger(__name__)

# What `finally` waits for the proof; after that it is the reaper's. A vendor whose listings are further behind than
# that cannot prove anything meanwhile, so there nothing is waited for.
PROOF_WAIT_S = 10.0


class Cancelled(Exception):
    """This server run was told to end."""


GPU_ANSWERS_S = 300.0
"""With several GPUs firmware and drivers take longer than elsewhere; nobody publishes for how long."""


@dataclass
class ServerKeys:
    """Ephemeral keys of one server: never on this machine's disk, never used twice."""

    host: KeyPair = field(default_factory=new_host_key)
    client: KeyPair = field(default_factory=new_client_key)


@dataclass(frozen=True)
class Order:
    """What is to be created for one server run.

    places: where, in this order; empty for every place that sells it. usd_per_hour: the highest price of these places,
    which is what money is reserved for, with what the vendor bills for disk and address beside it. disk_bytes: the
    boot disk, 0 for the vendor's smallest.
    """

    sweep_id: str
    server_run_id: str
    server_type: ServerType
    deadline_unix_s: float
    cap_usd: Decimal
    usd_per_hour: Decimal
    places: tuple[str, ...] = ()
    disk_bytes: int = 0
    spot: bool = False


async def create(order: Order, services: Services, keys: ServerKeys, cancel: threading.Event) -> LiveServer:
    """Create the server in the first place that has one; see clouds/lifecycle.py for what may be raised."""
    return await in_thread(_create, order, services, keys, cancel, on_cancel=cancel.set)


def _create(order: Order, services: Services, keys: ServerKeys, cancel: threading.Event) -> LiveServer:
    kind = order.server_type
    cloud, clock = services.cloud(kind.vendor), services.clock(kind.vendor)

    def make_spec(draft: Draft) -> CreateSpec:
        return CreateSpec(
            intent_id=draft.intent_id,
            name=draft.name,
            token=draft.token,
            server_type=draft.server_type,
            place=draft.place,
            deadline_unix_s=draft.deadline_unix_s,
            sweep_id=draft.sweep_id,
            server_run_id=draft.server_run_id,
            client_public_key=keys.client.public,
            host_private_key=keys.host.private,
            host_public_key=keys.host.public,
            disk_bytes=order.disk_bytes,
            arch=kind.arch,
            gpus=kind.gpus,
            spot=order.spot,
            ssh_sources=services.settings.ssh_source_networks,
        )

    def pause(seconds: float) -> None:
        cancel.wait(clock.real_s(seconds))

    apart_usd_per_hour = billed_apart_usd_per_hour(kind.vendor, order.disk_bytes)
    request = ServerRequest(
        sweep_id=order.sweep_id,
        server_run_id=order.server_run_id,
        server_type=kind.name,
        places=order.places or kind.places,
        deadline_unix_s=order.deadline_unix_s,
        usd_per_hour=order.usd_per_hour + apart_usd_per_hour,
        cap_usd=order.cap_usd,
        price_basis=f"{apart_usd_per_hour:f} USD of it for disk and address" if apart_usd_per_hour else "",
        spot=order.spot,
    )
    ledger = services.ledger_of(kind.vendor)
    return create_server(cloud, ledger, make_spec, request, now=clock.now, sleep=pause, cancelled=cancel.is_set)


ENDED = ("stopping", "stopped", "terminated")
ASK_EVERY_S = 5.0
BARE_METAL_ANSWERS_S = 1500.0
"""Its firmware looks at all of the hardware first, for as long as 20 minutes after EC2 has called it running:
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/general-purpose-instances.html."""


@dataclass
class VendorWatch:
    """Asks the vendor whether a server that does not answer still runs: waiting for one that was preempted is waste.

    A state that has ended is believed at once. That there is no such server may be wrong, above all just after the
    create, so it takes two looks in a row, the vendor's visibility lag apart: by then a create would show everywhere.
    """

    cloud: Cloud
    ref: Ref
    clock: Clock
    _asked_unix_s: float = 0.0
    _absent_since_unix_s: float | None = None

    def check(self) -> None:
        """Raises ServerGoneError. A vendor that cannot be asked proves nothing."""
        now_unix_s = self.clock.now()
        if now_unix_s - self._asked_unix_s < ASK_EVERY_S:
            return
        self._asked_unix_s = now_unix_s
        try:
            shown = self.cloud.get(self.ref)
        except Exception as exc:
            logger.warning("%s: whether %s still runs is not known: %s", self.ref.vendor, self.ref.name, exc)
            return
        if shown is not None:
            self._absent_since_unix_s = None
            if shown.state in ENDED:
                raise self._gone(shown.state)
        elif self._absent_since_unix_s is None:
            self._absent_since_unix_s = now_unix_s
        elif now_unix_s - self._absent_since_unix_s >= self.cloud.traits.visibility_lag_s:
            raise self._gone("gone")

    def _gone(self, state: str) -> ServerGoneError:
        return ServerGoneError(
            f"{self.ref.vendor}: {self.ref.name} no longer answers, and the vendor says that it is {state}.",
            reason="server_gone",
            next_step="What it had measured is kept; start the sweep again for the rest.",
        )


@dataclass(frozen=True)
class Reach:
    """How to reach one server over SSH, as often as it takes."""

    endpoint: Endpoint
    timeout_s: float
    cancel: threading.Event
    watch: VendorWatch | None = None

    def connect(self) -> Session:
        """Raises HostKeyMismatchError, UnreachableError, ServerGoneError, or Cancelled as soon as the run is told to
        end."""
        return connect(self.endpoint, timeout_s=self.timeout_s, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        """Between two tries."""
        sleeper(WALL, self.cancel)(seconds)
        if self.watch is not None:
            self.watch.check()


def sleeper(clock: Clock, cancel: threading.Event) -> Callable[[float], None]:
    """Sleeps by that clock, and raises Cancelled as soon as the run is told to end."""

    def sleep(seconds: float) -> None:
        if cancel.wait(clock.real_s(seconds)):
            raise Cancelled

    return sleep


def reach(server: LiveServer, keys: ServerKeys, services: Services, cancel: threading.Event) -> Reach:
    endpoint = Endpoint(
        address=server.resource.address,
        port=server.resource.ssh_port,
        username=server.resource.username,
        host_public_key=keys.host.public,
        client_private_key=keys.client.private,
    )
    vendor = server.row.vendor
    watch = VendorWatch(services.cloud(vendor), server.resource.ref(), services.clock(vendor))
    return Reach(endpoint, patience_s(server.spec, services.settings.connect_timeout_s), cancel, watch)


def patience_s(spec: CreateSpec, usual_s: float) -> float:
    """How long a server that runs may take until it answers."""
    at_least_s = BARE_METAL_ANSWERS_S if "metal" in spec.server_type.lower() else GPU_ANSWERS_S if spec.gpus else 0.0
    return max(usual_s, at_least_s)


async def tear_down(server_run_id: str, services: Services) -> tuple[LedgerRow, ...]:
    """End every resource of the run and prove it if that takes seconds; what stays open is the reaper's."""
    return await in_thread(tear_down_now, server_run_id, services)


def tear_down_now(server_run_id: str, services: Services, live: LedgerRow | None = None) -> tuple[LedgerRow, ...]:
    """Works from the ledger, so it does not matter how far the run came. Every delete is sent before any proof is
    waited for. What is not proven in time stays open in the ledger, and the reaper goes on. Raises CleanupError at
    the end if a vendor did not take a delete, LedgerError if that could not be recorded.

    live: the server that the caller has used. It is ended although the ledger cannot be read, or no longer knows it:
    to the reaper it is in use as long as this process lives, until its deadline.
    """
    ledger = services.ledger
    failure: LedgerError | None = None
    try:
        rows = ledger.rows_of_run(server_run_id)
    except LedgerError as exc:
        rows, failure = (), exc
    unrecorded = live if live is not None and all(row.intent_id != live.intent_id for row in rows) else None
    if unrecorded and send_delete(services.cloud(unrecorded.vendor), services.ledger_of(unrecorded.vendor), unrecorded):
        unrecorded = None
    open_rows = [r for r in rows if r.state is not ResourceState.GONE]
    taken: dict[str, bool] = {}
    for row in open_rows:
        try:
            taken[row.intent_id] = request_delete(services.cloud(row.vendor), services.ledger_of(row.vendor), row)
        except LedgerError as exc:  # the delete was sent all the same
            failure = exc
    if failure is not None:
        raise failure
    for row in open_rows:
        if services.cloud(row.vendor).traits.visibility_lag_s < PROOF_WAIT_S:
            _prove(row, services)
    rows = ledger.rows_of_run(server_run_id)
    refused = [row for row in rows if row.state is not ResourceState.GONE and not taken.get(row.intent_id, True)]
    refused += [unrecorded] if unrecorded else []
    if refused:
        raise CleanupError(
            f"{refused[0].vendor}: the delete of {refused[0].name} was not taken: {refused[0].last_error}",
            reason="delete_not_taken",
            next_step="The reaper tries again; see it with `tokensweep leaks`.",
        )
    return rows


def _prove(row: LedgerRow, services: Services) -> None:
    clock = services.clock(row.vendor)
    try:
        delete_and_prove(
            services.cloud(row.vendor),
            services.ledger_of(row.vendor),
            row,
            now=clock.now,
            sleep=clock.sleep,
            timeout_s=PROOF_WAIT_S,
            poll_s=0.2,
        )
    except CleanupError as exc:
        logger.warning("%s", exc)
