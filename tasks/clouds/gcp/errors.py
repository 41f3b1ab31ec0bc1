"""What the errors of Google's SDK mean: one table of codes, whichever of Google's places a code comes from.

A call that is refused at once says `error.errors[].reason` (camel case), newer services also an ErrorInfo (capitals)
in `error.details`. A call that was accepted and failed later says `operation.error.errors[].code` (capitals). Sources:
docs.cloud.google.com/compute/docs/troubleshooting/troubleshooting-vm-creation, …/compute/docs/reference/rest/v1/errors,
…/compute/docs/api/rate-limits, and codes seen by others who create servers in bulk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import DefaultCredentialsError, MalformedError, RefreshError

from tasks.clouds.base import NO_CODE, Classified, ErrorKind, Scope, http_code, text_of
from tasks.domain.errors import ConfigError

_MAX_MESSAGE_CHARS = 400


class OperationFailedError(Exception):
    """An operation that the vendor had accepted ended with errors. failures: code and message of each."""

    def __init__(self, operation: str, failures: Sequence[tuple[str, str]]) -> None:
        super().__init__(f"{operation}: {'; '.join(f'{code}: {message}' for code, message in failures)}")
        self.failures = tuple(failures)


class NotReadyError(Exception):
    """There is nothing yet that could be deleted, and there will be."""


@dataclass(frozen=True)
class Meaning:
    kind: ErrorKind
    scope: Scope
    may_exist: bool = False


_STOCKOUT = Meaning(ErrorKind.CAPACITY, Scope.ZONE)
_STOCKOUT_OF_REGION = Meaning(ErrorKind.CAPACITY, Scope.REGION)
_QUOTA = Meaning(ErrorKind.QUOTA, Scope.REGION)
_THROTTLED = Meaning(ErrorKind.RATE_LIMITED, Scope.VENDOR)
_AUTH = Meaning(ErrorKind.AUTH, Scope.VENDOR)
_NOT_HERE = Meaning(ErrorKind.UNSUPPORTED, Scope.ZONE)
_NOT_IN_REGION = Meaning(ErrorKind.UNSUPPORTED, Scope.REGION)
_NEVER = Meaning(ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE)
_NEVER_HERE = Meaning(ErrorKind.UNSUPPORTED, Scope.VENDOR)
_EXISTS = Meaning(ErrorKind.EXISTS, Scope.ZONE, may_exist=True)
_NOT_FOUND = Meaning(ErrorKind.NOT_FOUND, Scope.ZONE)
_BLOCKED = Meaning(ErrorKind.DELETE_BLOCKED, Scope.ZONE)
_UNKNOWN = Meaning(ErrorKind.UNKNOWN, Scope.ZONE, may_exist=True)

MEANINGS: dict[str, Meaning] = {
    # None left. It comes in the operation, after the insert itself was answered with 200.
    "ZONE_RESOURCE_POOL_EXHAUSTED": _STOCKOUT,
    "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS": _STOCKOUT,
    "RESOURCE_POOL_EXHAUSTED": _STOCKOUT,
    "resourcePoolExhausted": _STOCKOUT,
    "insufficientCapacity": _STOCKOUT,
    "VM_MIN_COUNT_NOT_REACHED": _STOCKOUT,
    "UNSUPPORTED_OPERATION": _STOCKOUT,  # a spot server that was preempted while it was being created
    "REGION_RESOURCE_POOL_EXHAUSTED": _STOCKOUT_OF_REGION,
    "REGION_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS": _STOCKOUT_OF_REGION,
    # The project's limit.
    "QUOTA_EXCEEDED": _QUOTA,
    "quotaExceeded": _QUOTA,
    "LIMIT_EXCEEDED": _QUOTA,
    "limitExceeded": _QUOTA,
    # Too many calls: 403 as well as 429.
    "rateLimitExceeded": _THROTTLED,
    "userRateLimitExceeded": _THROTTLED,
    "concurrentLimitExceeded": _THROTTLED,
    "RATE_LIMIT_EXCEEDED": _THROTTLED,
    "RESOURCE_EXHAUSTED": _THROTTLED,
    "RESOURCE_OPERATION_RATE_EXCEEDED": _THROTTLED,
    "resourceOperationRateExceeded": _THROTTLED,
    # Credentials, permissions, billing account.
    "authError": _AUTH,
    "required": _AUTH,
    "forbidden": _AUTH,
    "insufficientPermissions": _AUTH,
    "accessNotConfigured": _AUTH,
    "accountDisabled": _AUTH,
    "PERMISSIONS_ERROR": _AUTH,
    "IAM_PERMISSION_DENIED": _AUTH,
    "ACCESS_TOKEN_EXPIRED": _AUTH,
    "ACCESS_TOKEN_SCOPE_INSUFFICIENT": _AUTH,
    "ACCESS_TOKEN_TYPE_UNSUPPORTED": _AUTH,
    "ACCOUNT_STATE_INVALID": _AUTH,
    "API_KEY_INVALID": _AUTH,
    "CREDENTIALS_MISSING": _AUTH,
    "CONSUMER_INVALID": _AUTH,
    "CONSUMER_SUSPENDED": _AUTH,
    "USER_PROJECT_DENIED": _AUTH,
    "SERVICE_DISABLED": _AUTH,
    "BILLING_DISABLED": _AUTH,
    "billingNotEnabled": _AUTH,
    # What cannot be had.
    "invalid": _NEVER,
    "badRequest": _NEVER,
    "invalidParameter": _NEVER,
    "INVALID_FIELD_VALUE": _NEVER,
    "INVALID_USAGE": _NEVER,
    "invalidUsage": _NEVER,
    "CONDITION_NOT_MET": _NEVER_HERE,
    "conditionNotMet": _NEVER_HERE,  # an organisation policy: no external addresses, say
    "LOCATION_POLICY_VIOLATED": _NOT_IN_REGION,
    # It is there already.
    "alreadyExists": _EXISTS,
    "duplicate": _EXISTS,
    "ALREADY_EXISTS": _EXISTS,
    "RESOURCE_ALREADY_EXISTS": _EXISTS,
    # It is not there.
    "notFound": _NOT_FOUND,
    "NOT_FOUND": _NOT_FOUND,
    "RESOURCE_NOT_FOUND": _NOT_FOUND,
    # It cannot be deleted yet.
    "resourceInUseByAnotherResource": _BLOCKED,
    "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE": _BLOCKED,
    "resourceInUse": _BLOCKED,
    "RESOURCE_IN_USE": _BLOCKED,
    "resourceNotReady": _BLOCKED,
    "RESOURCE_NOT_READY": _BLOCKED,
    "invalidResourceUsage": _BLOCKED,
    "INVALID_RESOURCE_USAGE": _BLOCKED,  # deletion protection
    # Anything may have happened.
    "backendError": _UNKNOWN,
    "internalError": _UNKNOWN,
    "INTERNAL_ERROR": _UNKNOWN,
    "SERVICE_UNAVAILABLE": _UNKNOWN,
    "timeout": _UNKNOWN,
}

_BY_STATUS = {401: _AUTH, 403: _AUTH, 429: _THROTTLED}
"""For answers without a code that we know. All others are unknown: a gateway's 404, say, proves nothing."""

