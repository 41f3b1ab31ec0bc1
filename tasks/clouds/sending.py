"""Sending one create until it is known what became of it.

An exception does not say that nothing was made: a response can be lost after the vendor has acted. Until that is
resolved nothing else may be tried, or one server becomes two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from tasks.clouds.base import Classified, Cloud, CreateSpec, ErrorKind, Resource, Scope
from tasks.clouds.deletion import classify, list_owned, look_up, remains_of
from tasks.domain.errors import AmbiguousError, TokensweepError
from tasks.domain.lifecycle import LedgerRow
from tasks.domain.reaping import SERVER


@dataclass(frozen=True, kw_only=True)
class CreateLimits:
    """Patience, in seconds.

    heartbeat_s: the oldest pass of a reaper with which a create is allowed. overrun_s: how long after its deadline a
    server may live until a reaper comes by, for the reservation. throttled_s: waiting out rate limits. resolve_s:
    looking for a server whose create was not answered, beside twice the vendor's listing lag. boot_s: from accepted
    to running with an address. poll_s: the first wait of each; longest_wait_s: where doubling it ends.
    """

    heartbeat_s: float = 900.0
    overrun_s: float = 300.0
    throttled_s: float = 900.0
    resolve_s: float = 120.0
    boot_s: float = 600.0
    poll_s: float = 2.0
    longest_wait_s: float = 60.0


DEFAULT_LIMITS = CreateLimits()


_SAYS_NONE_WAS_MADE = (ErrorKind.CAPACITY, ErrorKind.QUOTA, ErrorKind.UNSUPPORTED)
"""Answers that come after a vendor has looked for an earlier create. Bad credentials, say, come before it."""


class RefusedError(Exception):
    """The vendor has no server of this create that could be used; what it said decides where to go on."""

    def __init__(self, found: Classified) -> None:
        super().__init__(found.message)
        self.found = found


class UnsentError(Exception):
    """The run was stopped while nothing of its create existed: before it was sent, or after every answer to it was a
    refusal. `why`: what stopped it."""

    def __init__(self, why: TokensweepError) -> None:
        super().__init__(str(why))
        self.why = why
        self.found = Classified(
            kind=ErrorKind.UNKNOWN, scope=Scope.VENDOR, may_exist=False, code=why.reason, message=why.message
        )


def send(
    cloud: Cloud,
    row: LedgerRow,
    spec: CreateSpec,
    *,
    now: Callable[[], float],
    sleep: Callable[[float], None],
    limits: CreateLimits,
    check_may_send: Callable[[], None],
    check_cancelled: Callable[[], None],
) -> Resource:
    """Send the create, and return what it made.

    Waits and sends the same again while it is rate limited. Raises RefusedError when the vendor provably made
    nothing, UnsentError for what check_may_send raises, AmbiguousError when it cannot be told what was made, and,
    while that is being found out, what check_cancelled raises.
    """
    give_up_unix_s = now() + limits.throttled_s
    for wait_s in waits(spec.token, limits):
        try:
            check_may_send()
        except TokensweepError as why:
            raise UnsentError(why) from why
        try:
            return cloud.create(spec)
        except Exception as exc:
            found = classify(cloud, exc)
            if found.may_exist or found.kind is ErrorKind.EXISTS:
                return _Search(cloud, row, spec, now).resolve(found, sleep, limits, check_cancelled)
            wait_s = max(wait_s, retry_after_s(exc, now()))
            if found.kind is not ErrorKind.RATE_LIMITED or now() + wait_s > give_up_unix_s:
                raise RefusedError(found) from exc
        sleep(wait_s)
    raise AssertionError("the waits never end")


def retry_after_s(exc: BaseException, now_unix_s: float) -> float:
    """How long the vendor asks us to wait: the answer's Retry-After (RFC 9110 §10.2.3), wherever an SDK keeps its
    headers; 0 where it says nothing that can be read."""
    response = getattr(exc, "response", None)
    headers = getattr(response, "headers", None) or getattr(exc, "headers", None)
    if isinstance(response, Mapping):  # botocore
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
    if not isinstance(headers, Mapping):
        return 0.0
    text = next((str(value) for name, value in headers.items() if str(name).lower() == "retry-after"), "")
    try:
        seconds = float(text) if text.strip().isdigit() else parsedate_to_datetime(text).timestamp() - now_unix_s
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, seconds)


def waits(seed: str, limits: CreateLimits) -> Iterator[float]:
    """Doubling waits, spread by a hex seed so that many servers do not ask in step."""
    spread = 0.5 + int(seed[:4], 16) / 0xFFFF
    wait_s = limits.poll_s
    while True:
        yield min(wait_s * spread, limits.longest_wait_s)
        wait_s = min(wait_s * 2, limits.longest_wait_s)


@dataclass(frozen=True)
class _Search:
    cloud: Cloud
    row: LedgerRow
    spec: CreateSpec
    now: Callable[[], float]

    def resolve(
        self,
        first: Classified,
        sleep: Callable[[float], None],
        limits: CreateLimits,
        check_cancelled: Callable[[], None],
    ) -> Resource:
        """Find what an unanswered create has made.

        Where the vendor recognises a create by its token or its unique name, the same is sent again: the answer is
        the server, or a refusal, which with absence from two complete listings proves that there is none.
        """
        traits, row = self.cloud.traits, self.row
        give_up_unix_s = self.now() + limits.resolve_s + 2 * traits.visibility_lag_s
        absent_since_unix_s: float | None = None
        for wait_s in waits(self.spec.token, limits):
            found, absent_unix_s = self.look()
            refused: Classified | None = None
            if found is None and (traits.idempotency_token or traits.unique_names):
                found, refused = self.send_again()
            if found is not None:
                return found
            if refused is None or absent_unix_s is None:
                absent_since_unix_s = None
            elif absent_since_unix_s is None:
                absent_since_unix_s = absent_unix_s
            elif absent_unix_s - absent_since_unix_s >= traits.visibility_lag_s:
                raise RefusedError(refused)
            if self.now() > give_up_unix_s:
                break
            sleep(wait_s)
            check_cancelled()
        raise AmbiguousError(
            f"{row.vendor}: the create of {row.name} in {row.place} was not answered ({first.code}: {first.message}), "
            "and whether it made a server could not be told.",
            next_step="It is marked for deletion; the reaper looks for it until its deadline.",
        )

    def look(self) -> tuple[Resource | None, float | None]:
        """The server by name and by tag; without one, when the complete listing without it began."""
        try:
            by_name = look_up(self.cloud, self.row)
        except Exception as exc:
            if classify(self.cloud, exc).kind is not ErrorKind.NOT_FOUND:
                return None, None
            by_name = None
        if by_name is not None:
            return by_name, None
        listing = list_owned(self.cloud, self.now)
        servers = [r for r in remains_of(self.row, listing) if r.kind == SERVER]
        if servers:
            return min(servers, key=lambda r: (r.created_unix_s, r.cloud_id)), None
        return None, listing.read_unix_s if listing.complete else None

    def send_again(self) -> tuple[Resource | None, Classified | None]:
        try:
            return self.cloud.create(self.spec), None
        except Exception as exc:
            again = classify(self.cloud, exc)
            return None, again if again.kind in _SAYS_NONE_WAS_MADE and not again.may_exist else None
