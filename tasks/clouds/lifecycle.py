"""Creating a server: the same code for every vendor.

The order is what keeps the promise. Gate, then intent, then CREATING, each committed before anything is sent; then
the create; then LIVE. After each of these steps this process may die, and the reaper finds what it left: by the row,
by the tags, or by both. An answer that was lost is resolved before anything else is tried:

    create answered                    LIVE, wait until it runs, return it
    create provably refused            GONE at a cost of nothing; the next place, as far as the error's scope allows;
                                       a place without stock is not asked again for a while, by no server run
    rate limited                       wait and send the same again; never another place
    anything else                      look by name and by tag; send the same again where the vendor knows it again;
                                       adopt what is found, or give up with the row in DELETING for the reaper
    accepted, but it never ran         delete, next place
    stopped while it was rate limited  GONE at a cost of nothing: whatever was sent was refused
    interrupted at any other point     delete as far as it goes now; the reaper does the rest
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from tasks.clouds.accounts import account_of
from tasks.clouds.base import Classified, Cloud, CreateSpec, ErrorKind, KnowsCredentialsEnd, Resource, Scope
from tasks.clouds.deletion import LedgerPort, classify, delete_and_prove, prove_gone, request_delete, send_delete
from tasks.clouds.request import Draft, LiveServer, ServerRequest, places_left, region_of
from tasks.clouds.sending import DEFAULT_LIMITS, CreateLimits, RefusedError, UnsentError, send
from tasks.clouds.stock import note_stockout, places_to_ask
from tasks.clouds.tags import with_tags
from tasks.domain.errors import CapacityError, CleanupError, ConfigError, TokensweepError
from tasks.domain.lifecycle import (
    Intent,
    LedgerError,
    LedgerRow,
    ResourceState,
    StaleRowError,
    billed_usd,
    intent_id,
    server_name,
    token,
)
from tasks.domain.reaping import DEFAULT_RULES

__all__ = [
    "CreateCancelledError",
    "CreateLimits",
    "Draft",
    "LedgerPort",
    "LiveServer",
    "ServerRequest",
    "create_server",
    "delete_and_prove",
    "prove_gone",
    "region_of",
    "request_delete",
]

logger = logging.getLogger(__name__)

RUNNING = "running"
BOOT_POLL_SHARE, LONGEST_BOOT_POLL_S = 0.1, 10.0
"""Between two looks at a server that boots, of the time it has taken so far. A hundred that boot for minutes at once
would else ask twice as often as Azure answers a subscription."""
_STARTING = ("pending", RUNNING)
_VANISHED, _BOOT_TIMEOUT = "vanished", "boot_timeout"
_SAYS_NOTHING_OF_STOCK = (_VANISHED, _BOOT_TIMEOUT)


class CreateCancelledError(TokensweepError):
    """The server run was cancelled while its server was being created."""

    usual_reason = "cancelled"


def create_server(
    cloud: Cloud,
    ledger: LedgerPort,
    make_spec: Callable[[Draft], CreateSpec],
    request: ServerRequest,
    *,
    now: Callable[[], float],
    sleep: Callable[[float], None],
    limits: CreateLimits = DEFAULT_LIMITS,
    region_of: Callable[[str], str] = region_of,
    cancelled: Callable[[], bool] = lambda: False,
) -> LiveServer:
    """Create the server in the first place that has one, and return it when it runs and has an address.

    What an earlier try of the same server run left open is deleted first, so the run must be this process's own
    (`begin_run`). cancelled: asked between the steps, for
    callers that cannot interrupt this thread; then CreateCancelledError. Raises a ProviderError when no place has one
    (AmbiguousError when it cannot be told whether one exists), ConfigError when the gate is closed, BudgetError,
    LedgerError, CleanupError when the vendor does not take the delete of a server that did not start.
    """
    steps = _Steps(cloud, ledger, request, now, sleep, limits, cancelled)
    earlier = ledger.rows_of_run(request.server_run_id)
    for row in earlier:
        if row.state is not ResourceState.GONE:
            request_delete(cloud, ledger, row)
    places, refusals = places_to_ask(cloud, ledger, request, now())
    attempt = len(earlier)
    while places:
        steps.gate()
        try:
            return steps.create_in(places[0], attempt, make_spec)
        except RefusedError as refused:
            found = refused.found
            refusals.append(f"{places[0]}: {found.code or found.kind.value}: {found.message}")
            if found.scope in (Scope.VENDOR, Scope.SERVER_TYPE) or found.kind is ErrorKind.RATE_LIMITED:
                raise found.to_error(f"{cloud.vendor}: {request.server_type} in {places[0]}") from refused.__cause__
            left = places_left(places, found.scope, region_of)
            if found.kind is ErrorKind.CAPACITY and found.code not in _SAYS_NOTHING_OF_STOCK:
                note_stockout(cloud, ledger, request, [place for place in places if place not in left], found.code)
            places = left
            attempt += 1
    raise CapacityError(
        f"{cloud.vendor}: no place has {request.server_type}: {'; '.join(refusals) or 'none was given'}.",
        reason="no_place_left",
        next_step="Try again later, or allow more places.",
    )


@dataclass(frozen=True)
class _Steps:
    cloud: Cloud
    ledger: LedgerPort
    request: ServerRequest
    now: Callable[[], float]
    sleep: Callable[[float], None]
    limits: CreateLimits
    cancelled: Callable[[], bool]

    @cached_property
    def account(self) -> str:
        """Whose server it will be."""
        try:
            return account_of(self.cloud)
        except Exception as exc:
            subject = f"{self.cloud.vendor}: the account of the credentials cannot be told"
            raise classify(self.cloud, exc).to_error(subject) from exc

    def gate(self) -> None:
        """Fail closed. The ledger is proven writable and the money reserved by the intent itself."""
        self.check_may_send()
        until_unix_s = self.now() + DEFAULT_RULES.skew_s
        beat_unix_s = self.ledger.last_beat(self.cloud.vendor, until_unix_s, account=self.account)
        if beat_unix_s is None or self.now() - beat_unix_s > self.limits.heartbeat_s:
            ago = "never" if beat_unix_s is None else f"{self.now() - beat_unix_s:.0f} s ago"
            where = f"{self.cloud.vendor}, account {self.account}" if self.account else self.cloud.vendor
            raise ConfigError(
                f"{where}: nothing is created unless a reaper has passed within "
                f"{self.limits.heartbeat_s:.0f} s, and the last one passed {ago}.",
                reason="no_reaper",
                next_step="Start one, for example with `tokensweep reap`, and let it list every place.",
            )
        self.check_credentials()

    def check_credentials(self) -> None:
        """What is created must be deletable until the end, with time left for a reaper that comes late."""
        if not isinstance(self.cloud, KnowsCredentialsEnd):
            return
        subject = f"{self.cloud.vendor}: the credentials"
        try:
            end_unix_s = self.cloud.credentials_end_unix_s()
        except Exception as exc:
            raise classify(self.cloud, exc).to_error(f"{subject} cannot be checked") from exc
        if end_unix_s is None:
            return
        missing_s = self.request.deadline_unix_s + self.limits.overrun_s - end_unix_s
        if missing_s > 0:
            raise ConfigError(
                f"{subject} end in {max(0.0, end_unix_s - self.now()):.0f} s, {missing_s:.0f} s before the server "
                f"of {self.request.server_run_id} is certain to be deleted: nothing was created.",
                reason="credentials_end_too_soon",
                next_step="Renew them, or set a shorter deadline.",
            )

    def check_may_send(self) -> None:
        """Before every sending: rate limits may have been waited out until long after the deadline."""
        self.check_cancelled()
        if not self.request.deadline_unix_s > self.now():
            raise ConfigError(f"The deadline of {self.request.server_run_id} has passed: nothing was created.")

    def check_cancelled(self) -> None:
        if self.cancelled():
            raise CreateCancelledError(f"The server run {self.request.server_run_id} was cancelled.")

    def create_in(self, place: str, attempt: int, make_spec: Callable[[Draft], CreateSpec]) -> LiveServer:
        spec = self.spec(place, attempt, make_spec)
        row = self.ledger.intend(self.intent(spec, attempt), cap_usd=self.request.cap_usd)
        resource: Resource | None = None
        try:
            row = self.ledger.creating(row)
            resource = send(
                self.cloud,
                row,
                spec,
                now=self.now,
                sleep=self.sleep,
                limits=self.limits,
                check_may_send=self.check_may_send,
                check_cancelled=self.check_cancelled,
            )
            row = self.record_live(row, resource)
            resource = self.await_running(resource)
            row = self.record_live(row, resource)
        except RefusedError as refused:
            if resource is None:
                self.close_refused(row, refused.found)
            elif not request_delete(self.cloud, self.ledger, row):
                raise CleanupError(
                    f"{row.vendor}: {row.name} in {place} did not start ({refused}), and its delete was not taken.",
                    next_step="The reaper tries again; see it with `tokensweep leaks`.",
                ) from refused
            raise
        except UnsentError as unsent:
            self.close_refused(row, unsent.found)
            raise unsent.why from None
        except BaseException:
            self.abandon(row, resource)
            raise
        return LiveServer(row=row, resource=resource, spec=spec)

    def spec(self, place: str, attempt: int, make_spec: Callable[[Draft], CreateSpec]) -> CreateSpec:
        """The maker's spec with what must be ours put right, so that no maker can break identity or tags."""
        request = self.request
        identity = intent_id(request.server_run_id, attempt)
        draft = Draft(
            intent_id=identity,
            name=server_name(identity),
            token=token(identity, attempt, place),
            place=place,
            server_type=request.server_type,
            sweep_id=request.sweep_id,
            server_run_id=request.server_run_id,
            deadline_unix_s=request.deadline_unix_s,
        )
        spec = replace(make_spec(draft), **vars(draft))
        return with_tags(spec, ledger_id=self.ledger.ledger_id, controller=self.ledger.controller)

    def intent(self, spec: CreateSpec, attempt: int) -> Intent:
        traits, price = self.cloud.traits, self.request.usd_per_hour
        worst_case_s = spec.deadline_unix_s - self.now() + self.limits.overrun_s
        return Intent(
            intent_id=spec.intent_id,
            sweep_id=spec.sweep_id,
            server_run_id=spec.server_run_id,
            vendor=self.cloud.vendor,
            place=spec.place,
            name=spec.name,
            token=spec.token,
            server_type=spec.server_type,
            deadline_unix_s=spec.deadline_unix_s,
            usd_per_hour=price,
            reserved_usd=billed_usd(price, worst_case_s, traits.billing_minimum_s, traits.billing_increment_s),
            attempt=attempt,
            host_public_key=spec.host_public_key,
            billing_minimum_s=traits.billing_minimum_s,
            billing_increment_s=traits.billing_increment_s,
            price_basis=self.request.price_basis,
            account=self.account,
        )

    def close_refused(self, row: LedgerRow, found: Classified) -> None:
        """The vendor provably made nothing, whoever may have marked the row meanwhile. Unless a reaper has seen one
        after all: then it is deleted like any other."""
        proof = {"refused": found.code or found.kind.value, "message": found.message}
        while row.state is not ResourceState.GONE:
            if row.cloud_id:
                request_delete(self.cloud, self.ledger, row)
                return
            try:
                row = self.ledger.gone(row, proof)
            except StaleRowError:
                row = self.newest(row)

    def record_live(self, row: LedgerRow, resource: Resource) -> LedgerRow:
        """LIVE, unless somebody has marked the row for deletion meanwhile."""
        while True:
            try:
                return self.ledger.live(
                    row,
                    cloud_id=resource.cloud_id,
                    address=resource.address,
                    ssh_port=resource.ssh_port,
                    username=resource.username,
                )
            except StaleRowError:
                row = self.newest(row)
                if row.state in (ResourceState.DELETING, ResourceState.GONE):
                    raise CreateCancelledError(
                        f"{row.vendor}: {row.name} was marked for deletion while it was being created."
                    ) from None

    def newest(self, row: LedgerRow) -> LedgerRow:
        """The row as it is now. Raises LedgerError where there is none any more: the ledger was lost, or an old copy
        of it was put in its place."""
        newest = self.ledger.row(row.intent_id)
        if newest is None:
            raise LedgerError(
                f"The ledger no longer has the row of {row.name}, which it was given a moment ago.",
                reason="ledger_row_lost",
                next_step="The server is deleted. See whether the ledger was replaced while a sweep was running.",
            )
        return newest

    def await_running(self, resource: Resource) -> Resource:
        """Poll until it runs and has an address. Raises RefusedError when it will not, or not in time."""
        lag_s = self.cloud.traits.visibility_lag_s
        began_unix_s = last_seen_unix_s = self.now()
        give_up_unix_s = began_unix_s + self.limits.boot_s
        shown: Resource | None = resource
        while shown is None or shown.state != RUNNING or not shown.address:
            if shown is not None and shown.state not in _STARTING:
                raise RefusedError(_no_start(f"state_{shown.state}", f"it became {shown.state} instead of running"))
            wait_s = max(self.limits.poll_s, min((self.now() - began_unix_s) * BOOT_POLL_SHARE, LONGEST_BOOT_POLL_S))
            if shown is None and self.now() - last_seen_unix_s > lag_s + wait_s:
                raise RefusedError(_no_start(_VANISHED, "the vendor accepted it and then had none"))
            if self.now() > give_up_unix_s:
                raise RefusedError(_no_start(_BOOT_TIMEOUT, f"it did not run within {self.limits.boot_s:.0f} s"))
            self.sleep(wait_s)
            self.check_cancelled()
            try:
                shown = self.cloud.get(resource.ref())
            except Exception as exc:
                found = classify(self.cloud, exc)
                if found.kind is ErrorKind.AUTH:
                    raise found.to_error(f"{self.cloud.vendor}: waiting for {resource.name} to run") from exc
                continue
            if shown is not None:
                last_seen_unix_s = self.now()
        return shown

    def abandon(self, row: LedgerRow, resource: Resource | None) -> None:
        """This process will not use it. Delete what can be deleted now, whatever fails at that."""
        newest = row
        try:
            newest = self.ledger.row(row.intent_id) or row
            if resource is not None and not newest.cloud_id and newest.state is not ResourceState.GONE:
                newest = self.ledger.identify(newest, resource.cloud_id)
            request_delete(self.cloud, self.ledger, newest)
        except Exception:
            logger.exception("%s: %s could not be marked for deletion", row.vendor, row.name)
        if resource is not None and (newest.state is ResourceState.GONE or newest.cloud_id != resource.cloud_id):
            send_delete(self.cloud, self.ledger, newest, resource)


def _no_start(code: str, message: str) -> Classified:
    return Classified(kind=ErrorKind.CAPACITY, scope=Scope.ZONE, may_exist=True, code=code, message=message)