_OURS = ("instances", "disks", "addresses", "snapshots", "firewalls", "operations")
_SOLD_BY_ZONE = ("machineTypes", "acceleratorTypes", "diskTypes", "zones", "regions")


def classify(exc: BaseException) -> Classified:
    """What an exception means, by the first code in it that is known. Never raises."""
    try:
        return _classify(exc)
    except Exception as broken:
        return _classified(NO_CODE, f"{exc!r} ({broken!r})", _UNKNOWN)


def _classify(exc: BaseException) -> Classified:
    if isinstance(exc, OperationFailedError):
        return _by_code(exc.failures, _UNKNOWN)
    if isinstance(exc, GoogleAPICallError):
        return _by_code(list(_failures(exc)), _BY_STATUS.get(exc.code or 0, _UNKNOWN))
    if isinstance(exc, NotReadyError):
        return _classified("resourceNotReady", str(exc), _BLOCKED)
    if isinstance(exc, ConfigError):
        return _classified(exc.reason, str(exc), _NEVER_HERE)  # raised here, before anything was sent
    if isinstance(exc, (RefreshError, DefaultCredentialsError, MalformedError)):
        transient = isinstance(exc, RefreshError) and exc.retryable
        # Only the text: the second argument of a RefreshError is the token service's whole answer.
        text = f"{type(exc).__name__}: {exc.args[0] if exc.args else exc}"
        return _classified(NO_CODE, text, _UNKNOWN if transient else _AUTH)
    return _classified(http_code(exc), text_of(exc), _UNKNOWN)


