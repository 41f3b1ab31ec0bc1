"""What UpCloud's errors mean.

Codes: developers.upcloud.com/1.3 (errors of each operation), the list in UpCloud's Go SDK (`error_codes.go`), and
those that a crawler of real start errors met. The SDK tells no HTTP status: only codes, or a problem document.
"""

from __future__ import annotations

import json
from dataclasses import replace

from upcloud_api import UpCloudAPIError

from tasks.clouds.base import NO_CODE, Classified, ErrorKind, Scope, http_code, text_of
from tasks.domain.errors import AuthError, CapacityError, ConfigError, QuotaError, TokensweepError, UnsupportedError

_Meaning = tuple[ErrorKind, Scope, bool]
"""Kind, scope, and whether the resource may exist all the same."""

_CAPACITY: _Meaning = (ErrorKind.CAPACITY, Scope.ZONE, False)
_QUOTA: _Meaning = (ErrorKind.QUOTA, Scope.VENDOR, False)
_AUTH: _Meaning = (ErrorKind.AUTH, Scope.VENDOR, False)
_THROTTLE: _Meaning = (ErrorKind.RATE_LIMITED, Scope.VENDOR, False)
_GONE: _Meaning = (ErrorKind.NOT_FOUND, Scope.ZONE, False)
_BLOCKED: _Meaning = (ErrorKind.DELETE_BLOCKED, Scope.ZONE, False)
_UNSUPPORTED: _Meaning = (ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, False)
_UNKNOWN: _Meaning = (ErrorKind.UNKNOWN, Scope.ZONE, True)

SERVER_NOT_FOUND = "SERVER_NOT_FOUND"

CODES: dict[str, _Meaning] = {
    "SERVER_RESOURCES_UNAVAILABLE": _CAPACITY,
    "STORAGE_RESOURCES_UNAVAILABLE": _CAPACITY,
    "IP_ADDRESS_RESOURCES_UNAVAILABLE": _CAPACITY,
    # Limits are the account's, in all zones.
    "SERVER_CORE_LIMIT_REACHED": _QUOTA,
    "SERVER_MEMORY_LIMIT_REACHED": _QUOTA,
    "SERVER_CREATING_LIMIT_REACHED": _QUOTA,
    "SERVER_IP_LIMIT_REACHED": _QUOTA,
    "IP_ADDRESS_LIMIT_REACHED": _QUOTA,
    "PUBLIC_IPV4_LIMIT_REACHED": _QUOTA,
    "HDD_STORAGE_LIMIT_REACHED": _QUOTA,
    "STANDARD_STORAGE_LIMIT_REACHED": _QUOTA,
    "MAXIOPS_STORAGE_LIMIT_REACHED": _QUOTA,
    "STORAGE_DEVICE_LIMIT_REACHED": _QUOTA,
    "GPU_LIMIT_REACHED": (ErrorKind.QUOTA, Scope.SERVER_TYPE, False),  # servers without a GPU may still be had
    "INSUFFICIENT_CREDITS": _QUOTA,
    "RATE_LIMITED": _THROTTLE,
    "TOO_MANY_REQUESTS": _THROTTLE,
    "AUTHENTICATION_FAILED": _AUTH,
    "ACCOUNT_LOCKED": _AUTH,
    "ACCOUNT_SUSPENDED": _AUTH,
    "FORBIDDEN": _AUTH,
    "SERVER_FORBIDDEN": _AUTH,
    "STORAGE_FORBIDDEN": _AUTH,
    "IP_ADDRESS_FORBIDDEN": _AUTH,
    "TRIAL_PLAN": _UNSUPPORTED,
    "CORE_MEMORY_UNSUPPORTED": _UNSUPPORTED,
    "PLAN_CORE_NUMBER_ILLEGAL": _UNSUPPORTED,
    "PLAN_MEMORY_AMOUNT_ILLEGAL": _UNSUPPORTED,
    "METADATA_DISABLED_ON_CLOUD-INIT": _UNSUPPORTED,
    "CAN_NOT_CREATE_PASSWORD_FOR_THE_SELECTED_DISTRIBUTION": _UNSUPPORTED,
    "DUPLICATE_LABEL_KEYS": _UNSUPPORTED,
    "UNKNOWN_ATTRIBUTE": _UNSUPPORTED,
    # Sold, but not there: the next zone may have it.
    "ZONE_NOT_FOUND": (ErrorKind.UNSUPPORTED, Scope.ZONE, False),
    "ZONE_INVALID": (ErrorKind.UNSUPPORTED, Scope.ZONE, False),
    "ZONE_MISMATCH": (ErrorKind.UNSUPPORTED, Scope.ZONE, False),
    SERVER_NOT_FOUND: _GONE,
    "SERVER_INVALID": _GONE,  # no UUID of a server: there can be none
    "STORAGE_NOT_FOUND": _GONE,
    "STORAGE_INVALID": _GONE,
    "IP_ADDRESS_NOT_FOUND": _GONE,
    "SERVER_STATE_ILLEGAL": _BLOCKED,
    "STORAGE_STATE_ILLEGAL": _BLOCKED,
    "STORAGE_ATTACHED": _BLOCKED,
    "STORAGE_ATTACHED_AS_DISK": _BLOCKED,
    "STORAGE_IN_USE": _BLOCKED,
    "CANNOT_DELETE_PRIVATE_ADDRESS": _BLOCKED,
    "SERVICE_UNAVAILABLE": _UNKNOWN,
    "SERVICE_ERROR": _UNKNOWN,
    "INTERNAL_ERROR": _UNKNOWN,
}

