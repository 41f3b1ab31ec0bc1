"""What Hetzner's errors mean.

Codes: docs.hetzner.cloud/reference/cloud ("Errors" and the errors of servers, primary IPs, volumes and firewalls),
and the list in hcloud-go's `error.go`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hcloud import APIException
from hcloud.actions import ActionException

from tasks.clouds.base import Classified, ErrorKind, Scope, http_code, text_of
from tasks.domain.errors import AuthError, CapacityError, ConfigError, QuotaError, TokensweepError, UnsupportedError

NOT_FOUND = "not_found"
INVALID_INPUT = "invalid_input"
UNIQUENESS = "uniqueness_error"
RESOURCE_IN_USE = "resource_in_use"
RATE_LIMITED = "rate_limit_exceeded"
RESOURCE_LIMIT = "resource_limit_exceeded"
NOT_FOUND_CODES = (NOT_FOUND, "firewall_resource_not_found")
READONLY_CODES = ("token_readonly", "forbidden")

_Meaning = tuple[ErrorKind, Scope, bool]
"""Kind, scope, and whether the resource may exist all the same."""

CODES: dict[str, _Meaning] = {
    # None left here. A location is Hetzner's only place, so the zone is what to leave.
    "resource_unavailable": (ErrorKind.CAPACITY, Scope.ZONE, False),
    "placement_error": (ErrorKind.CAPACITY, Scope.ZONE, False),
    "no_space_left_in_location": (ErrorKind.CAPACITY, Scope.ZONE, False),
    "maintenance": (ErrorKind.CAPACITY, Scope.ZONE, False),
    # Limits are the project's, in all locations.
    RESOURCE_LIMIT: (ErrorKind.QUOTA, Scope.VENDOR, False),
    "limit_reached": (ErrorKind.QUOTA, Scope.VENDOR, False),
    RATE_LIMITED: (ErrorKind.RATE_LIMITED, Scope.VENDOR, False),
    "unauthorized": (ErrorKind.AUTH, Scope.VENDOR, False),
    "forbidden": (ErrorKind.AUTH, Scope.VENDOR, False),
    "token_readonly": (ErrorKind.AUTH, Scope.VENDOR, False),
    INVALID_INPUT: (ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, False),
    "json_error": (ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, False),
    "invalid_server_type": (ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, False),
    "unsupported_error": (ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, False),
    "deprecated_api_endpoint": (ErrorKind.UNSUPPORTED, Scope.VENDOR, False),
    "method_not_allowed": (ErrorKind.UNSUPPORTED, Scope.VENDOR, False),
    # The name is taken: by the first of two creates, or by somebody else.
    UNIQUENESS: (ErrorKind.EXISTS, Scope.ZONE, True),
    NOT_FOUND: (ErrorKind.NOT_FOUND, Scope.ZONE, False),
    "firewall_resource_not_found": (ErrorKind.NOT_FOUND, Scope.ZONE, False),
    "protected": (ErrorKind.DELETE_BLOCKED, Scope.ZONE, False),
    "locked": (ErrorKind.DELETE_BLOCKED, Scope.ZONE, False),
    "resource_locked": (ErrorKind.DELETE_BLOCKED, Scope.ZONE, False),
    RESOURCE_IN_USE: (ErrorKind.DELETE_BLOCKED, Scope.ZONE, False),
    "must_be_unassigned": (ErrorKind.DELETE_BLOCKED, Scope.ZONE, False),
    "server_not_stopped": (ErrorKind.DELETE_BLOCKED, Scope.ZONE, False),
    "volume_already_attached": (ErrorKind.DELETE_BLOCKED, Scope.ZONE, False),
    "primary_ip_assigned": (ErrorKind.DELETE_BLOCKED, Scope.ZONE, False),
    # The backend broke in the middle of something.
    "conflict": (ErrorKind.UNKNOWN, Scope.ZONE, True),
    "server_error": (ErrorKind.UNKNOWN, Scope.ZONE, True),
    "service_error": (ErrorKind.UNKNOWN, Scope.ZONE, True),
    "unknown_error": (ErrorKind.UNKNOWN, Scope.ZONE, True),
    "unavailable": (ErrorKind.UNKNOWN, Scope.ZONE, True),
    "bad_gateway": (ErrorKind.UNKNOWN, Scope.ZONE, True),
    "timeout": (ErrorKind.UNKNOWN, Scope.ZONE, True),
    "action_failed": (ErrorKind.UNKNOWN, Scope.ZONE, True),
}

_UNKNOWN: _Meaning = (ErrorKind.UNKNOWN, Scope.ZONE, True)
_OURS: dict[type[TokensweepError], _Meaning] = {
    AuthError: (ErrorKind.AUTH, Scope.VENDOR, False),
    QuotaError: (ErrorKind.QUOTA, Scope.VENDOR, False),
    CapacityError: (ErrorKind.CAPACITY, Scope.ZONE, False),
    UnsupportedError: (ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, False),
    ConfigError: (ErrorKind.UNSUPPORTED, Scope.SERVER_TYPE, False),
}
_LONGEST_MESSAGE = 300
_TOO_MANY_REQUESTS = 429


class NotSentError(Exception):
    """The create was never sent: something that it needs could not be had. Its cause says why."""


def classify(exc: BaseException) -> Classified:
    """Never raises. An answer that is not the API's own JSON says nothing of what became of the request."""
    if isinstance(exc, NotSentError) and exc.__cause__ is not None:
        return replace(classify(exc.__cause__), may_exist=False)
    if isinstance(exc, TokensweepError):
        return _classified(_OURS.get(type(exc), _UNKNOWN), exc.reason, exc.message)
    if isinstance(exc, ActionException):
        return _of_action(exc)
    if isinstance(exc, APIException):
        return _of_answer(exc)
    return _classified(_UNKNOWN, http_code(exc), text_of(exc))


def is_code(exc: BaseException, code: str) -> bool:
    return isinstance(exc, APIException) and exc.code == code


def _of_answer(exc: APIException) -> Classified:
    code, message = str(exc.code), str(exc.message or "")
    if isinstance(exc.code, int):  # no JSON of the API's: a gateway spoke, or the answer was cut
        meaning = CODES[RATE_LIMITED] if exc.code == _TOO_MANY_REQUESTS else _UNKNOWN
        return _classified(meaning, f"http_{code}", f"HTTP {code} {message}".strip())
    kind, scope, may_exist = CODES.get(code, _UNKNOWN)
    if code == INVALID_INPUT and "location" in message.lower():
        scope = Scope.ZONE  # "unsupported location for server type"
    if code == RESOURCE_LIMIT and "dedicated" in message.lower():
        scope = Scope.SERVER_TYPE  # "dedicated core limit exceeded": shared ones may still be had
    return _classified((kind, scope, may_exist), code, message)


def _of_action(exc: ActionException) -> Classified:
    """The request was taken and failed later: what it was about may stand there half made."""
    error: Mapping[str, Any] = exc.action.error or {}
    code = str(error.get("code") or "action_failed")
    kind, scope, _ = CODES.get(code, _UNKNOWN)
    return _classified((kind, scope, True), code, str(error.get("message") or exc.message))


def _classified(meaning: _Meaning, code: str, message: str) -> Classified:
    kind, scope, may_exist = meaning
    return Classified(
        kind=kind, scope=scope, may_exist=may_exist, code=code, message=(message or code)[:_LONGEST_MESSAGE]
    )