def _failures(exc: GoogleAPICallError) -> Iterable[tuple[str, str]]:
    """Code and message pairs of an answer, the most exact code first."""
    message = str(exc.message or "")
    said = re.sub(r"^(GET|POST|PUT|PATCH|DELETE) \S+: ", "", message)
    if exc.reason:
        yield str(exc.reason), said
    for error in exc.errors or ():
        if isinstance(error, dict) and error.get("reason"):
            yield str(error["reason"]), str(error.get("message") or said)
    yield f"http_{int(exc.code)}" if exc.code else NO_CODE, said


def _by_code(failures: Sequence[tuple[str, str]], otherwise: Meaning) -> Classified:
    for code, message in failures:
        meaning = MEANINGS.get(code)
        if meaning is None and code.endswith("STOCKOUT"):
            meaning = _STOCKOUT  # GPU_STOCKOUT and the like; there is no list of them
        if meaning is not None:
            return _classified(code, message, _refined(meaning, message))
    code, message = failures[0] if failures else ("operationFailed", "it failed without a reason")
    return _classified(code, message, otherwise)


def _refined(meaning: Meaning, message: str) -> Meaning:
    """What only the message tells: how far a quota reaches, and which resource it is that was not found."""
    if meaning.kind is ErrorKind.QUOTA and ("_ALL_REGIONS" in message or "globally" in message):
        return Meaning(ErrorKind.QUOTA, Scope.SERVER_TYPE if "GPUS_ALL_REGIONS" in message else Scope.VENDOR)
    if meaning is _AUTH and "Permission denied on 'locations/" in message:
        return _NOT_IN_REGION  # a region that is not open to this project; the others are
    if meaning is _NEVER and re.search(r"does not exist in zone|Unknown zone", message):
        return _NOT_HERE  # a machine type that this zone lacks is an invalid value, and no resource that is not found
    if meaning is _NOT_FOUND:
        return _not_found(message)
    return meaning


def _not_found(message: str) -> Meaning:
    named = re.search(r"'(?:https?://[^']*?/)?(projects/[^']+)'", message)
    segments = named[1].split("/") if named else []
    missing = segments[-2] if len(segments) > 1 else ""
    if missing in _OURS:
        return _NOT_FOUND
    if missing == "projects":
        return _AUTH  # a wrong project, or one that was taken away: nothing is proven to be gone
    if missing in _SOLD_BY_ZONE:
        return _NOT_HERE
    if missing:
        return _NEVER  # an image, a network
    return _UNKNOWN


def _classified(code: str, message: str, meaning: Meaning) -> Classified:
    plain = " ".join(re.sub(r"<[^>]*>", " ", message).split())
    return Classified(
        kind=meaning.kind,
        scope=meaning.scope,
        may_exist=meaning.may_exist,
        code=code,
        message=plain if len(plain) <= _MAX_MESSAGE_CHARS else plain[: _MAX_MESSAGE_CHARS - 1] + "…",
    )