_BY_ENDING: tuple[tuple[str, _Meaning], ...] = (
    ("_RESOURCES_UNAVAILABLE", _CAPACITY),
    ("_LIMIT_REACHED", _QUOTA),
    ("_STATE_ILLEGAL", _BLOCKED),
    ("_NOT_FOUND", _GONE),
    ("_FORBIDDEN", _AUTH),
    ("_INVALID", _UNSUPPORTED),
    ("_MISSING", _UNSUPPORTED),
    ("_ILLEGAL", _UNSUPPORTED),
)
"""UpCloud builds its codes from the name of a thing and what is wrong with it."""

_BY_STATUS: dict[int, _Meaning] = {
    400: _UNSUPPORTED,
    401: _AUTH,
    402: _QUOTA,
    403: _AUTH,
    404: _GONE,
    409: _BLOCKED,
    429: _THROTTLE,
}

_OURS: dict[type[TokensweepError], _Meaning] = {
    AuthError: _AUTH,
    QuotaError: _QUOTA,
    CapacityError: _CAPACITY,
    UnsupportedError: _UNSUPPORTED,
    ConfigError: _UNSUPPORTED,
}
_LONGEST_MESSAGE = 300


class NotSentError(Exception):
    """The create was never sent: something that it needs could not be read. Its cause says why."""


def classify(exc: BaseException) -> Classified:
    """Never raises. An answer that is not the API's own JSON says nothing of what became of the request."""
    if isinstance(exc, NotSentError) and exc.__cause__ is not None:
        return replace(classify(exc.__cause__), may_exist=False)
    if isinstance(exc, TokensweepError):
        return _classified(_OURS.get(type(exc), _UNKNOWN), exc.reason, exc.message)
    if isinstance(exc, UpCloudAPIError):
        return _of_answer(exc)
    return _classified(_UNKNOWN, http_code(exc), text_of(exc))


def is_gone(exc: BaseException) -> bool:
    """Whether the API itself says that there is no such thing."""
    return isinstance(exc, UpCloudAPIError) and classify(exc).kind is ErrorKind.NOT_FOUND


def _of_answer(exc: UpCloudAPIError) -> Classified:
    code, message = str(exc.error_code or ""), str(exc.error_message or "")
    problem = _problem(message)
    if problem:
        code = str(problem.get("type", "")).rpartition("#")[2].removeprefix("ERROR_") or code
        message = f"{problem.get('title', '')} {problem.get('detail') or ''}".strip()
    return _classified(_meaning(code, problem), code or NO_CODE, message)


def _meaning(code: str, problem: dict[str, object]) -> _Meaning:
    if code in CODES:
        return CODES[code]
    for ending, meaning in _BY_ENDING:
        if code.endswith(ending):
            return meaning
    status = problem.get("status")
    return _BY_STATUS.get(status, _UNKNOWN) if isinstance(status, int) else _UNKNOWN


def _problem(message: str) -> dict[str, object]:
    """The problem document (RFC 9457) that the SDK writes into its message for newer parts of the API."""
    try:
        found = json.loads(message.removeprefix("Details: "))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _classified(meaning: _Meaning, code: str, message: str) -> Classified:
    kind, scope, may_exist = meaning
    return Classified(
        kind=kind, scope=scope, may_exist=may_exist, code=code, message=(message or code)[:_LONGEST_MESSAGE]
    )
